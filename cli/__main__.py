"""Runs `python -m cli COMMAND`: the commands of `python main.py` except `serve`, without importing the service."""

import sys

from cli.commands import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
