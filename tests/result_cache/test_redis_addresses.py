"""Results in Redis by each way to reach it: TLS, Unix socket, users with passwords, clusters."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from access.quotas import MemoryQuotas, quotas_of
from access.redis_quotas import RedisQuotas
from host.redis_client import MAX_REPLY_BYTES
from tests.result_cache.test_redis_results import (
    KEYS,
    NEEDED,
    NEEDED_IN_CLUSTERS,
    PASSWORD,
    RESULTS,
    SHORT_TIMEOUT_S,
    opened,
)
from tests.support.certificates import certified
from tests.support.redis_servers import RedisServer, running_cluster, running_redis

pytestmark = pytest.mark.redis


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certified(tmp_path_factory.mktemp("certificate"))


def with_tls(server: RedisServer, certificate: Path) -> str:
    return f"rediss://127.0.0.1:{server.tls_port}/0?ssl_ca_certs={certificate}"


async def test_tls_with_the_certificate_of_the_url_is_used(certificate: Path) -> None:
    with running_redis(certificate=certificate) as server:
        async with opened(with_tls(server, certificate)) as there:
            await there.put(RESULTS)
            assert await there.get(*RESULTS) == list(RESULTS.values())
            assert there.events == []
        async with opened(f"rediss://127.0.0.1:{server.tls_port}/0") as there:
            assert await there.get(*KEYS[:2]) == [None, None]
            assert there.events == [("result_cache_lost", "connection")], "the certificate is not trusted"


async def test_tls_that_hangs_ends_in_time(certificate: Path) -> None:
    with running_redis(certificate=certificate) as server:
        async with opened(with_tls(server, certificate), timeout_s=SHORT_TIMEOUT_S) as there:
            await there.put(RESULTS)
            server.freeze()
            begin = asyncio.get_running_loop().time()
            assert await there.get(KEYS[0]) == [None]
            await there.settle()
            assert there.events == [("result_cache_lost", "timeout")]
        assert asyncio.get_running_loop().time() - begin < 10 * SHORT_TIMEOUT_S, "closing does not wait for Redis"


async def test_unix_socket_is_used(tmp_path: Path) -> None:
    with running_redis("--unixsocket", str(tmp_path / "redis.sock")):
        async with opened(f"unix://{tmp_path}/redis.sock") as there:
            await there.put(RESULTS)
            assert await there.get(KEYS[0]) == [RESULTS[KEYS[0]]]
            assert there.events == []


# Clusters


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, certificate: Path) -> Iterator[Sequence[RedisServer]]:
    with running_cluster(tmp_path_factory.mktemp("cluster"), servers=3, certificate=certificate) as servers:
        yield servers


async def test_cluster_is_found_by_the_address_of_one_server(cluster: Sequence[RedisServer]) -> None:
    async with opened(cluster[0].url) as one, opened(cluster[2].url) as another:
        await one.put(RESULTS)
        assert await another.get(*RESULTS, b"unknown key here", KEYS[0]) == [*RESULTS.values(), None, RESULTS[KEYS[0]]]
        assert (one.counts.writes, another.counts.hits) == (len(RESULTS), len(RESULTS) + 1)
        assert all(len(server.stored()) > len(RESULTS) / 6 for server in cluster), "each server has its part"
        assert await one.results.clear() == len(RESULTS)
        assert [server.stored() for server in cluster] == [[], [], []]
        assert (one.events, another.events) == ([], [])


async def test_cluster_with_tls_is_used(cluster: Sequence[RedisServer], certificate: Path) -> None:
    async with opened(with_tls(cluster[1], certificate)) as there:
        await there.put(RESULTS)
        assert await there.get(*RESULTS) == list(RESULTS.values())
        assert await there.results.clear() == len(RESULTS)
        assert there.events == []


async def test_huge_values_in_a_cluster_are_not_read(cluster: Sequence[RedisServer]) -> None:
    async with opened(cluster[0].url) as there:
        await there.put({KEYS[0]: b"result"})
        [(server, name)] = [(server, name) for server in cluster for name in server.stored()]
        server.run("SETRANGE", name, str(2 * MAX_REPLY_BYTES), "x")
        assert await there.get(KEYS[0]) == [None]
        assert (there.errors, there.events) == ({"oversized": 1}, [])
        await there.put({KEYS[0]: b"result"})
        assert await there.get(KEYS[0]) == [b"result"]
        await there.results.clear()


async def test_cluster_with_a_missing_server_costs_nothing_and_comes_back(cluster: Sequence[RedisServer]) -> None:
    async with opened(cluster[0].url, timeout_s=1.0) as there:
        await there.put(RESULTS)
        cluster[1].freeze()
        assert await there.get(*KEYS[:64]) == [None] * 64
        await there.settle()
        cluster[1].thaw()
        assert there.events == [("result_cache_lost", "timeout")]
        while there.counts.reading != "closed":
            await there.recover()
        assert await there.get(*KEYS[64:]) == [RESULTS[key] for key in KEYS[64:]]
        await there.results.clear()


async def test_rights_that_the_docs_name_are_enough_in_a_cluster(cluster: Sequence[RedisServer]) -> None:
    for server in cluster:
        server.run(
            *("ACL", "SETUSER", "cache", "on", f">{PASSWORD}", "~fast-embedding:result:*", "resetchannels", "-@all"),
            *(*NEEDED, *NEEDED_IN_CLUSTERS),
        )
    async with opened(cluster[0].url.replace("//", f"//cache:{PASSWORD}@")) as there:
        await there.put(RESULTS)
        assert await there.get(*RESULTS) == list(RESULTS.values())
        assert await there.results.clear() == len(RESULTS)
        assert there.events == []


async def test_quotas_are_counted_in_a_cluster(cluster: Sequence[RedisServer]) -> None:
    quotas = quotas_of(requests=20, tokens=1000, window_s=86_400)
    one, other = (
        RedisQuotas(quotas, url=server.url, memory=MemoryQuotas(quotas), timeout_s=30) for server in cluster[:2]
    )
    async with one.running(), other.running():
        states = await asyncio.gather(
            *(store.take((f"caller {number % 3}",)) for number in range(120) for store in (one, other))
        )
        assert sum(state.is_admitted for state in states) == 60
        assert (one.store, other.store) == ("redis", "redis")
