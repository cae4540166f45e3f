"""What OpenTelemetry's own log becomes in ours: few lines, and nothing that a receiver of traces has sent."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum

import structlog

INTERVAL_S = 60.0
"""Seconds for which one line stands: a receiver that is down fails every few seconds, for as long as it is down."""
SAFE_WORDS = frozenset({"spans", "traces", "Span"})
"""The only strings of messages that are written. Others may be an answer of the receiver, or an address with a
password."""
CALLERS_LOGGER = "opentelemetry.trace.span"
"""What it says is about a `tracestate` that a caller has sent: no trouble of ours, and any caller could write lines."""

log = structlog.get_logger()


class TracingTrouble(logging.Handler):
    """Writes the event `tracing_failed` for warnings and errors of OpenTelemetry, at most one per `INTERVAL_S`."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(logging.WARNING)
        self._clock = clock
        self._next_s = float("-inf")
        self._suppressed = 0
        self._error = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line with the reason and the number of lines that were suppressed before it."""
        if record.name == CALLERS_LOGGER:
            return
        if str(record.msg).startswith(("Transient error", "Shutdown in progress")):
            self._error = _error(record) or self._error
            return  # it is tried again; or the service ends, and the line before says what is lost
        now_s = self._clock()
        if now_s < self._next_s:
            self._suppressed += 1
            return
        self._next_s = now_s + INTERVAL_S
        suppressed, self._suppressed = self._suppressed, 0
        error = _error(record) or self._error
        log.warning("tracing_failed", reason=_reason(record), error=error, suppressed=suppressed)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Handle the log of OpenTelemetry in the block; nothing else does then."""
        library = logging.getLogger("opentelemetry")
        library.addHandler(self)
        library.propagate = False
        try:
            yield
        finally:
            library.removeHandler(self)
            library.propagate = True


def _reason(record: logging.LogRecord) -> str:
    """Return the message with safe arguments."""
    try:
        return str(record.msg) % tuple(_safe(value) for value in _arguments(record))
    except (TypeError, ValueError):  # the format is for numbers, and the number was none
        return str(record.msg)


def _error(record: logging.LogRecord) -> str:
    """Return the type of an exception, or a status of gRPC; empty: the record has none."""
    if record.exc_info and record.exc_info[0]:
        return record.exc_info[0].__name__
    return next((str(_safe(value)) for value in _arguments(record) if isinstance(value, Enum | BaseException)), "")


def _arguments(record: logging.LogRecord) -> tuple[object, ...]:
    return record.args if isinstance(record.args, tuple) else ()


def _safe(value: object) -> object:
    if isinstance(value, Enum):  # a status of gRPC
        return value.name
    if isinstance(value, BaseException):
        return type(value).__name__
    return value if isinstance(value, int | float) or value in SAFE_WORDS else "…"
