"""Log setup: events with fields, one line each. No texts of callers, keys, paths or values of local variables."""

import json
import logging
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, TextIO

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from telemetry.log_output import LineStream, log_stream, report_dropped_lines
from telemetry.uvicorn_lines import adopt_uvicorn_lines

PACKAGES_WITH_SAFE_MESSAGES = ("engine", "model_manager", "onnxruntime")
"""Messages of exceptions are logged only if these packages define them, since they never quote a caller's text. Of all
other exceptions, only the type and the code locations are logged."""
JSON_OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z
VERBOSE_LIBRARIES = ("httpx", "httpcore", "huggingface_hub", "asyncio")
"""They log each request or task at INFO, so their level is WARNING."""
ABSOLUTE_PATH = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?[/\\](?:[^\s'\",:;()]|(?<=\w) (?=[^\s/\\]*[/\\]))+")
"""An absolute path of any system. A space is part of it if the next word contains another separator."""
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")
"""Control characters, other line breaks, and marks that hide or reorder text."""


def configure_logging(*, level: str, is_json: bool | None, context: Mapping[str, object] | None = None) -> None:
    """Write the events of this process and of its libraries to standard output, without ever waiting for it.

    Args:
        level: lowest level that is written, such as `INFO`.
        is_json: write JSON lines; else columns for people; None: columns on a terminal, else JSON.
        context: fields of every event, such as the number of a worker; an event's own fields win.
    """
    output = log_stream()
    write = output.writer.write if isinstance(output, LineStream) else partial(_write_text, output)
    if is_json is None:
        is_json = not output.isatty()
    shared: list[Processor] = [
        _add_level_and_time,
        summarize_exception,
        *([partial(_add_context, tuple(context.items()))] if context else []),
    ]
    render: list[Processor] = (
        [_render_json] if is_json else [_format_for_people, structlog.dev.ConsoleRenderer(), _encode_line]
    )
    logger = LineLogger(write)
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=lambda *_: logger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, _clean_library_event, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render, _decode_line],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(logging.INFO, logging.getLevelName(level)), force=True)
    for name in VERBOSE_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
    adopt_uvicorn_lines(has_access_lines=level == "DEBUG")
    warnings.simplefilter("ignore")  # warnings contain paths; developers see them in the tests
    report_dropped_lines(_log_dropped_lines)


def _add_level_and_time(_logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    event["level"] = method
    event["timestamp"] = datetime.now(UTC)  # a text costs more: orjson formats it in a tenth of Python's time
    return event


def _add_context(
    context: tuple[tuple[str, object], ...], _logger: WrappedLogger, _method: str, event: EventDict
) -> EventDict:
    for name, value in context:
        event.setdefault(name, value)
    return event


def log_unhandled_errors() -> None:
    """Log errors that nothing handles in a thread or a destructor: Python's own report quotes them."""
    threading.excepthook = lambda failed: _log_unhandled(failed.thread.name if failed.thread else "", failed.exc_value)
    sys.unraisablehook = lambda failed: _log_unhandled("destructor", failed.exc_value)


def _log_unhandled(place: str, error: BaseException | None) -> None:
    if not isinstance(error, SystemExit):
        structlog.get_logger().error("error_unhandled", place=place, exc_info=error)


def _log_dropped_lines(output: str, lines: int, total: int) -> None:
    structlog.get_logger().warning("log_lines_dropped", output=output, lines=lines, total=total)


class LineLogger:
    """Writes the lines of structlog. Unlike `structlog.BytesLogger` it has no lock, so signal handlers may log."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = write


def _write_text(output: TextIO, line: bytes) -> None:
    output.write(line.decode())
    output.flush()


def summarize_exception(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace `exc_info` by the chain of exceptions: per exception its type, code locations and perhaps its message."""
    error = event.pop("exc_info", None)
    if isinstance(error, tuple):
        error = error[1]
    elif error is True:
        error = sys.exc_info()[1]
    if isinstance(error, BaseException):
        event["exception"] = [_summary(link) for link in _chain(error)]
    return event


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield *error* and its causes, as a traceback shows them, latest first."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _summary(error: BaseException) -> dict[str, Any]:
    kind = type(error)
    summary: dict[str, Any] = {"type": f"{kind.__module__}.{kind.__qualname__}"}
    if kind.__module__.partition(".")[0] in PACKAGES_WITH_SAFE_MESSAGES:
        summary["message"] = ABSOLUTE_PATH.sub("<path>", str(error))
    summary["at"] = [
        f"{frame.f_globals.get('__name__', '?')}:{line} {frame.f_code.co_name}"
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    return summary


def _clean_library_event(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Remove paths from a library's message. Of asyncio keep the first line only: the others quote an exception."""
    text = str(event["event"]).strip()
    if str(event.get("logger")) == "asyncio":
        text = text.partition("\n")[0]
    event["event"] = ABSOLUTE_PATH.sub("<path>", text)
    if (address := getattr(event.get("_record"), "address", None)) is not None:  # on which uvicorn listens
        event["address"] = address
    return event


def _format_for_people(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """For people: one line per exception and code location. No field can break a line or control the terminal."""
    event["timestamp"] = _plain(event["timestamp"])
    for name, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[name] = UNPRINTABLE.sub(_escaped, value)
    if summaries := event.get("exception"):
        event["exception"] = "\n".join(
            UNPRINTABLE.sub(_escaped, line) for summary in summaries for line in _lines(summary)
        )
    return event


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def _lines(summary: dict[str, Any]) -> list[str]:
    title = ": ".join(filter(None, (summary["type"], summary.get("message"))))
    return [title, *(f"  {location}" for location in summary["at"])]


def _encode_line(_logger: WrappedLogger, _method: str, line: Any) -> bytes:
    return f"{line}\n".encode("utf-8", "backslashreplace")


def _decode_line(_logger: WrappedLogger, _method: str, line: Any) -> str:
    """Return *line* as `logging` expects it, which adds the line break by itself."""
    return str(line[:-1], "utf-8")


def _render_json(_logger: WrappedLogger, _method: str, event: EventDict) -> bytes:
    """Return *event* as a line of JSON without characters that other programs take for line breaks or commands."""
    try:
        line = orjson.dumps(event, default=_plain, option=JSON_OPTIONS)
    except TypeError:  # half a surrogate pair, a key that is no string: no value may make the logging code fail
        line = f"{json.dumps(event, default=_plain, skipkeys=True)}\n".encode()
    if line.isascii() and b"\x7f" not in line:  # of ASCII, orjson escapes all other control characters
        return line
    return UNPRINTABLE.sub(_json_escaped, line[:-1].decode()).encode() + b"\n"


def _json_escaped(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]


def _plain(value: object) -> str:
    """Return what is logged of a value that JSON cannot represent."""
    return value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else type(value).__name__
