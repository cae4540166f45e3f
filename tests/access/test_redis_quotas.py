"""Quotas in a real Redis: shared by replicas, exact, and replaced by memory while Redis cannot be reached."""

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from access.quotas import MemoryQuotas, Quota, QuotaState, quotas_of
from access.redis_quotas import MAX_CONNECTIONS, RedisQuotas
from assembly.access import quota_store
from config import HERE, SettingsError, load_settings
from tests.access.test_quotas import left, neighbour
from tests.support.redis_servers import RedisServer, running_redis
from tests.support.servers import free_port

pytestmark = pytest.mark.redis

DAY_S = 86_400
QUOTAS = quotas_of(requests=20, tokens=1000, window_s=DAY_S)
"""Per day, so that nothing is refilled while a test runs."""
LONG_TIMEOUT_S = 30.0
"""A time-out for tests in which Redis works: long, so that a busy machine causes no fallback."""
SECRET = "never-to-be-logged"  # noqa: S105 - of a Redis that runs as long as a test


class Opened:
    """Quotas under test, with control over their checks whether Redis is back, and with their log."""

    def __init__(self, quotas: RedisQuotas, checks: asyncio.Semaphore, logged: list[Any]) -> None:
        self.quotas = quotas
        self._checks = checks
        self.logged = logged

    async def recover(self) -> None:
        """Let it check until Redis is back."""
        while self.quotas.store != "redis":
            self._checks.release()
            await asyncio.sleep(0)

    async def take(self, times: int = 1, caller: str = "a") -> list[QuotaState]:
        """Take *times* requests at once."""
        return await asyncio.gather(*(self.quotas.take((caller,)) for _ in range(times)))

    async def admitted(self, times: int, caller: str = "a") -> int:
        return sum(state.is_admitted for state in await self.take(times, caller))

    async def charge(self, tokens: int, caller: str = "a") -> None:
        """Charge tokens, and wait until Redis or memory has counted them."""
        before = asyncio.all_tasks()
        self.quotas.charge((caller,), tokens)
        await asyncio.gather(*(asyncio.all_tasks() - before))

    @property
    def events(self) -> list[tuple[str, str]]:
        return [(line["log_level"], line["event"]) for line in self.logged]

    @property
    def reasons(self) -> list[str]:
        return [line["reason"] for line in self.logged if "reason" in line]


NEEDED = re.findall(
    r"\+[a-z|]+", re.findall("`(.evalsha .*)`", (HERE / "docs/production/security.md").read_text(encoding="utf-8"))[0]
)
"""What docs/production/security.md says that the user must be allowed."""
FELL_BACK, RECOVERED = ("warning", "limits_fell_back"), ("info", "limits_recovered")


@asynccontextmanager
async def opened(
    url: str, *, quotas: tuple[Quota, ...] = QUOTAS, timeout_s: float = LONG_TIMEOUT_S
) -> AsyncIterator[Opened]:
    checks = asyncio.Semaphore(0)
    store = RedisQuotas(quotas, url=url, memory=MemoryQuotas(quotas), timeout_s=timeout_s, pause=checks.acquire)
    before = asyncio.all_tasks()
    with capture_logs() as logged:
        async with store.running():
            yield Opened(store, checks, logged)
    assert asyncio.all_tasks() == before, "a task was left over"


def the_key(redis: RedisServer) -> str:
    """Return the only key, once the key of the check at start has expired."""
    while len(keys := redis.stored()) != 1:
        pass
    return keys[0]


async def test_replicas_together_admit_exactly_the_quota(redis: RedisServer) -> None:
    async with opened(redis.url) as one, opened(redis.url) as other:
        counts = await asyncio.gather(one.admitted(50), other.admitted(50))
        assert sum(counts) == 20
        assert await one.admitted(5, caller="b") == 5
        assert (one.events, other.events) == ([], [])


@given(
    steps=st.lists(st.one_of(st.just(None), st.integers(0, 400)), max_size=40),
    tokens=st.one_of(st.none(), st.integers(1, 1000)),
    requests=st.integers(1, 30),
)
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_redis_and_memory_decide_alike(
    redis: RedisServer, steps: list[int | None], tokens: int | None, requests: int
) -> None:
    """Each step is None, which takes a request, or a number of tokens to charge."""
    redis.run("FLUSHALL")
    quotas = quotas_of(requests=requests, tokens=tokens, window_s=DAY_S)
    ticks = count()
    memory = MemoryQuotas(quotas, clock=lambda: next(ticks) * 1e-6)  # time passes in Redis, too
    async with opened(redis.url, quotas=quotas) as there:
        for step in steps:
            if step is None:
                expected, [state] = memory.take_now(("a",)), await there.take()
                assert (state.is_admitted, left(state)) == (expected.is_admitted, left(expected))
            else:
                memory.charge(("a",), step)
                await there.charge(step)


@given(
    steps=st.lists(st.tuples(st.integers(0, 20), st.one_of(st.none(), st.integers(0, 400))), max_size=60),
    tokens=st.one_of(st.none(), st.integers(1, 300)),
    requests=st.integers(1, 3),
)
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_redis_and_memory_decide_alike_about_wide_networks(
    redis: RedisServer, steps: list[tuple[int, int | None]], tokens: int | None, requests: int
) -> None:
    """Each step is a caller of one network, and None, which takes a request, or a number of tokens to charge."""
    redis.run("FLUSHALL")
    quotas = quotas_of(requests=requests, tokens=tokens, window_s=DAY_S)
    ticks = count()
    memory = MemoryQuotas(quotas, clock=lambda: next(ticks) * 1e-6)
    async with opened(redis.url, quotas=quotas) as there:
        for number, step in steps:
            keys = neighbour(number)
            if step is None:
                expected, state = memory.take_now(keys), await there.quotas.take(keys)
                assert (state.is_admitted, left(state)) == (expected.is_admitted, left(expected))
            else:
                memory.charge(keys, step)
                before = asyncio.all_tasks()
                there.quotas.charge(keys, step)
                await asyncio.gather(*(asyncio.all_tasks() - before))


async def test_callers_of_a_wide_network_share_its_quota_across_replicas(redis: RedisServer) -> None:
    quotas = quotas_of(requests=3, tokens=None, window_s=DAY_S)
    async with opened(redis.url, quotas=quotas) as one, opened(redis.url, quotas=quotas) as other:
        states = await asyncio.gather(
            *(there.quotas.take(neighbour(number)) for number in range(50) for there in (one, other))
        )
        assert sum(state.is_admitted for state in states) == 48
        rejected = await one.quotas.take(neighbour(99))
        assert ([quota.name for quota in rejected.violated], left(rejected)) == (["network-requests"], [3, 0])
        assert (one.events, other.events) == ([], [])
    tags = {key[key.index("{") : key.index("}")] for key in redis.stored() if "{" in key}
    assert len(tags) == 1, "all keys of one request must be on the same server of a cluster"


async def test_sums_are_exact_up_to_the_largest_quota(redis: RedisServer) -> None:
    """All but one request are used, in units near the largest integer of a double: one fits, the next does not."""
    quotas = quotas_of(requests=100_000, tokens=None, window_s=DAY_S)
    async with opened(redis.url, quotas=quotas) as there:
        await there.take()
        key = the_key(redis)
        redis.run("HSET", key, "3", str(99_999 * DAY_S * 1_000_000))
        redis.run("HINCRBY", key, "at", str(DAY_S * 1_000_000))  # nothing is refilled before
        assert [state.is_admitted for state in await there.take(2)] == [True, False]


async def test_quotas_are_refilled_by_the_clock_of_redis(redis: RedisServer) -> None:
    async with opened(redis.url) as there:
        await there.take()
        key = the_key(redis)
        assert await there.admitted(30) == 19
        redis.run("HINCRBY", key, "at", str(-2 * DAY_S * 1_000_000 // 20))  # two twentieths of a day pass
        assert await there.admitted(30) == 2


async def test_clock_of_redis_may_jump_back(redis: RedisServer) -> None:
    async with opened(redis.url) as there:
        await there.take()
        key = the_key(redis)
        redis.run("HINCRBY", key, "at", str(10 * DAY_S * 1_000_000))
        assert await there.admitted(1) == 1
        redis.run("HINCRBY", key, "at", str(-DAY_S * 1_000_000))
        assert await there.admitted(30) == 20


async def test_tokens_over_the_quota_become_debt(redis: RedisServer) -> None:
    async with opened(redis.url) as there:
        assert await there.admitted(1) == 1
        await there.charge(3000)
        [rejected] = await there.take()
        assert not rejected.is_admitted
        assert [quota.name for quota in rejected.violated] == ["tokens"]
        assert DAY_S * 2 - 60 <= rejected.retry_after_s <= DAY_S * 2 + 100  # two quotas of debt, and one token more


async def test_charges_in_progress_at_shutdown_are_counted(redis: RedisServer) -> None:
    async with opened(redis.url) as there:
        for _ in range(50):
            there.quotas.charge(("a",), 10)
    async with opened(redis.url) as there:
        [state] = await there.take()
        assert left(state) == [19, 500]


async def test_keys_do_not_contain_callers_and_expire(redis: RedisServer) -> None:
    async with opened(redis.url, quotas=quotas_of(requests=20, tokens=1000, window_s=60)) as there:
        await there.take(caller=f"name {SECRET}")
        await there.charge(5000, caller=f"name {SECRET}")
        key = the_key(redis)
        assert SECRET not in key
        assert 290_000 < int(redis.run("PTTL", key).strip(":\r\n")) <= 300_002  # until the debt is refilled


async def test_replicas_with_other_limits_do_not_share(redis: RedisServer) -> None:
    async with opened(redis.url) as there, opened(redis.url, quotas=quotas_of(requests=5, tokens=1, window_s=9)) as new:
        assert await there.admitted(30) == 20
        assert await new.admitted(1) == 1


@pytest.mark.parametrize("caller", ["", "name {a}", "name \ud800", "name \x00", "name " + "x" * 10_000])
async def test_any_name_is_counted(redis: RedisServer, caller: str) -> None:
    async with opened(redis.url) as there:
        assert await there.admitted(30, caller) == 20
        assert there.events == []


async def test_script_that_redis_has_lost_is_sent_again(redis: RedisServer) -> None:
    async with opened(redis.url) as there:
        await there.take()
        redis.run("SCRIPT", "FLUSH")
        assert await there.admitted(30) == 19
        assert there.events == []


async def test_unix_socket_is_used(tmp_path: Path) -> None:
    with running_redis("--unixsocket", str(tmp_path / "redis.sock")):
        async with opened(f"unix://{tmp_path}/redis.sock") as there:
            assert await there.admitted(30) == 20
            assert there.events == []


async def test_password_of_the_url_is_used() -> None:
    with running_redis("--requirepass", SECRET) as server:
        async with opened(server.url.replace("//", f"//:{SECRET}@")) as there:
            assert await there.admitted(30) == 20
            assert there.events == []


async def test_rights_that_the_docs_name_are_enough(own_redis: RedisServer) -> None:
    own_redis.run("ACL SETUSER limits on", f">{SECRET}", "~fast-embedding:allowance:*", "resetchannels -@all", *NEEDED)
    async with opened(own_redis.url.replace("//", f"//limits:{SECRET}@")) as there:
        assert await there.admitted(30) == 20
        assert there.events == []


async def test_killed_redis_is_replaced_by_memory_until_it_is_restarted(own_redis: RedisServer) -> None:
    async with opened(own_redis.url) as there:
        assert await there.admitted(15) == 15
        own_redis.kill()
        assert await there.admitted(30) == 20  # memory starts with full quotas
        await there.charge(5000)
        assert await there.admitted(1) == 0
        assert (there.events, there.quotas.store) == ([FELL_BACK], "memory")
        own_redis.start()
        await there.recover()
        assert await there.admitted(30) == 20  # and so does a new Redis
        assert (there.events, there.quotas.fallbacks) == ([FELL_BACK, RECOVERED], 1)


async def test_redis_may_restart_between_two_requests(own_redis: RedisServer) -> None:
    async with opened(own_redis.url) as there:
        assert await there.admitted(MAX_CONNECTIONS) == MAX_CONNECTIONS
        own_redis.kill()
        own_redis.start()
        assert await there.admitted(30) == 20
        assert there.events == []


async def test_frozen_redis_is_replaced_by_memory_until_it_is_thawed(own_redis: RedisServer) -> None:
    async with opened(own_redis.url, timeout_s=2.0) as there:
        await there.take()
        own_redis.freeze()
        assert await there.admitted(100) == 20
        await there.charge(5000)
        assert await there.admitted(100) == 0
        assert (there.events, there.reasons) == ([FELL_BACK], ["TimeoutError"])
        own_redis.thaw()
        await there.recover()
        # Callers that gave up waiting did not take connections away.
        assert await there.admitted(10 * MAX_CONNECTIONS, caller="b") == 20
        assert RECOVERED in there.events


async def test_blocked_event_loop_is_not_taken_for_a_slow_redis(own_redis: RedisServer) -> None:
    async with opened(own_redis.url, timeout_s=0.5) as there:
        await there.take()
        for _ in range(3):
            taking = asyncio.create_task(there.take(5))
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_soon(threading.Event().wait, 0.6)
            await taking
        assert there.events == []


async def test_callers_that_leave_while_redis_is_slow_affect_no_others(own_redis: RedisServer) -> None:
    async with opened(own_redis.url) as there:
        await there.take()
        own_redis.freeze()
        leaving = [asyncio.create_task(there.quotas.take(("b",))) for _ in range(2 * MAX_CONNECTIONS)]
        for _ in range(10):
            await asyncio.sleep(0)
        for task in leaving:
            task.cancel()
        own_redis.thaw()
        await asyncio.gather(*leaving, return_exceptions=True)
        assert await there.admitted(10 * MAX_CONNECTIONS, caller="c") == 20
        assert there.events == []


async def test_charge_that_cannot_reach_redis_is_counted_in_memory(own_redis: RedisServer) -> None:
    async with opened(own_redis.url) as there:
        await there.take()
        own_redis.kill()
        await there.charge(5000)
        assert await there.admitted(1) == 0
        assert there.events == [FELL_BACK]


async def test_read_only_redis_is_not_used(own_redis: RedisServer) -> None:
    async with opened(own_redis.url) as there:
        await there.take()
        own_redis.run("REPLICAOF", "127.0.0.1", str(free_port()))
        assert await there.admitted(30) == 20
        assert (there.events, there.reasons) == ([FELL_BACK], ["ReadOnlyError"])
        own_redis.run("REPLICAOF", "NO", "ONE")
        await there.recover()
        assert there.events == [FELL_BACK, RECOVERED]


@pytest.mark.parametrize(
    ("url_of", "reason"),
    [
        pytest.param(lambda _: f"redis://127.0.0.1:{free_port()}", "ConnectionError", id="not running"),
        pytest.param(
            lambda server: server.url.replace("//", f"//:{SECRET}@"), "AuthenticationError", id="wrong password"
        ),
        pytest.param(lambda server: server.url, "AuthenticationError", id="no password"),
    ],
)
async def test_redis_that_cannot_be_used_at_the_start_is_logged_once(
    url_of: Callable[[RedisServer], str], reason: str
) -> None:
    with running_redis("--requirepass", "another") as server:
        async with opened(url_of(server)) as there:
            assert await there.admitted(30) == 20
            assert (there.events, there.reasons) == ([FELL_BACK], [reason])
            assert SECRET not in str(there.logged)


async def test_redis_without_tls_is_not_used_for_a_rediss_url(redis: RedisServer) -> None:
    async with opened(redis.url.replace("redis:", "rediss:"), timeout_s=0.25) as there:
        assert await there.admitted(30) == 20
        assert there.events == [FELL_BACK]


async def test_server_that_is_not_redis_is_not_used() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, opened(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}") as there:
        assert await there.admitted(30) == 20
        assert there.events == [FELL_BACK]


@pytest.mark.parametrize("url", ["redis://:hush@host?db=x", "redis://:hush@host?nonsense=1"])
def test_unknown_option_in_the_url_stops_the_start(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^REDIS_URL is not allowed: it has an option"):
        quota_store(load_settings(enable_rate_limit=True, redis_url=url))
