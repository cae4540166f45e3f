"""The command line: `python main.py COMMAND`, or `fast-embedding COMMAND` after `pip install`."""

import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from importlib import import_module

from cli.console import FAILED, CommandError, configure_logging, print_message
from config import IS_INSTALLED

PROGRAM = "fast-embedding" if IS_INSTALLED else "python main.py"
SERVE = "serve"
COMMANDS = {
    "check": "check settings, machine, models and hub",
    "compare": "compare two models on your own texts",
    "download": "download models into the cache",
    "optimise": "write optimised copies of models",
    "top": "show what a running service does",
}
"""Each is a module beside this one."""
INTERRUPTED = 130
"""Exit code of a program that Ctrl-C ended: 128 plus the number of SIGINT, as shells have it."""


def run(argv: Sequence[str], *, version: str | None = None) -> int:
    """Run the command that *argv*, without the program's name, asks for. `main.py` serves by itself.

    Args:
        argv: a command and its arguments, or options.
        version: what `--version` prints; None: there is no such option.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage.
    """
    arguments = _parser(argv, version).parse_args(argv)
    configure_logging()
    try:
        code: int = arguments.run(arguments)
    except CommandError as error:
        print_message(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of the results, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it exits
        return FAILED
    return code


def _parser(argv: Sequence[str], version: str | None) -> ArgumentParser:
    parser = ArgumentParser(
        prog=PROGRAM,
        description=f"Turn text into vectors. Without a command, {PROGRAM} starts the service.",
        epilog="Settings come from the environment or from .env, such as PORT=8080; see .env.example.",
        allow_abbrev=False,
    )
    if version is not None:
        parser.add_argument("--version", action="version", version=f"fast-embedding {version}")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands", required=True)
    if version is not None:
        commands.add_parser(SERVE, help="start the service (the default)", allow_abbrev=False)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False
        )
        if name in argv[:1]:  # the others import modules that an image's build stage does not have, see the Dockerfile
            module = import_module(f"cli.{name}")
            module.describe(command)
            command.set_defaults(run=module.run)
    return parser
