"""`python main.py COMMAND`: which command is meant, and its exit code."""

import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from importlib import import_module

from cli.console import FAILED, CommandError, configure_logging, tell

COMMANDS = {
    "compare": "compare two models on your own texts",
    "download": "download models into the cache",
    "check": "check settings, machine, models and hub",
}
"""Each is a module beside this one."""
INTERRUPTED = 130
"""What a shell tells of a program that Ctrl-C has ended: 128 and the number of SIGINT."""


def run(argv: Sequence[str]) -> int:
    """Do what *argv* asks for, without the program's name.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong use.
    """
    arguments = _parser(argv).parse_args(argv)
    configure_logging()
    try:
        code: int = arguments.run(arguments)
    except CommandError as error:
        tell(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever reads the results, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        return FAILED
    return code


def _parser(argv: Sequence[str]) -> ArgumentParser:
    parser = ArgumentParser(
        prog="python main.py",
        description="Turn text into vectors. Without a command, the service starts.",
        epilog="Settings come from the environment or from .env; see .env.example.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(metavar="COMMAND", title="commands", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False
        )
        if name in argv[:1]:  # the others need modules that may not be here, see the Dockerfile
            module = import_module(f"cli.{name}")
            module.describe(command)
            command.set_defaults(run=module.run)
    return parser
