"""Shared by all commands: results on standard output, messages on standard error, settings and models."""

import json
import logging
import sys
import textwrap
import warnings
from collections.abc import Iterable, Sequence

import structlog
from rich.console import Console, RenderableType
from rich.table import Table
from structlog.typing import EventDict, WrappedLogger

from config import Settings, SettingsError, load_settings
from engine.catalog import Catalog, Model
from engine.errors import UnknownModelError

DONE, FAILED, WRONG_USE = 0, 1, 2
"""Exit codes."""
BYTES_PER_MB = 1_000_000
FILE_COLUMNS = 100
"""Width of tables and help where the output is no terminal. The widest table with long model names fits in it."""


class CommandError(Exception):
    """A command cannot continue; the message is for the person who started it."""

    def __init__(self, message: str, *, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def print_line(line: str = "") -> None:
    """Print a line of the result. A terminal gets it wrapped at words; a file gets it whole, so that grep finds it."""
    console = _console()
    console.print(line, soft_wrap=not console.is_terminal)


def print_table(rows: Iterable[Sequence[str]]) -> None:
    """Print rows of cells as a table without lines. The first column is left-aligned, the others right-aligned."""
    first, *others = rows
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="")
    for number, title in enumerate(first):
        table.add_column(title, justify="right" if number else "left", overflow="fold")
    for row in others:
        table.add_row(*row)
    _console().print(table)


def print_json(content: object) -> None:
    """Print *content* as the result: one JSON object, the same on a terminal and in a file."""
    sys.stdout.write(f"{json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)}\n")
    sys.stdout.flush()


def print_line_of_json(content: object) -> None:
    """Print *content* as one of many results: a JSON object on a line of its own."""
    sys.stdout.write(f"{json.dumps(content, ensure_ascii=False, allow_nan=False)}\n")
    sys.stdout.flush()


def print_view(view: RenderableType) -> None:
    """Print a result that rich lays out."""
    _console().print(view)
    sys.stdout.flush()


def print_message(line: str) -> None:
    """Print a line to standard error: progress, or what went wrong."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def megabytes(size_bytes: int) -> str:
    """Format a size for people, such as `45.6 MB`."""
    return f"{size_bytes / BYTES_PER_MB:,.1f} MB"


def paragraphs(*texts: str) -> str:
    """Wrap texts for a command's help, with a blank line between them."""
    width = min(_console().width, FILE_COLUMNS)
    return "\n\n".join(textwrap.fill(text, width) for text in texts)


def configure_logging(level: int = logging.WARNING) -> None:
    """Write the engine's log to standard error, one plain line per event, and silence the libraries."""
    structlog.configure(
        processors=[structlog.processors.add_log_level, _as_line],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[logging.NullHandler()], force=True)
    warnings.simplefilter("ignore")  # warnings are for developers, who see them in the tests; they contain paths


def open_settings() -> Settings:
    """Return the settings.

    Raises:
        CommandError: `.env` or a setting cannot be used.
    """
    try:
        return load_settings()
    except SettingsError as error:
        raise CommandError(f"Bad settings: {error}") from None


def find_models(catalog: Catalog, names: Iterable[str]) -> list[Model]:
    """Return the models with these names, each once, in the order given.

    Raises:
        CommandError: at least one name is unknown; the message has a line for each, with the most similar names.
    """
    found: dict[str, Model] = {}
    unknown = []
    for name in names:
        try:
            model = catalog.get(name)
        except UnknownModelError as error:
            unknown.append(error.summary)
        else:
            found[model.name] = model
    if unknown:
        raise CommandError("\n".join(unknown), exit_code=WRONG_USE)
    return list(found.values())


def _console() -> Console:
    """Return a console on the current standard output. It prints texts as they are: no markup, emoji or colours."""
    width = None if sys.stdout.isatty() else FILE_COLUMNS  # otherwise rich would take the width of another terminal
    return Console(width=width, markup=False, emoji=False, highlight=False)


def _as_line(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    """Format a log event, such as `warning: model folder ignored (folder=mine, reason=...)`.

    An exception is reduced to its type: its message may contain paths.
    """
    level, name = event.pop("level"), str(event.pop("event")).replace("_", " ")
    if isinstance(error := event.pop("exc_info", None), BaseException):
        event["error"] = type(error).__name__
    fields = ", ".join(f"{key}={value}" for key, value in event.items())
    return f"{level}: {name} ({fields})"
