"""What all commands share: results on standard output, everything else on standard error, and the catalogue."""

import json
import logging
import sys
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import loguru
import structlog
from structlog.typing import EventDict, WrappedLogger
from tqdm import tqdm  # type: ignore[import-untyped]  # it ships no types

from config import Settings, SettingsError, load_settings
from engine.catalog import Catalog, Model
from engine.errors import UnknownModelError
from engine.fingerprint import ModelFiles
from engine.hub import use_files

DONE, FAILED, WRONG_USE = 0, 1, 2
BYTES_PER_MB = 1_000_000
LINE_CHARACTERS = 100
SECONDS_BETWEEN_LINES = 10.0
"""Where progress goes into a file, each step is a line of its own there."""


class CommandError(Exception):
    """A command cannot go on; the message is for the person who gave it."""

    def __init__(self, message: str, *, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
    """Progress on standard error, gone when it is done."""

    def __init__(self, *args: Any, **options: Any) -> None:
        pause_s = 0.1 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES
        super().__init__(*args, **{"file": sys.stderr, "leave": False, "mininterval": pause_s, **options})


class DownloadBar(Bar):
    """The one bar that is worth seeing of those that the hub's client draws: bytes on the disk, of all files."""

    def __init__(self, *args: Any, **options: Any) -> None:
        # The other two count files, and bytes on the network; the latter has no total, and is named "Downloading".
        is_shown = options.get("unit") == "B" and not str(options.get("desc")).startswith("Downloading")
        options |= {"desc": "  downloaded", "bar_format": None}
        super().__init__(*args, **options, disable=not is_shown)

    def set_description(self, *_: Any, **__: Any) -> None:
        """Keep ours: the client's words tell of its own storage."""

    def set_description_str(self, *_: Any, **__: Any) -> None:
        """The same."""

    def set_postfix_str(self, *_: Any, **__: Any) -> None:
        """The pace is part of the bar already."""


def fetch_visibly(model: Model, cache_dir: Path) -> ModelFiles:
    """The files of *model*, each compared with its hash. While they are downloaded, a bar is shown.

    Raises:
        ModelUnavailableError: they cannot be had, or are not what they should be.
    """
    bars: list[DownloadBar] = []

    class ClosedBar(DownloadBar):
        """One that is gone before the next line is written; the hub's client leaves that to the garbage collector."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            bars.append(self)

    try:
        return use_files(model, cache_dir, _checked, progress=ClosedBar)
    finally:
        for bar in bars:
            bar.close()


def _checked(files: ModelFiles) -> ModelFiles:
    _ = files.fingerprint  # made by reading and comparing all of them
    return files


def say(line: str = "") -> None:
    """A line of the result."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def tell(line: str) -> None:
    """A line beside the result: progress, or what went wrong."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def say_json(content: object) -> None:
    """One JSON object as the result."""
    say(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))


def megabytes(size_bytes: int) -> str:
    """A size for people, such as `45.6 MB`."""
    return f"{size_bytes / BYTES_PER_MB:,.1f} MB"


def paragraphs(*texts: str) -> str:
    """Texts for a command's help, each wrapped."""
    return "\n\n".join(textwrap.fill(text, LINE_CHARACTERS) for text in texts)


def table(rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of columns: the first one to the left, numbers and the like in the others to the right."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["   ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]


def configure_logging(level: int = logging.WARNING) -> None:
    """Send what the engine logs to standard error, one plain line per event; libraries keep still."""
    structlog.configure(
        processors=[structlog.processors.add_log_level, _as_line],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[logging.NullHandler()], force=True)
    loguru.logger.disable("fastembed")  # its failures are reported by us, without addresses of files
    warnings.simplefilter("ignore")  # for developers, who see them in the tests; their text holds paths


def open_settings() -> Settings:
    """The settings.

    Raises:
        CommandError: they cannot be used.
    """
    try:
        return load_settings()
    except SettingsError as error:
        raise CommandError(f"Bad settings: {error}") from None


def find_models(catalog: Catalog, names: Iterable[str]) -> list[Model]:
    """The models of these names, each once, in the order given.

    Raises:
        CommandError: at least one is unknown; each of these is told, with the closest names.
    """
    found: dict[str, Model] = {}
    unknown = []
    for name in names:
        try:
            model = catalog.get(name)
        except UnknownModelError as error:
            unknown.append(without_model(error, name))
        else:
            found[model.name] = model
    if unknown:
        raise CommandError("\n".join(unknown), exit_code=WRONG_USE)
    return list(found.values())


def without_model(error: UnknownModelError, name: str) -> str:
    """That there is no such model, and the closest names, for a person at a terminal."""
    closest = error.extensions["closest"]
    hint = f" Did you mean {' or '.join(map(repr, closest))}?" if isinstance(closest, list) and closest else ""
    return f"No model is named {name[:100]!r}.{hint}"


def _as_line(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    """`warning: model folder ignored (folder=mine, reason=...)`; of an exception only its type."""
    level, name = event.pop("level"), str(event.pop("event")).replace("_", " ")
    if isinstance(error := event.pop("exc_info", None), BaseException):
        event["error"] = type(error).__name__
    facts = ", ".join(f"{key}={value}" for key, value in event.items())
    return f"{level}: {name} ({facts})"
