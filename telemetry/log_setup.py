"""Logs: events with fields, one line each. Never a caller's text, a key, a path or the value of a local variable."""

import json
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import loguru
import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

SPEAKING_MODULES = ("engine", "model_manager", "onnxruntime")
"""Exceptions of these modules never quote a caller's text, so their messages are logged; of others, only the place."""
PATH = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?[/\\](?:[^\s'\",:;()]|(?<=\w) (?=[^\s/\\]*[/\\]))+")
"""An absolute path; a space belongs to it where another separator follows in the next word."""


def configure_logging(*, level: str, is_json: bool) -> None:
    """Send the events of this process, its libraries' too, to standard output.

    Args:
        level: least level that is written, such as `INFO`.
        is_json: JSON lines for machines, else columns for people.
    """
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        tell_exception,
    ]
    render: list[Processor] = (
        [structlog.processors.JSONRenderer(serializer=_dumps)]
        if is_json
        else [_lay_out_exception, structlog.dev.ConsoleRenderer()]
    )
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stdout),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, _shorten_foreign, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(logging.INFO, logging.getLevelName(level)), force=True)
    for chatty in ("httpx", "httpcore", "huggingface_hub", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    loguru.logger.disable("fastembed")  # its failures are reported by us, without addresses of files
    warnings.simplefilter("ignore")  # for developers, who see them in the tests; their text holds paths


def tell_exception(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace `exc_info` by the chain of exceptions, each with its type and the places it passed."""
    error = event.pop("exc_info", None)
    if isinstance(error, tuple):
        error = error[1]
    elif error is True:
        error = sys.exc_info()[1]
    if isinstance(error, BaseException):
        event["exception"] = [_record(link) for link in _chain(error)]
    return event


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _record(error: BaseException) -> dict[str, Any]:
    kind = type(error)
    record: dict[str, Any] = {"type": f"{kind.__module__}.{kind.__qualname__}"}
    if kind.__module__.partition(".")[0] in SPEAKING_MODULES:
        record["message"] = PATH.sub("<path>", str(error))
    record["at"] = [
        f"{frame.f_globals.get('__name__', '?')}:{line} {frame.f_code.co_name}"
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    return record


def _shorten_foreign(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Lines of libraries: no paths, and of asyncio's only the first line, since the others quote an exception."""
    text = str(event["event"])
    if str(event.get("logger")) == "asyncio":
        text = text.partition("\n")[0]
    event["event"] = PATH.sub("<path>", text)
    return event


def _lay_out_exception(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """For people: one line per exception and place."""
    if links := event.get("exception"):
        event["exception"] = "\n".join(line for link in links for line in _lines(link))
    return event


def _lines(link: dict[str, Any]) -> list[str]:
    return [": ".join(filter(None, (link["type"], link.get("message")))), *(f"  {place}" for place in link["at"])]


def _dumps(event: EventDict, **_: object) -> str:
    try:
        return orjson.dumps(event, default=_type_name, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # what JSON cannot hold, such as half a surrogate pair, must not stop what is logged
        return json.dumps(event, default=_type_name, skipkeys=True)


def _type_name(value: object) -> str:
    return type(value).__name__
