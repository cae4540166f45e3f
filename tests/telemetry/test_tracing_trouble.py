"""What the log of OpenTelemetry becomes in ours."""

import logging
from collections.abc import Iterator

import grpc
import pytest
from opentelemetry.trace import TraceState
from structlog.testing import capture_logs
from structlog.typing import EventDict

from telemetry.tracing_trouble import INTERVAL_S, TracingTrouble
from tests.support.clock import ManualClock

LIBRARY = logging.getLogger("opentelemetry.exporter.something")
FAILED = "Failed to export %s to %s, error code: %s, error details: %s"
REFUSED = ("traces", "user:secret@collector:4317", grpc.StatusCode.UNAVAILABLE, "secret text")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def events(clock: ManualClock) -> Iterator[list[EventDict]]:
    with capture_logs() as events, TracingTrouble(clock=clock).attached():
        yield events


def test_one_line_per_minute_says_how_many_were_suppressed(events: list[EventDict], clock: ManualClock) -> None:
    for _ in range(1000):
        LIBRARY.error(FAILED, *REFUSED)
    clock.now_s += INTERVAL_S
    LIBRARY.error(FAILED, *REFUSED)
    assert [(event["event"], event["suppressed"]) for event in events] == [
        ("tracing_failed", 0),
        ("tracing_failed", 999),
    ]


def test_line_repeats_neither_addresses_nor_answers(events: list[EventDict]) -> None:
    LIBRARY.error(FAILED, *REFUSED)
    assert events == [
        {
            "event": "tracing_failed",
            "log_level": "warning",
            "reason": "Failed to export traces to …, error code: UNAVAILABLE, error details: …",
            "error": "UNAVAILABLE",
            "suppressed": 0,
        }
    ]


def test_attempt_that_is_repeated_has_no_line_but_gives_the_later_one_its_error(events: list[EventDict]) -> None:
    retried = "Transient error %s encountered while exporting %s batch, retrying in %.2fs."
    LIBRARY.warning(retried, ConnectionError("secret"), "spans", 1.0)
    assert events == []
    LIBRARY.error("Failed to export %s batch due to timeout, max retries or shutdown.", "spans")
    assert (events[0]["reason"], events[0]["error"]) == (
        "Failed to export spans batch due to timeout, max retries or shutdown.",
        "ConnectionError",
    )


def test_exceptions_are_named_by_their_type(events: list[EventDict]) -> None:
    LIBRARY.error("Exception while exporting %s.", "Span", exc_info=ValueError("secret"))
    assert (events[0]["reason"], events[0]["error"]) == ("Exception while exporting Span.", "ValueError")


def test_number_that_is_none_does_no_harm(events: list[EventDict]) -> None:
    TracingTrouble().emit(LIBRARY.makeRecord("", logging.ERROR, "", 0, "took %.2fs", ("secret",), None))
    assert events[0]["reason"] == "took %.2fs"


def test_messages_below_warnings_have_no_line(events: list[EventDict]) -> None:
    LIBRARY.info("Shutdown called, ignoring %s.", "Span")
    assert events == []


def test_after_the_block_the_library_logs_as_before() -> None:
    library = logging.getLogger("opentelemetry")
    with TracingTrouble().attached():
        assert (library.propagate, len(library.handlers)) == (False, 1)
    assert (library.propagate, library.handlers) == (True, [])


def test_caller_can_neither_write_lines_nor_hide_those_of_failures(events: list[EventDict]) -> None:
    for state in ("no state", "a=b," * 40):
        TraceState.from_header([state])
    assert events == []
    LIBRARY.error(FAILED, *REFUSED)
    assert len(events) == 1
