"""Traces of real server processes: what is sent at the end, by each worker, and although the receiver is down."""

import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from host.cores import usable_cores
from tests.support.otlp_receiver import OtlpReceiver, grpc_receiver
from tests.support.servers import running_server, started_server

pytestmark = [pytest.mark.slow, pytest.mark.processes, pytest.mark.timeout(180)]


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with grpc_receiver() as receiver:
        yield receiver


@pytest.fixture
def tiny(tiny_models: Path) -> dict[str, str]:
    return {"MODELS_DIR": str(tiny_models), "REQUIRED_MODELS": "tiny/one", "ENABLE_TRACING": "true"}


def test_process_sends_its_spans_before_it_ends(tiny: dict[str, str], receiver: OtlpReceiver) -> None:
    with running_server(**tiny, **receiver.variables) as server:
        assert httpx.post(f"{server.url}/embed", json={"text": "one"}, timeout=60).status_code == 200
        server.process.terminate()
        assert server.wait_for_end() == 0
    span = receiver.only()
    assert span.attributes["server.address"] == "127.0.0.1"
    [line] = [line for line in server.events if line["event"] == "request_answered"]
    assert line["trace_id"] == span.trace_id
    assert "tracing_failed" not in server.log


@pytest.mark.skipif(sys.platform != "linux" or usable_cores() < 2, reason="workers need Linux and two cores")
def test_each_worker_sends_its_own_spans(tiny: dict[str, str], receiver: OtlpReceiver) -> None:
    with running_server(**tiny, **receiver.variables, WORKERS="2") as server:
        with httpx.Client() as first, httpx.Client() as second:  # one connection goes to each worker
            for client in (first, second) * 3:
                assert client.post(f"{server.url}/embed", json={"text": "one"}, timeout=60).status_code == 200
        server.process.terminate()
        assert server.wait_for_end() == 0
    assert len(receiver.servers()) == 6
    assert len({span.resource["service.instance.id"] for span in receiver.spans}) == 2


def test_receiver_that_is_down_delays_neither_requests_nor_the_end(tiny: dict[str, str]) -> None:
    down = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_BSP_SCHEDULE_DELAY": "10"}
    with running_server(**tiny, **down) as server:
        for _ in range(50):
            assert httpx.post(f"{server.url}/embed", json={"text": "one"}, timeout=60).status_code == 200
        server.process.terminate()
        assert server.wait_for_end() == 0
    assert server.log.count("tracing_failed") <= 1
    assert [line for line in server.lines if not line.startswith("{")] == []


@pytest.mark.parametrize("workers", ["1", "2"])
def test_variable_that_cannot_be_used_ends_the_start_with_one_line(tiny: dict[str, str], workers: str) -> None:
    if workers != "1" and usable_cores() < int(workers):
        pytest.skip("needs two cores")
    with started_server(**tiny, WORKERS=workers, OTEL_EXPORTER_OTLP_PROTOCOL="http/json") as server:
        assert server.wait_for_end() == 1
    [line] = [line for line in server.lines if not line.startswith("{")]
    assert line.endswith("OTEL_EXPORTER_OTLP_PROTOCOL cannot be used: use one of grpc, http/protobuf.\n")
