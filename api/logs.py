"""Logs: events with fields, one line each. Never a caller's text, a key, a path or the value of a local variable."""

import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

SPEAKING_MODULES = ("engine", "model_manager", "onnxruntime")
"""Exceptions of these modules never quote a caller's text, so their messages are logged; of others, only the place."""
PATH = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?[/\\][^\s'\",:;()]+")


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
    render: Processor = (
        structlog.processors.JSONRenderer(serializer=_dumps) if is_json else structlog.dev.ConsoleRenderer()
    )
    structlog.configure(
        processors=[*shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stdout),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(logging.INFO, logging.getLevelName(level)), force=True)
    for chatty in ("httpx", "httpcore", "huggingface_hub", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
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


def _dumps(event: EventDict, **_: object) -> str:
    return orjson.dumps(event, default=_type_name).decode()


def _type_name(value: object) -> str:
    return type(value).__name__
