"""`python -m cli COMMAND`: the commands of `python main.py`, without loading the service."""

import sys

from cli.commands import run

sys.exit(run(sys.argv[1:]))
