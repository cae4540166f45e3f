"""Quotas that the workers of one service share: exact for all together; a worker without supervisor counts alone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from access.quotas import MemoryQuotas, Quota, QuotaState, ShareKeys, quotas_of
from access.worker_quotas import TAKE, QuotaHandlers, WorkerQuotas
from host.message_channel import Handler
from tests.access.test_quotas import left, neighbour
from tests.support.channels import channel_ends
from tests.support.clock import ManualClock

DAY_S = 86_400
QUOTAS = quotas_of(requests=20, tokens=1000, window_s=DAY_S)
ALICE = ("key '' alice",)
LONG_TIMEOUT_S = 30.0
SHORT_TIMEOUT_S = 0.02
"""For tests in which the supervisor does not answer."""


class Opened:
    """One worker's quotas under test, with control over their checks whether the supervisor answers again."""

    def __init__(self, quotas: WorkerQuotas, checks: asyncio.Semaphore) -> None:
        self.quotas = quotas
        self._checks = checks

    async def take(self, times: int = 1, keys: ShareKeys = ALICE) -> list[QuotaState]:
        return await asyncio.gather(*(self.quotas.take(keys) for _ in range(times)))

    async def admitted(self, times: int) -> int:
        return sum(state.is_admitted for state in await self.take(times))

    async def charge(self, tokens: int, keys: ShareKeys = ALICE) -> None:
        """Charge tokens; the supervisor has counted them when it answers the next call of this worker."""
        before = asyncio.all_tasks()
        self.quotas.charge(keys, tokens)
        await asyncio.gather(*(asyncio.all_tasks() - before))

    async def recover(self) -> None:
        while self.quotas.store != "supervisor":
            self._checks.release()
            await asyncio.sleep(0)


@asynccontextmanager
async def worker(
    handlers: dict[str, Handler], *, quotas: tuple[Quota, ...] = QUOTAS, timeout_s: float = LONG_TIMEOUT_S
) -> AsyncIterator[Opened]:
    """Open one worker's quotas; *handlers* are those of its supervisor."""
    async with channel_ends(handlers, {}) as (_, to_supervisor):
        checks = asyncio.Semaphore(0)
        store = WorkerQuotas(
            quotas,
            channel=to_supervisor,
            memory=MemoryQuotas(quotas),
            timeout_s=timeout_s,
            pause=checks.acquire,
        )
        async with store.running():
            yield Opened(store, checks)


def supervisor_of(clock: ManualClock | None = None) -> dict[str, Handler]:
    """Return the supervisor's handlers; without *clock* its time stands still."""
    return dict(QuotaHandlers(clock=clock or ManualClock()).handlers)


async def test_workers_together_admit_exactly_the_quota() -> None:
    handlers = supervisor_of()
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(worker(handlers)) for _ in range(4)]
        assert sum(await asyncio.gather(*(one.admitted(20) for one in workers))) == 20
        assert {one.quotas.store for one in workers} == {"supervisor"}
        [state] = await workers[3].take(keys=("another",))
        assert left(state) == [19, 1000]


@given(
    steps=st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from([ALICE, ("bob",), neighbour(1), neighbour(2)]),
            st.one_of(st.none(), st.integers(0, 400)),
            st.integers(0, 5),
        ),
        max_size=60,
    ),
    requests=st.integers(1, 8),
    tokens=st.one_of(st.none(), st.integers(1, 500)),
)
@settings(deadline=None, max_examples=60)
async def test_any_interleaving_of_workers_decides_as_one_store(
    steps: list[tuple[int, ShareKeys, int | None, int]], requests: int, tokens: int | None
) -> None:
    """Each step is a worker, a caller, None for a request or the tokens to charge, and seconds that pass."""
    quotas, clock = quotas_of(requests=requests, tokens=tokens, window_s=60), ManualClock()
    one_store, handlers = MemoryQuotas(quotas, clock=clock), supervisor_of(clock)
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(worker(handlers, quotas=quotas)) for _ in range(3)]
        for number, keys, charged, passed_s in steps:
            clock.now_s += passed_s
            if charged is None:
                assert await workers[number].take(keys=keys) == [one_store.take_now(keys)]
            else:
                one_store.charge(keys, charged)
                await workers[number].charge(charged, keys)
                await workers[number].quotas.take(("nobody else",))  # now the supervisor has read the charge
                one_store.take_now(("nobody else",))


@given(
    plans=st.lists(st.lists(st.sampled_from([ALICE, neighbour(1), neighbour(2)]), max_size=12), min_size=2, max_size=4)
)
@settings(deadline=None, max_examples=40)
async def test_concurrent_workers_never_admit_more_than_one_store_would(plans: list[list[ShareKeys]]) -> None:
    quotas = quotas_of(requests=3, tokens=None, window_s=DAY_S)
    handlers, one_store = supervisor_of(), MemoryQuotas(quotas, clock=ManualClock())
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(worker(handlers, quotas=quotas)) for _ in plans]
        asked = [(one, keys) for one, plan in zip(workers, plans, strict=True) for keys in plan]
        states = await asyncio.gather(*(one.quotas.take(keys) for one, keys in asked))
    for caller in (ALICE, neighbour(1), neighbour(2)):
        alone = [one_store.take_now(caller).is_admitted for _, keys in asked if keys == caller]
        shared = [state.is_admitted for (_, keys), state in zip(asked, states, strict=True) if keys == caller]
        assert sum(shared) == sum(alone)


async def test_what_a_worker_has_used_is_not_forgotten_when_it_is_replaced() -> None:
    handlers = supervisor_of()
    async with worker(handlers) as first:
        await first.take(5)
        await first.charge(300)
        await first.take(keys=("nobody else",))  # now the supervisor has read the charge
    async with worker(handlers) as second:
        [state] = await second.take()
        assert left(state) == [14, 700]


async def test_charge_is_sent_before_the_answer_of_its_request_can_be() -> None:
    async with worker(supervisor_of()) as first:
        before = asyncio.all_tasks()
        first.quotas.charge(ALICE, 300)
        assert asyncio.all_tasks() == before, "the charge waits for a turn of the event loop"
        [state] = await first.take()
        assert left(state) == [19, 700]


async def test_without_supervisor_a_worker_counts_by_itself() -> None:
    with capture_logs() as logged:
        async with channel_ends(supervisor_of(), {}) as (supervisor, to_supervisor):
            store = WorkerQuotas(QUOTAS, channel=to_supervisor, memory=MemoryQuotas(QUOTAS))
            async with store.running():
                await store.take(ALICE)
                supervisor.close()
                await to_supervisor.run()
                states = [await store.take(ALICE) for _ in range(30)]
                store.charge(ALICE, 400)
                assert (store.store, store.fallbacks, store.fallback_reason) == ("memory", 1, "ChannelClosedError")
        assert sum(state.is_admitted for state in states) == 20
    assert [(line["event"], line.get("exc_info")) for line in logged] == [("limits_fell_back", None)]


async def test_charge_that_cannot_be_sent_is_counted_by_the_worker() -> None:
    async with channel_ends(supervisor_of(), {}) as (supervisor, to_supervisor):
        store = WorkerQuotas(QUOTAS, channel=to_supervisor, memory=MemoryQuotas(QUOTAS))
        async with store.running():
            supervisor.close()
            await to_supervisor.run()
            before = asyncio.all_tasks()
            store.charge(ALICE, 400)
            await asyncio.wait(asyncio.all_tasks() - before, return_when=asyncio.FIRST_COMPLETED)
            assert (store.fallbacks, left(await store.take(ALICE))) == (1, [19, 600])


async def test_only_requests_in_flight_wait_for_a_supervisor_that_hangs_and_it_is_used_again_afterwards() -> None:
    handlers, answers = supervisor_of(), asyncio.Event()
    answers.set()
    take = handlers[TAKE]

    async def hang(payload: bytes) -> bytes:
        await answers.wait()
        answer = take(payload)
        assert isinstance(answer, bytes)
        return answer

    with capture_logs() as logged:
        async with worker({**handlers, TAKE: hang}, timeout_s=SHORT_TIMEOUT_S) as one:
            assert await one.admitted(1) == 1
            answers.clear()
            assert await one.admitted(30) == 20
            assert (one.quotas.store, one.quotas.fallbacks) == ("memory", 1)
            answers.set()
            await one.recover()
            [state] = await one.take()
            assert (one.quotas.store, one.quotas.fallbacks) == ("supervisor", 1)
    assert not state.is_admitted  # the supervisor has counted the requests that had given up
    assert [line["event"] for line in logged] == ["limits_fell_back", "limits_recovered"]


async def test_workers_with_other_limits_do_not_share_counts() -> None:
    """While a reload changes the limits, the old workers count as before, and the new ones from zero."""
    handlers, more = supervisor_of(), quotas_of(requests=30, tokens=1000, window_s=DAY_S)
    async with worker(handlers) as old, worker(handlers, quotas=more) as new, worker(handlers, quotas=more) as newer:
        assert await old.admitted(25) == 20
        assert [await new.admitted(25), await newer.admitted(25)] == [25, 5]
        assert await old.admitted(1) == 0


async def test_counts_of_the_limits_before_the_last_two_reloads_are_forgotten() -> None:
    handlers = supervisor_of()
    for requests, admitted in ((20, 20), (30, 30), (40, 40), (30, 0), (20, 20)):
        quotas = quotas_of(requests=requests, tokens=None, window_s=DAY_S)
        async with worker(handlers, quotas=quotas) as one:
            assert await one.admitted(50) == admitted
