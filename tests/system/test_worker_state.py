"""What is one for all workers, whichever of them answers, with real processes."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from host.cores import usable_cores
from tests.support.redis_servers import needed
from tests.support.servers import ServerProcess, started_server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.processes,
    pytest.mark.timeout(120),
    pytest.mark.skipif(usable_cores() < 2, reason="needs two cores for two workers"),
]

MODEL, OTHER = "tiny/one", "tiny/two"
NO_KEEP_ALIVE = httpx.Limits(max_keepalive_connections=0)
"""Each request has a connection of its own, so that every worker gets some."""
TIMEOUT_S = 60


def client_of(server: ServerProcess) -> httpx.Client:
    return httpx.Client(base_url=server.url, limits=NO_KEEP_ALIVE, timeout=TIMEOUT_S)


@pytest.fixture
def start(tiny_models: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Returns a function that starts a service with two workers, and waits until it is ready."""
    servers = []

    def started(**settings: str) -> ServerProcess:
        defaults = {"WORKERS": "2", "MODELS_DIR": str(tiny_models), "REQUIRED_MODELS": MODEL}
        context = started_server(**{**defaults, **settings})
        servers.append(context)
        server = context.__enter__()
        server.wait_for("service_ready")
        return server

    yield started
    for context in servers:
        context.__exit__(None, None, None)


def embed_many(server: ServerProcess, times: int, *, clients: int = 4) -> list[int]:
    """Send *times* requests from several clients; return the statuses of all answers."""

    def send(number: int) -> list[int]:
        statuses = []
        with client_of(server) as client:
            for index in range(number, times, clients):
                text = "" if index % 10 == 0 else "one two"  # every tenth one is an error
                statuses.append(client.post("/embed", json={"text": text}).status_code)
        return statuses

    with ThreadPoolExecutor(clients) as executor:
        return [status for statuses in executor.map(send, range(clients)) for status in statuses]


def metrics(server: ServerProcess) -> dict[str, Any]:
    with client_of(server) as client:
        return dict(client.get("/metrics").raise_for_status().json())


def text_of(server: ServerProcess) -> str:
    with client_of(server) as client:
        return client.get("/metrics/prometheus").raise_for_status().text


def text_samples(server: ServerProcess) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text_of(server))
        for sample in family.samples
    }


def pids(server: ServerProcess) -> dict[int, int]:
    return {found["worker"]: found["pid"] for found in metrics(server)["workers"]["processes"]}


def test_sums_are_exact_whichever_worker_answers(start: Callable[..., ServerProcess]) -> None:
    server = start()
    statuses = embed_many(server, 2000)
    assert (statuses.count(200), statuses.count(400)) == (1800, 200)
    answers = [metrics(server) for _ in range(6)]
    for answer in answers:
        assert answer["endpoints"]["POST /embed"]["requests"] == 2000
        assert answer["errors"] == {"invalid-input": 200}
        used = {"requests": 1800, "texts": 1800, "tokens": 1800 * 4, "truncated": 0}
        assert used.items() <= answer["models"][MODEL].items()
        assert answer["models"][MODEL]["loads"] == 2, "one per worker"
        assert answer["statuses"]["200"] >= 1800
        results = answer["result_cache"]
        assert results["hits"] + results["misses"] + results["coalesced"] == 1800
        assert answer["micro_batches"]["texts"] == results["misses"]
        assert answer["total_requests"] == sum(found["requests"] for found in answer["workers"]["processes"])
    runs = answers[-1]["micro_batches"]["runs"]
    by_worker = {found["worker"]: found["embeddings"] for found in answers[-1]["workers"]["processes"]}
    assert sum(by_worker.values()) == 1800
    assert min(by_worker.values()) > 0, "all requests went to one worker"
    samples = text_samples(server)
    route = {"method": "POST", "route": "/embed", "dialect": "native"}
    for status, outcome, count in (("200", "served", 1800), ("400", "failed", 200)):
        assert samples["fast_embedding_requests_total", frozenset({**route, "status": status}.items())] == count
        durations = frozenset({**route, "outcome": outcome}.items())
        assert samples["fast_embedding_request_duration_seconds_count", durations] == count
    for name in ("request_texts", "request_tokens"):
        assert samples[f"fast_embedding_{name}_count", frozenset()] == 1800
    assert samples["fast_embedding_model_run_seconds_count", frozenset({("model", MODEL)})] == runs
    assert samples["fast_embedding_model_texts_total", frozenset({("model", MODEL)})] == 1800
    assert samples["fast_embedding_workers", frozenset()] == 2
    done = subprocess.run(
        [needed("promtool"), "check", "metrics"], input=text_of(server).encode(), capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    for number in ("1", "2", "supervisor"):
        assert samples["process_resident_memory_bytes", frozenset({("worker", number)})] > 1e7


def test_quotas_are_exact_for_all_workers_together(start: Callable[..., ServerProcess]) -> None:
    limits = {"RATE_LIMIT_REQUESTS": "300", "RATE_LIMIT_TOKENS": "5000", "RATE_LIMIT_WINDOW": "86400"}
    server = start(ENABLE_RATE_LIMIT="true", **limits)
    statuses = embed_many(server, 600)
    assert statuses.count(429) == 300
    with client_of(server) as client:
        rejected = client.post("/embed", json={"text": "one"})
    assert rejected.json()["violated-policies"] == ["requests"]
    assert metrics(server)["limits"] == {"store": "supervisor", "fallbacks": 0}


def test_tokens_count_for_all_workers_together(start: Callable[..., ServerProcess]) -> None:
    limits = {"RATE_LIMIT_REQUESTS": "1000", "RATE_LIMIT_TOKENS": "100", "RATE_LIMIT_WINDOW": "86400"}
    server = start(ENABLE_RATE_LIMIT="true", **limits)
    with client_of(server) as client:
        texts = [*["one two"] * 10, "one " * 200, *["one two"] * 10]
        answers = [client.post("/embed", json={"text": text}) for text in texts]
    assert [answer.status_code for answer in answers] == [200] * 11 + [429] * 10
    assert 'tokens";r=60;' in answers[9].headers["ratelimit"]
    assert {tuple(answer.json()["violated-policies"]) for answer in answers[11:]} == {("tokens",)}


def test_worker_that_is_killed_is_replaced_and_its_counts_stay(start: Callable[..., ServerProcess]) -> None:
    server = start()
    embed_many(server, 200)
    before = metrics(server)
    old = pids(server)
    os.kill(old[1], signal.SIGKILL)
    server.wait_for("worker_ready", times=3)
    assert pids(server).keys() == old.keys()
    assert pids(server)[1] != old[1]
    after = metrics(server)
    assert after["endpoints"]["POST /embed"]["requests"] == 200  # all of them were in reports
    assert after["total_requests"] >= before["total_requests"]
    assert after["workers"]["restarts"] == 1
    restarts = frozenset({"worker": "1", "reason": "signal"}.items())
    assert text_samples(server)["fast_embedding_worker_restarts_total", restarts] == 1
    with client_of(server) as client:
        for _ in range(4):
            health = client.get("/health").json()
            assert (health["status"], health["workers"]) == ("healthy", {"number": 2, "ready": 2, "restarts": 1})
            assert client.get("/health/ready").json() == {"status": "ready"}
            assert client.get("/health/live").json() == {"status": "live"}


def test_worker_that_hangs_delays_no_probe_and_is_stale(start: Callable[..., ServerProcess]) -> None:
    server = start()
    embed_many(server, 100)
    before = metrics(server)
    stopped = pids(server)[1]

    def ask(client: httpx.Client) -> tuple[httpx.Response, httpx.Response]:
        return client.get("/health/ready"), client.get("/metrics")

    with ExitStack() as stack, ThreadPoolExecutor(8) as threads:
        clients = [stack.enter_context(httpx.Client(base_url=server.url, timeout=TIMEOUT_S)) for _ in range(8)]
        for client in clients:  # keep-alive connections, of which at least one leads to each worker
            client.get("/health/live")
        os.kill(stopped, signal.SIGSTOP)
        try:
            first = next(as_completed([threads.submit(ask, client) for client in clients]))
        finally:
            os.kill(stopped, signal.SIGCONT)
    ready, answer = first.result()[0], first.result()[1].json()
    assert ready.json() == {"status": "ready"}
    assert {found["worker"]: found["stale"] for found in answer["workers"]["processes"]} == {1: True, 2: False}
    assert answer["endpoints"]["POST /embed"]["requests"] == before["endpoints"]["POST /embed"]["requests"]


def test_models_of_any_worker_are_in_memory_of_the_service(start: Callable[..., ServerProcess]) -> None:
    server = start()
    with client_of(server) as client:
        assert client.post("/embed", json={"text": "one", "model_name": OTHER}).status_code == 200
        for _ in range(6):
            details = client.get(f"/models/{OTHER}").json()
            assert (details["is_cached"], details["workers"]) == (True, {"number": 2, "loaded": 1})
            assert details["usage"] == {"requests": 1, "texts": 1, "tokens": 3}
            assert details["stamp"]["fingerprint"]
            assert OTHER in client.get("/models").json()["cached_models"]
            names = [found["name"] for found in client.get("/api/ps").json()["models"]]
            assert names == [f"{MODEL}:latest", f"{OTHER}:latest"]


def test_counts_of_all_workers_survive_the_replacement_of_all(start: Callable[..., ServerProcess]) -> None:
    server = start()
    embed_many(server, 300)
    old = pids(server)
    server.process.send_signal(signal.SIGHUP)
    server.wait_for("worker_ready", times=4)
    while set(pids(server).values()) & set(old.values()):  # the last one still drains
        pass
    answer = metrics(server)
    assert answer["endpoints"]["POST /embed"]["requests"] == 300
    assert answer["workers"]["restarts"] == 2
