"""Cached results of a service with several workers, and of replicas, with real processes and a real Redis."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from host.cores import usable_cores
from tests.support.redis_servers import RedisServer
from tests.support.servers import ServerProcess, started_server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.processes,
    pytest.mark.timeout(120),
    pytest.mark.skipif(usable_cores() < 2, reason="needs two cores for two workers"),
]

MODEL = "tiny/one"
REQUESTS = 8
"""Enough for both workers to get some: each request has a connection of its own, and those are spread evenly."""

Start = Callable[..., ServerProcess]


@pytest.fixture
def start(tiny_models: Path) -> Iterator[Start]:
    """Returns a function that starts a service, and waits until it is ready."""
    with ExitStack() as stack:

        def started(**settings: str) -> ServerProcess:
            defaults = {"MODELS_DIR": str(tiny_models), "REQUIRED_MODELS": MODEL}
            server = stack.enter_context(started_server(**{**defaults, **settings}))
            server.wait_for("service_ready")
            return server

        yield started


def of_redis(server: RedisServer) -> dict[str, str]:
    secret = {"CACHE_KEY_SECRET": "s" * 32, "RESULT_CACHE_REDIS_TIMEOUT": "5"}
    return {"REDIS_URL": server.url, "RESULT_CACHE_REDIS": "true", **secret}


def request(server: ServerProcess, method: str, path: str, **arguments: Any) -> httpx.Response:
    """Send a request on a connection of its own."""
    return httpx.request(method, f"{server.url}{path}", timeout=60, **arguments).raise_for_status()


def embed(server: ServerProcess, times: int = REQUESTS) -> list[str]:
    """Send the same text several times, one after the other, and return what each answer says of the cache."""
    return [request(server, "POST", "/embed", json={"text": "one two"}).headers["x-cache"] for _ in range(times)]


def metrics(server: ServerProcess) -> dict[str, Any]:
    return dict(request(server, "GET", "/metrics").json())


def wait_for_writes(redis: RedisServer, number: int) -> None:
    """Wait until so many results are in Redis: they are written after the answer."""
    while len(redis.stored()) < number:
        os.sched_yield()


HIT, MISS = "hit=1, miss=0, coalesced=0", "hit=0, miss=1, coalesced=0"


def test_each_worker_computes_a_text_once_and_all_results_are_deleted_by_whichever_is_asked(start: Start) -> None:
    server = start(WORKERS="2", RESULT_CACHE_MB="10")
    for round_number in (1, 2):
        assert sorted(embed(server)) == [MISS] * 2 + [HIT] * (REQUESTS - 2)
        found = metrics(server)
        results = found["result_cache"]
        assert found["micro_batches"]["texts"] == results["misses"] == 2 * round_number
        assert results["hits"] == (REQUESTS - 2) * round_number
        assert (results["entries"], results["redis"]["state"]) == (2, "off")
        assert results["limit_bytes"] <= 10_000_000
        cleared = request(server, "DELETE", "/cache").json()
        assert (cleared["entries"], cleared["redis"], cleared["workers_unreachable"]) == (2, "off", 0)
        assert metrics(server)["result_cache"]["entries"] == 0


@pytest.mark.redis
def test_workers_and_replicas_share_results_in_redis(start: Start, redis: RedisServer) -> None:
    one, two = start(WORKERS="2", **of_redis(redis)), start(**of_redis(redis))
    assert embed(one, 1) == [MISS]
    wait_for_writes(redis, 1)
    assert embed(one) == [HIT] * REQUESTS
    assert embed(two) == [HIT] * REQUESTS
    assert metrics(one)["micro_batches"]["texts"] + metrics(two)["micro_batches"]["texts"] == 1
    assert metrics(two)["result_cache"]["redis"]["hits"] == 1
    assert request(one, "DELETE", "/cache").json()["redis"] == "deleted"
    assert redis.stored() == []
    assert metrics(one)["result_cache"]["entries"] == 0
    assert embed(two, 1) == [HIT], "the memory of another replica is its own"
