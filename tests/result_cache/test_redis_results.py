"""Results in a real Redis: shared by services with one secret, and never an error or a wait for a request."""

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
import redis as redis_py
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from config import HERE
from host.redis_client import MAX_REPLY_BYTES
from result_cache.redis_counts import RedisCounts
from result_cache.redis_reads import MAX_READ_BYTES
from result_cache.redis_results import (
    MAX_CONNECTIONS,
    MAX_KEYS,
    MAX_QUEUE_BYTES,
    MAX_RESULT_BYTES,
    MAX_VALUE_BYTES,
    MAX_VERIFIED_BYTES,
    WRITE_DELAY_S,
    RedisResults,
    RedisUnreachableError,
)
from tests.support.clock import ManualClock
from tests.support.redis_servers import RedisServer, running_redis
from tests.support.servers import free_port

pytestmark = pytest.mark.redis

MODEL = "0123456789abcdef:runtime"
SECRET = b"the secret of the services under test"
PASSWORD = "never-to-be-logged"  # noqa: S105 - of a Redis that runs as long as a test
DOCS = (HERE / "docs/production/redis.md").read_text(encoding="utf-8")
NEEDED, NEEDED_IN_CLUSTERS = (re.findall(r"\+[a-z|]+", rights) for rights in re.findall(r"`(\+[a-z|+ ]+)`", DOCS))
"""What docs/production/redis.md says that the user must be allowed."""
LONG_TIMEOUT_S = 30.0
"""A time-out for tests in which Redis works: long, so that a busy machine causes no failure."""
SHORT_TIMEOUT_S = 0.2
KEYS = [bytes([number]) * 16 for number in range(200)]
RESULTS = {key: b"result of " + key for key in KEYS}


ANSWERS = [
    *(b"+OK\r\n", b"$-1\r\n", b"$3\r\nabc\r\n", b":1\r\n", b"-ERR unknown\r\n", b"*-1\r\n", b"*0\r\n"),
    *(b"*1\r\n$-1\r\n", b"*2\r\n$4\r\nmode\r\n$7\r\ncluster\r\n", b"*1\r\n$40\r\n" + bytes(40) + b"\r\n"),
    *(b"*2\r\n$-1\r\n$-1\r\n", b"-MOVED 1 127.0.0.1:1\r\n", b"-ASK x\r\n", b"*2\r\n-OOM\r\n+x\r\n"),
]


class PassingClock(ManualClock):
    """Moves by `step_s` whenever somebody looks at it."""

    step_s = 0.0

    def __call__(self) -> float:
        self.now_s += self.step_s
        return super().__call__()


class Opened:
    """Results under test, with control over their clock, and with their log."""

    def __init__(self, results: RedisResults, clock: PassingClock, logged: list[Any], before: set[Any]) -> None:
        self.results = results
        self.clock = clock
        self._logged = logged
        self._before = before

    @property
    def counts(self) -> RedisCounts:
        return self.results.counts

    @property
    def errors(self) -> dict[str, int]:
        return {kind: number for kind, number in self.counts.errors.items() if number}

    @property
    def events(self) -> list[tuple[str, str | None]]:
        return [(line["event"], line.get("reason")) for line in self._logged]

    async def put(self, results: Mapping[bytes, bytes], model: str = MODEL) -> None:
        """Write results, and wait until they are written or dropped."""
        self.results.put_later(model, results)
        await self.settle()

    async def get(self, *keys: bytes, model: str = MODEL) -> list[bytes | None]:
        return await self.results.fetch(model, keys)

    async def settle(self) -> None:
        """Wait for all tasks in the background."""
        while tasks := asyncio.all_tasks() - self._before:
            await asyncio.wait(tasks)

    async def recover(self) -> None:
        """Let the pause end, and have Redis checked."""
        self.clock.now_s += 60
        assert await self.get(KEYS[0]) == [None], "a request does not wait for the check"
        await self.settle()


@asynccontextmanager
async def opened(
    url: str, *, secret: bytes = SECRET, ttl_s: float = 3600, timeout_s: float = LONG_TIMEOUT_S
) -> AsyncIterator[Opened]:
    clock = PassingClock()
    results = RedisResults(url=url, secret=secret, ttl_s=ttl_s, timeout_s=timeout_s, clock=clock)
    before = asyncio.all_tasks()
    with capture_logs() as logged:
        async with results.running():
            yield Opened(results, clock, logged, before)
    assert asyncio.all_tasks() == before, "a task was left over"


@pytest.fixture
def other(redis: RedisServer) -> Iterator[redis_py.Redis]:
    """Another program, which may write to Redis."""
    with redis_py.Redis.from_url(redis.url) as client:
        yield client


def name_of(redis: RedisServer, key: bytes) -> str:
    """Return the name in Redis under which the result of *key* is."""
    [name] = [name for name in redis.stored() if name.endswith(key.hex())]
    return name


# Sharing


async def test_services_with_one_secret_share_results(redis: RedisServer) -> None:
    async with opened(redis.url) as one, opened(redis.url) as another:
        await one.put(RESULTS)
        wanted = [KEYS[5], b"unknown key here", KEYS[3], KEYS[5]]
        assert await another.get(*wanted) == [RESULTS[KEYS[5]], None, RESULTS[KEYS[3]], RESULTS[KEYS[5]]]
        assert (one.counts.writes, another.counts.lookups, another.counts.hits) == (len(RESULTS), 4, 3)
        assert another.counts.latencies.count == 1
        assert (one.errors, another.errors) == ({}, {})


async def test_long_requests_are_read_in_parts(redis: RedisServer) -> None:
    async with opened(redis.url) as there:
        await there.put(RESULTS)
        assert await there.get(*RESULTS) == list(RESULTS.values())
        assert there.counts.latencies.count == -(-len(RESULTS) // MAX_KEYS)
        assert await there.get() == []


async def test_requests_at_the_same_time_share_reads(redis: RedisServer) -> None:
    async with opened(redis.url) as there:
        await there.put(RESULTS)
        found = await asyncio.gather(*(there.get(key) for key in RESULTS))
        assert [result for [result] in found] == list(RESULTS.values())
        assert there.counts.latencies.count < len(RESULTS) / 10


async def test_models_and_secrets_are_apart(redis: RedisServer) -> None:
    async with opened(redis.url) as there, opened(redis.url, secret=b"of other services") as stranger:
        await there.put(RESULTS)
        assert await there.get(*KEYS[:3], model="0123456789abcdef:newer") == [None] * 3
        assert await stranger.get(*KEYS[:3]) == [None] * 3
        assert (there.errors, stranger.errors) == ({}, {})


async def test_results_expire_and_have_names_by_model(redis: RedisServer, other: redis_py.Redis) -> None:
    async with opened(redis.url, ttl_s=1000) as there:
        await there.put({KEYS[0]: b"result"})
        name = name_of(redis, KEYS[0])
        assert name.startswith("fast-embedding:result:")
        assert f":{MODEL}:" in name
        assert 900_000 < other.pttl(name) <= 1_000_000


async def test_any_bytes_come_back(redis: RedisServer) -> None:
    results = {
        KEYS[0]: b"",
        KEYS[1]: b"\r\n$-1\r\n\x00",
        KEYS[2]: bytes(range(256)) * 100,
        KEYS[3]: b"x" * MAX_RESULT_BYTES,
    }
    async with opened(redis.url) as there:
        await there.put(results)
        assert await there.get(*results) == list(results.values())


# Values that others have written


def flip(value: bytes, where: int) -> bytes:
    return value[:where] + bytes([value[where] ^ 1]) + value[where + 1 :]


@pytest.mark.parametrize("where", [0, 1, 32, 33, -1])
async def test_changed_value_is_not_used_and_is_replaced(redis: RedisServer, other: redis_py.Redis, where: int) -> None:
    async with opened(redis.url) as there:
        await there.put(RESULTS)
        name = name_of(redis, KEYS[0])
        value = other.get(name)
        assert isinstance(value, bytes)
        other.set(name, flip(value, where % len(value)))
        assert await there.get(KEYS[1], KEYS[0]) == [RESULTS[KEYS[1]], None]
        assert (there.errors, there.events) == ({"bad-value": 1}, [("result_cache_bad_value", None)])
        await there.put({KEYS[0]: RESULTS[KEYS[0]]})
        assert await there.get(KEYS[0]) == [RESULTS[KEYS[0]]]


@pytest.mark.parametrize("planted", [b"", b"\x01", b"x" * 33, b"\x01" * 2000, b"\x01" + bytes(32) + b"result"])
async def test_invented_value_is_not_used(redis: RedisServer, other: redis_py.Redis, planted: bytes) -> None:
    async with opened(redis.url) as there:
        await there.put({KEYS[0]: b"result"})
        other.set(name_of(redis, KEYS[0]), planted)
        assert await there.get(KEYS[0]) == [None]
        assert there.errors == {"bad-value": 1}


async def test_value_moved_to_another_key_model_or_service_is_not_used(
    redis: RedisServer, other: redis_py.Redis
) -> None:
    async with opened(redis.url) as there, opened(redis.url, secret=b"of other services") as stranger:
        await there.put(RESULTS)
        await there.put({KEYS[0]: b"of another model"}, model="another")
        [original, elsewhere] = sorted(name for name in redis.stored() if name.endswith(KEYS[0].hex()))
        await stranger.put({KEYS[2]: b"of strangers"})
        [foreign] = {name for name in redis.stored() if name.endswith(KEYS[2].hex())} - {
            original.replace(KEYS[0].hex(), KEYS[2].hex())
        }
        other.copy(elsewhere, original, replace=True)
        other.copy(name_of(redis, KEYS[3]), name_of(redis, KEYS[4]), replace=True)
        other.copy(foreign, original.replace(KEYS[0].hex(), KEYS[2].hex()), replace=True)
        assert await there.get(KEYS[0], KEYS[2], KEYS[3], KEYS[4]) == [None, None, RESULTS[KEYS[3]], None]
        assert there.errors == {"bad-value": 3}


async def test_key_of_another_type_is_a_miss_and_is_replaced(redis: RedisServer, other: redis_py.Redis) -> None:
    async with opened(redis.url) as there:
        await there.put({KEYS[0]: b"result"})
        name = name_of(redis, KEYS[0])
        other.delete(name)
        other.rpush(name, b"a", b"b")
        assert await there.get(KEYS[0]) == [None]
        await there.put({KEYS[0]: b"result"})
        assert await there.get(KEYS[0]) == [b"result"]


async def test_huge_value_is_not_read_and_costs_no_other_result(redis: RedisServer, other: redis_py.Redis) -> None:
    async with opened(redis.url) as there:
        await there.put(RESULTS)
        other.setrange(name_of(redis, KEYS[3]), 4 * MAX_REPLY_BYTES - 1, b"x")
        assert await there.get(*KEYS[:10]) == [None if key == KEYS[3] else RESULTS[key] for key in KEYS[:10]]
        assert there.errors == {"oversized": 1}
        assert there.events == []
        await there.put({KEYS[3]: RESULTS[KEYS[3]]})
        assert await there.get(*KEYS[:10]) == [RESULTS[key] for key in KEYS[:10]]


async def test_results_that_are_too_large_for_one_reply_are_read_in_several(redis: RedisServer) -> None:
    result, fits = bytes(MAX_RESULT_BYTES), MAX_READ_BYTES // MAX_VALUE_BYTES
    async with opened(redis.url) as there:
        for key in KEYS[:MAX_KEYS]:
            await there.put({key: result})
        assert await there.get(*KEYS[:fits]) == [result] * fits
        assert there.errors == {}
        assert await there.get(*KEYS[:MAX_KEYS]) == [result] * fits + [None] * (MAX_KEYS - fits), "memory is bounded"
        assert there.errors == {"oversized": 1}


async def test_huge_value_is_replaced_without_the_right_to_ask_for_sizes(
    redis: RedisServer, other: redis_py.Redis
) -> None:
    rights = [right for right in NEEDED if right != "+strlen"]
    other.execute_command("ACL", "SETUSER", "no-sizes", "on", "nopass", "~fast-embedding:result:*", *rights)  # type: ignore[no-untyped-call]
    async with opened(redis.url.replace("//", "//no-sizes:x@")) as there:
        await there.put({KEYS[0]: b"result"})
        other.setrange(name_of(redis, KEYS[0]), MAX_REPLY_BYTES, b"x")
        assert await there.get(KEYS[0]) == [None]
        assert (there.errors, there.events) == ({"oversized": 1}, [])
        await there.put({KEYS[0]: b"result"})
        assert await there.get(KEYS[0]) == [b"result"]


async def test_other_requests_are_served_while_large_results_are_checked(redis: RedisServer) -> None:
    result = bytes(MAX_VERIFIED_BYTES // 4)
    hits, is_over = [0], False
    async with opened(redis.url) as there:
        for key in KEYS[:MAX_KEYS]:
            await there.put({key: result})

        async def count_hits() -> None:
            while not is_over:
                hits.append(there.counts.hits)
                await asyncio.sleep(0)

        counting = asyncio.create_task(count_hits())
        assert await there.get(*KEYS[:MAX_KEYS]) == [result] * MAX_KEYS
        is_over = True
        await counting
    assert max(later - earlier for earlier, later in pairwise(hits)) <= MAX_VERIFIED_BYTES // len(result)


async def test_value_larger_than_any_result_is_not_hashed(redis: RedisServer, other: redis_py.Redis) -> None:
    async with opened(redis.url) as there:
        await there.put({KEYS[0]: b"result"})
        other.setrange(name_of(redis, KEYS[0]), MAX_RESULT_BYTES + 33, b"x")
        assert await there.get(KEYS[0]) == [None]
        assert there.errors == {"bad-value": 1}


# Writes


async def test_results_that_find_no_room_are_dropped(redis: RedisServer) -> None:
    number = MAX_QUEUE_BYTES // MAX_RESULT_BYTES
    async with opened(redis.url) as there:
        results = {bytes([key]) * 16: bytes([key]) * MAX_RESULT_BYTES for key in range(number + 5)}
        there.results.put_later(MODEL, {KEYS[0]: b"x" * (MAX_RESULT_BYTES + 1)})
        there.results.put_later(MODEL, results)
        assert there.counts.queue_bytes == MAX_QUEUE_BYTES
        await there.settle()
        assert (there.counts.writes, there.counts.dropped, there.counts.queue_bytes) == (number, 6, 0)


async def test_full_redis_is_read_but_not_written(own_redis: RedisServer) -> None:
    own_redis.run("CONFIG", "SET", "maxmemory-policy", "noeviction")
    async with opened(own_redis.url) as there:
        await there.put({KEYS[0]: b"result"})
        own_redis.run("CONFIG", "SET", "maxmemory", "1")
        await there.put({KEYS[1]: b"result", KEYS[2]: b"result"})
        await there.put({KEYS[3]: b"result"})
        assert (there.counts.writing, there.errors, there.counts.dropped) == ("open", {"full": 1}, 3)
        assert await there.get(KEYS[0], KEYS[1]) == [b"result", None]
        own_redis.run("CONFIG", "SET", "maxmemory", "0")
        there.clock.now_s += 60
        await there.put({KEYS[1]: b"result"})
        assert await there.get(KEYS[1]) == [b"result"]
        assert there.events == [("result_cache_writes_stopped", "full"), ("result_cache_writes_resumed", None)]


async def test_read_only_redis_is_read_but_not_written(own_redis: RedisServer) -> None:
    async with opened(own_redis.url) as there:
        await there.put({KEYS[0]: b"result"})
        own_redis.run("REPLICAOF", "127.0.0.1", str(free_port()))
        await there.put({KEYS[1]: b"result"})
        assert (there.counts.writing, there.errors, there.counts.dropped) == ("open", {"read-only": 1}, 1)
        assert await there.get(KEYS[0], KEYS[1]) == [b"result", None]
        own_redis.run("REPLICAOF", "NO", "ONE")
        there.clock.now_s += 60
        await there.put({KEYS[1]: b"result"})
        assert await there.get(KEYS[1]) == [b"result"]
        assert there.events == [("result_cache_writes_stopped", "read-only"), ("result_cache_writes_resumed", None)]


@pytest.mark.parametrize("failure", ["read-only", "full"])
async def test_idle_service_notices_that_redis_accepts_results_again(own_redis: RedisServer, failure: str) -> None:
    fail, repair = {
        "read-only": (f"REPLICAOF 127.0.0.1 {free_port()}", "REPLICAOF NO ONE"),
        "full": ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"),
    }[failure]
    async with opened(own_redis.url) as there:
        own_redis.run(fail)
        await there.put({KEYS[0]: b"result"})
        states = []
        for command in ("PING", repair):
            own_redis.run(command)
            for wait_s in (0, 60):
                there.clock.now_s += wait_s
                there.results.check_if_due()
                await there.settle()
                states.append(there.counts.writing)
        assert states == ["open", "open", "open", "closed"]
        assert (there.errors, there.counts.dropped, there.counts.writes) == ({failure: 2}, 1, 0)
        assert there.events == [("result_cache_writes_stopped", failure), ("result_cache_writes_resumed", None)]


async def test_results_that_are_dropped_never_come(own_redis: RedisServer) -> None:
    async with opened(own_redis.url) as there:
        own_redis.freeze()
        there.results.put_later(MODEL, dict.fromkeys(KEYS[:MAX_KEYS], b"written now"))
        there.results.put_later(MODEL, dict.fromkeys(KEYS[MAX_KEYS : 2 * MAX_KEYS], b"waits"))
        await asyncio.sleep(10 * WRITE_DELAY_S)
        assert there.counts.queue_bytes == MAX_KEYS * len(b"waits")
        dropping = asyncio.create_task(there.results.drop_waiting())
        await asyncio.sleep(0)
        there.results.put_later(MODEL, dict.fromkeys(KEYS[2 * MAX_KEYS :], b"of later texts"))
        assert not dropping.done(), "the write in flight may still come"
        own_redis.thaw()
        await dropping
        await there.settle()
        assert (there.counts.writes, there.counts.dropped) == (len(KEYS) - MAX_KEYS, MAX_KEYS)
        assert await there.get(KEYS[MAX_KEYS], KEYS[-1]) == [None, b"of later texts"]


async def test_caller_of_a_deletion_who_leaves_does_not_stop_writes(own_redis: RedisServer) -> None:
    async with opened(own_redis.url) as there:
        own_redis.run("CONFIG", "SET", "maxmemory", "1")
        await there.put({KEYS[0]: b"result"})
        assert there.errors == {"full": 1}
        own_redis.run("CONFIG", "SET", "maxmemory", "0")
        there.clock.now_s += 60
        own_redis.freeze()
        there.results.put_later(MODEL, {KEYS[0]: b"result"})
        while there.counts.writing != "half-open":  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0)
        deletion = asyncio.create_task(there.results.clear())
        await asyncio.sleep(0)
        deletion.cancel()
        await asyncio.gather(deletion, return_exceptions=True)
        own_redis.thaw()
        await there.settle()
        assert there.events[-1] == ("result_cache_writes_resumed", None)
        assert await there.get(KEYS[0]) == [b"result"]


async def test_results_that_wait_at_the_end_are_written(redis: RedisServer) -> None:
    async with opened(redis.url) as there:
        there.results.put_later(MODEL, RESULTS)
    assert len(redis.stored()) == len(RESULTS)


# Failures


async def test_killed_redis_is_not_used_until_it_is_restarted(own_redis: RedisServer) -> None:
    async with opened(own_redis.url) as there:
        await there.put(RESULTS)
        own_redis.kill()
        assert await there.get(*KEYS[:3]) == [None] * 3
        assert (there.events, there.counts.reading) == ([("result_cache_lost", "connection")], "open")
        await there.put({KEYS[0]: b"result"})
        assert await there.get(KEYS[0]) == [None]
        assert there.errors == {"connection": 1}, "only the first request used Redis"
        own_redis.start()
        await there.recover()
        await there.put({KEYS[0]: b"result"})
        assert await there.get(KEYS[0]) == [b"result"]
        assert there.events == [("result_cache_lost", "connection"), ("result_cache_recovered", None)]


async def test_redis_may_restart_between_two_requests(own_redis: RedisServer) -> None:
    async with opened(own_redis.url) as there:
        await there.put(RESULTS)
        own_redis.kill()
        own_redis.start()
        for _ in range(3):
            await asyncio.sleep(0)  # the event loop sees that the connections are closed
        assert await there.get(KEYS[0]) == [None]
        await there.put({KEYS[0]: b"result"})
        assert await there.get(KEYS[0]) == [b"result"]
        assert there.events == []


async def test_frozen_redis_costs_only_requests_in_flight_their_time(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("result_cache.redis_results.CONNECT_S", 2 * SHORT_TIMEOUT_S)
    async with opened(own_redis.url, timeout_s=SHORT_TIMEOUT_S) as there:
        own_redis.freeze()
        loop = asyncio.get_running_loop()
        begin = loop.time()
        assert await asyncio.gather(*(there.get(*KEYS[:100]) for _ in range(50))) == [[None] * 100] * 50
        assert SHORT_TIMEOUT_S <= loop.time() - begin < 5 * SHORT_TIMEOUT_S
        await there.settle()
        assert there.events == [("result_cache_lost", "timeout")]
        assert await there.get(KEYS[0]) == [None]
        await there.put({KEYS[0]: b"result"})
        failures = there.errors["timeout"]
        there.clock.now_s += 60
        for _ in range(50):
            assert await there.get(KEYS[0]) == [None]
        assert there.counts.reading == "half-open"
        await there.settle()
        assert there.errors["timeout"] == failures + 1, "one check, whatever the number of requests"
        own_redis.thaw()
        await there.recover()
        await there.put(RESULTS)
        found = await asyncio.gather(*(there.get(*KEYS[:MAX_KEYS]) for _ in range(MAX_CONNECTIONS + 2)))
        wanted = [RESULTS[key] for key in KEYS[:MAX_KEYS]]
        assert found == [wanted] * len(found), "callers that gave up took no connections away"


async def test_values_that_redis_could_not_return_in_time_are_deleted(own_redis: RedisServer) -> None:
    """One of them may be huge, so Redis hangs whenever it is read."""
    async with opened(own_redis.url, timeout_s=SHORT_TIMEOUT_S) as there:
        await there.put(RESULTS)
        own_redis.freeze()
        await there.get(*KEYS[:3])
        await there.settle()
        own_redis.thaw()
        await there.recover()
        assert await there.get(*KEYS[:5]) == [None, None, None, RESULTS[KEYS[3]], RESULTS[KEYS[4]]]


async def test_slow_redis_costs_a_long_request_its_time_only_once(redis: RedisServer) -> None:
    async with opened(redis.url, timeout_s=1.0) as there:
        await there.put(RESULTS)
        there.clock.step_s = 0.2  # each read looks at the clock, so it takes some of the time
        found = await there.get(*KEYS)
        assert found[:MAX_KEYS] == [RESULTS[key] for key in KEYS[:MAX_KEYS]], "what was read in time is used"
        assert found[-MAX_KEYS:] == [None] * MAX_KEYS
        assert there.events == [], "it is not given up"


async def test_blocked_event_loop_is_not_taken_for_a_slow_redis(redis: RedisServer) -> None:
    async with opened(redis.url, timeout_s=0.5) as there:
        await there.put(RESULTS)
        for _ in range(3):
            getting = asyncio.create_task(there.get(*KEYS[:5]))
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_soon(threading.Event().wait, 0.6)
            assert await getting == [RESULTS[key] for key in KEYS[:5]]
        assert there.events == []


async def test_callers_that_leave_affect_no_others(own_redis: RedisServer) -> None:
    async with opened(own_redis.url) as there:
        await there.put(RESULTS)
        own_redis.freeze()
        leaving = [asyncio.create_task(there.get(key)) for key in KEYS[:100]]
        staying = [asyncio.create_task(there.get(key)) for key in KEYS[100:]]
        for _ in range(10):
            await asyncio.sleep(0)
        for task in leaving:
            task.cancel()
        own_redis.thaw()
        assert [result for [result] in await asyncio.gather(*staying)] == list(RESULTS.values())[100:]
        await asyncio.gather(*leaving, return_exceptions=True)
        assert there.events == []


@pytest.mark.parametrize(
    ("password", "reason"), [("", "refused"), (f":{PASSWORD}@", "refused")], ids=["no password", "wrong password"]
)
async def test_redis_that_refuses_us_is_not_used(password: str, reason: str) -> None:
    with running_redis("--requirepass", "another") as server:
        async with opened(server.url.replace("//", f"//{password}")) as there:
            assert await there.get(*KEYS[:2]) == [None, None]
            assert there.events == [("result_cache_lost", reason)]
            server.run("AUTH another\r\nCONFIG", "SET", "requirepass", PASSWORD)
            await there.recover()
            assert there.counts.reading == ("closed" if password else "open")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", "protocol", id="another protocol"),
        pytest.param(b":not a number\r\n", "protocol", id="not a number"),
        pytest.param(b"*2\r\n$4\r\nmode\r\n:1\r\n", "protocol", id="another answer"),
        pytest.param(b"*1\r\n" * 20_000, "protocol", id="nested"),
        pytest.param(b"x" * 200_000, "protocol", id="endless line"),
        pytest.param(b"$99999999999\r\n", "oversized", id="huge"),
        pytest.param(b"*2147483647\r\n" + b"$-1\r\n" * 40_000, "oversized", id="many elements"),
        pytest.param(b"-LOADING Redis is loading the dataset in memory\r\n", "connection", id="starting"),
        pytest.param(b"-ERR max number of clients reached\r\n", "connection", id="too many clients"),
        pytest.param(b"-MASTERDOWN Link with MASTER is down\r\n", "refused", id="lonely replica"),
        pytest.param(b"*2\r\n$4\r\nmode\r\n", "timeout", id="half an answer"),
        pytest.param(b"", "connection", id="closed at once"),
        pytest.param(None, "timeout", id="silent"),
    ],
)
async def test_server_that_is_no_redis_costs_nothing(
    answer: bytes | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("result_cache.redis_results.CONNECT_S", 2 * SHORT_TIMEOUT_S)
    asked = 0

    class Program(asyncio.Protocol):
        """Gives one answer to each command."""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            nonlocal asked
            asked += 1
            assert isinstance(transport, asyncio.Transport)
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write((answer or b"") * data.count(b"*"))
            if answer == b"":
                self.transport.close()

    server = await asyncio.get_running_loop().create_server(Program, "127.0.0.1")
    async with server:
        url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with opened(url, timeout_s=SHORT_TIMEOUT_S) as there:
            before = asked
            assert await there.get(*KEYS[:3]) == [None] * 3
            await there.put(RESULTS)
            assert (there.events, asked) == ([("result_cache_lost", reason)], before)
            await there.recover()
            assert (there.counts.reading, asked > before) == ("open", True)
            with pytest.raises(RedisUnreachableError):
                await there.results.clear()


@given(answers=st.lists(st.binary(max_size=40) | st.sampled_from(ANSWERS), max_size=4))
@settings(deadline=None, max_examples=40)
def test_no_answer_is_an_error(answers: list[bytes]) -> None:
    """The server gives these answers together, and closes the connection after each command."""

    class Program(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self.transport = transport

        def data_received(self, _: bytes) -> None:
            self.transport.write(b"".join(answers))
            self.transport.close()

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Program, "127.0.0.1")
        async with server, opened(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}") as there:
            for _ in range(2):
                assert await there.get(*KEYS[:2]) == [None, None]
                await there.put({KEYS[0]: b"result"})
                await there.recover()
            with pytest.raises(RedisUnreachableError):
                await there.results.clear()

    asyncio.run(run())


# Deletion


async def test_all_results_of_the_services_are_deleted_and_nothing_else(
    redis: RedisServer, other: redis_py.Redis
) -> None:
    other.mset({f"fast-embedding:allowance:{number}": "kept" for number in range(2000)})
    async with opened(redis.url) as there, opened(redis.url, secret=b"of other services") as stranger:
        many = {number.to_bytes(16): b"result" for number in range(1500)}
        await there.put(many)
        await there.put(RESULTS, model="another")
        await stranger.put(RESULTS)
        there.results.put_later(MODEL, {b"still waits": b"result"})
        assert await there.results.clear() == 1500 + len(RESULTS)
        assert await there.get(*KEYS[:3], b"still waits") == [None] * 4
        assert await stranger.get(KEYS[0]) == [RESULTS[KEYS[0]]]
        assert other.dbsize() == 2000 + len(RESULTS)
        assert await there.results.clear() == 0
        assert there.errors == {}


async def test_deletion_that_redis_does_not_do_is_an_error(own_redis: RedisServer) -> None:
    async with opened(own_redis.url) as there:
        await there.put(RESULTS)
        own_redis.run("REPLICAOF", "127.0.0.1", str(free_port()))
        with pytest.raises(RedisUnreachableError, match="read-only"):
            await there.results.clear()
        own_redis.kill()
        with pytest.raises(RedisUnreachableError, match="connection"):
            await there.results.clear()
        own_redis.start()
        assert await there.results.clear() == 0, "it does not depend on the pause after a failure"


# Addresses


async def test_user_password_and_database_of_the_url_are_used(own_redis: RedisServer) -> None:
    own_redis.run(
        "ACL", "SETUSER", "cache", "on", f">{PASSWORD}", "~fast-embedding:result:*", "resetchannels", "-@all", *NEEDED
    )
    async with opened(own_redis.url.replace("//", f"//cache:{PASSWORD}@").replace("/0", "/3")) as there:
        await there.put(RESULTS)
        assert await there.get(KEYS[0]) == [RESULTS[KEYS[0]]]
        assert own_redis.stored() == [], "they are in another database"
        large = {key: bytes(MAX_RESULT_BYTES) for key in KEYS[:10]}  # too large for one reply
        for key, result in large.items():
            await there.put({key: result})
        assert await there.get(*large) == list(large.values())
        assert await there.results.clear() == len(RESULTS)
        assert there.events == []


@pytest.mark.parametrize(
    "option", ["protocol=3", "decode_responses=true", "socket_timeout=0.000001", "max_connections=1"]
)
async def test_options_of_the_url_do_not_change_how_we_read(redis: RedisServer, option: str) -> None:
    async with opened(f"{redis.url}?{option}") as there:
        await there.put(RESULTS)
        assert (
            await asyncio.gather(*(there.get(*KEYS[:5]) for _ in range(100))) == [[RESULTS[k] for k in KEYS[:5]]] * 100
        )
        assert there.events == []


@pytest.mark.parametrize(
    "url",
    [
        "redis://host?db=x",
        "redis://host?nonsense=1",
        "rediss://host?ssl_cert_reqs=x",
        "redis://:pw@host?credential_provider=x",
    ],
)
def test_unknown_option_in_the_url_is_an_error(url: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - its message depends on the client
        RedisResults(url=url, secret=SECRET, ttl_s=1, timeout_s=1)
