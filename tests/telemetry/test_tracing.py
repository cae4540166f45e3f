"""Sending spans: receivers that are down, slow, faulty or endless, and what waits for them meanwhile."""

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from structlog.testing import capture_logs

from telemetry.tracing import Tracer
from telemetry.tracing_trouble import TracingTrouble
from tests.support.otlp_receiver import RECEIVERS, http_server

PROTOCOLS = {"grpc": "grpc", "http": "http/protobuf"}
CLOSE_S = 1.0
WAIT_S = 20.0


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    return monkeypatch


@pytest.fixture(autouse=True)
def _forget_lines() -> None:
    """The library drops lines that it has written in the last 20 s, in another test."""
    for name in logging.root.manager.loggerDict:
        for one in logging.getLogger(name).filters if name.startswith("opentelemetry") else ():
            vars(one).pop("last_log", None)


def record(tracer: Tracer, spans: int, *, first: int = 0) -> None:
    for number in range(first, first + spans):
        span = tracer.start(f"span {number}", parent=None, state="", attributes={}, started_ns=1)
        span.end(f"span {number}", {}, 2, is_failure=False)


@contextmanager
def tcp_server(answer: bytes) -> Iterator[str]:
    """Accept connections, and send each *answer*, which need not be of any protocol."""
    with ExitStack() as stack, socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            while True:
                try:
                    connection = stack.enter_context(listening.accept()[0])
                except OSError:
                    return
                connection.sendall(answer)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "answer",
    [pytest.param(None, id="down"), pytest.param(b"", id="silent"), pytest.param(b"\x00garbage\r\n" * 9, id="garbage")],
)
def test_receiver_that_does_not_work_costs_one_line_of_the_log(
    variables: pytest.MonkeyPatch, protocol: str, answer: bytes | None
) -> None:
    with ExitStack() as stack:
        address = "http://127.0.0.1:9" if answer is None else stack.enter_context(tcp_server(answer))
        variables.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        variables.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10")
        with capture_logs() as events, TracingTrouble(clock=lambda: 0.0).attached():
            tracer = Tracer(version="1", protocol=PROTOCOLS[protocol])
            record(tracer, 30)
            tracer.close(WAIT_S)
    assert [event["event"] for event in events] == ["tracing_failed"]
    assert "127.0.0.1" not in str(events)
    assert "garbage" not in str(events)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_end_does_not_wait_for_a_receiver_that_is_silent(variables: pytest.MonkeyPatch, protocol: str) -> None:
    variables.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
    with capture_logs(), TracingTrouble().attached():
        with tcp_server(b"") as address:
            variables.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
            tracer = Tracer(version="1", protocol=PROTOCOLS[protocol])
            record(tracer, 1)
            tracer.close(CLOSE_S)  # a lost one would end by the time-out of the test
        for thread in threading.enumerate():
            if thread.name == "tracing-end":  # its last line would be one of the next test
                thread.join(WAIT_S)


@pytest.mark.parametrize("status", [200, 302, 503])
def test_endless_answer_is_not_read(variables: pytest.MonkeyPatch, status: int) -> None:
    closed = threading.Event()

    class Endless(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            self.send_header("location", "/more")
            self.end_headers()
            try:
                while True:
                    self.wfile.write(bytes(65_536))
            except OSError:
                closed.set()

        def log_message(self, *_: object) -> None:
            """Write nothing."""

    with http_server(Endless) as address, capture_logs() as events, TracingTrouble().attached():
        variables.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        if status == 200:  # the other ones are asked again until the time is over
            variables.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", str(WAIT_S))
        tracer = Tracer(version="1", protocol="http/protobuf")
        record(tracer, 1)
        tracer.close(WAIT_S)
        assert closed.wait(WAIT_S)
    assert [event["event"] for event in events] == ([] if status == 200 else ["tracing_failed"])


@pytest.mark.parametrize("protocol", RECEIVERS)
def test_spans_that_wait_are_bounded_and_the_newest_are_kept(variables: pytest.MonkeyPatch, protocol: str) -> None:
    arrived, released = threading.Event(), threading.Event()
    with RECEIVERS[protocol]() as receiver, capture_logs(), TracingTrouble().attached():
        receive = receiver.receive

        def held(request: Any) -> None:
            arrived.set()
            assert released.wait(WAIT_S)
            receive(request)

        receiver.receive = held  # type: ignore[method-assign]
        for name, value in {
            **receiver.variables,
            "OTEL_EXPORTER_OTLP_TIMEOUT": str(WAIT_S),
            "OTEL_BSP_MAX_QUEUE_SIZE": "10",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "5",
        }.items():
            variables.setenv(name, value)
        tracer = Tracer(version="1", protocol=PROTOCOLS[protocol])
        record(tracer, 5)
        assert arrived.wait(WAIT_S)
        record(tracer, 100, first=5)  # none of them waits for the receiver
        released.set()
        tracer.close(WAIT_S)
    assert sorted(int(span.name.split()[1]) for span in receiver.spans) == [*range(5), *range(95, 105)]
