"""Lookups under overload: which requests are read, what those in vain cost, and how much of the event loop they get."""

import asyncio
import heapq
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from litestar.types import Message, Receive, Scope, Send

from engine.fair_queue import Caller
from engine.ledger import SHARE_OF_FREE
from tests.support.clock import ManualClock
from web.cache_lookups import FIRST_SECONDS, MAX_BODY_BYTES, MAX_HELD_S, CacheLookups, MeasuredSteps
from web.large_body_queue import PAUSE_FACTOR

CALLER, OTHER = ("192.0.2.1",), ("192.0.2.2",)
SMALL = [(b"content-length", b"20")]
SHARE_S = MAX_HELD_S * SHARE_OF_FREE / (1 + SHARE_OF_FREE)


class Loop:
    """Calls what the running loop should call later when the clock reaches it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = ManualClock()
        self._timers: list[tuple[float, int, Callable[..., object], tuple[object, ...]]] = []
        monkeypatch.setattr(asyncio.get_running_loop(), "call_later", self._call_later)

    def _call_later(self, delay_s: float, callback: Callable[..., object], *args: object) -> None:
        heapq.heappush(self._timers, (self.clock.now_s + delay_s, len(self._timers), callback, args))

    def advance(self, seconds: float) -> None:
        self.clock.now_s += seconds
        while self._timers and self._timers[0][0] <= self.clock.now_s:
            _, _, callback, args = heapq.heappop(self._timers)
            callback(*args)


class App:
    """Works for some seconds and answers with a status, then sends the rest of the answer once it may."""

    def __init__(self, clock: ManualClock, *, seconds: float, status: int) -> None:
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.seconds = seconds
        self.status = status
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        self._clock.now_s += self.seconds
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await self.may_end.wait()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def drop(_: Message) -> None: ...


async def never() -> Any:
    pytest.fail("the body is the app's to read")


@pytest.fixture
async def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    return Loop(monkeypatch)


@pytest.fixture
async def lookups(loop: Loop) -> CacheLookups:
    return CacheLookups(clock=loop.clock)


async def look_up(lookups: CacheLookups, app: App, caller: Caller = CALLER) -> bool:
    scope: Any = {"type": "http"}
    return await lookups.run(app, scope, never, drop, caller=caller)


@pytest.mark.parametrize(
    ("headers", "is_read"),
    [
        pytest.param(SMALL, True, id="small"),
        pytest.param([(b"content-length", b"%d" % MAX_BODY_BYTES)], True, id="the largest that is read"),
        pytest.param([(b"content-length", b"%d" % (MAX_BODY_BYTES + 1))], False, id="too large"),
        pytest.param([(b"content-length", b"9" * 5000)], False, id="a number that takes long to read"),
        pytest.param([], False, id="of unknown length"),
        pytest.param([(b"transfer-encoding", b"chunked")], False, id="chunked"),
        pytest.param([*SMALL, (b"cache-control", b"no-cache")], False, id="must be computed anew"),
        pytest.param(
            [*SMALL, (b"cache-control", b"no-store"), (b"cache-control", b"Max-Age=0")], False, id="two headers"
        ),
        pytest.param([*SMALL, (b"cache-control", b"no-store")], True, id="must not be kept"),
    ],
)
async def test_only_small_requests_that_may_be_answered_from_the_cache_are_read(
    lookups: CacheLookups, headers: list[tuple[bytes, bytes]], *, is_read: bool
) -> None:
    assert lookups.may_look_up(CALLER, headers) is is_read


async def test_answer_costs_nothing_once_it_begins(lookups: CacheLookups, loop: Loop) -> None:
    app = App(loop.clock, seconds=1.0, status=200)
    app.may_end.clear()
    answering = asyncio.create_task(look_up(lookups, app))
    await asyncio.sleep(0)
    assert lookups.account.held == 0.0
    app.may_end.set()
    assert await answering
    assert lookups.account.held == 0.0


@pytest.mark.parametrize("status", [400, 403, 429, 503])
async def test_lookup_in_vain_is_held_for_itself_and_a_pause(lookups: CacheLookups, loop: Loop, status: int) -> None:
    assert not await look_up(lookups, App(loop.clock, seconds=0.01, status=status))
    assert lookups.account.held == pytest.approx(0.01 * (1 + PAUSE_FACTOR))
    loop.advance(0.01 * (1 + PAUSE_FACTOR) - 1e-6)
    assert lookups.account.held_by(CALLER) > 0
    loop.advance(2e-6)
    assert lookups.account.held == 0.0


async def test_lookup_in_progress_is_held_as_those_before_it_took(lookups: CacheLookups, loop: Loop) -> None:
    app = App(loop.clock, seconds=0.0, status=503)
    app.may_end.clear()
    running = asyncio.create_task(look_up(lookups, app))
    await asyncio.sleep(0)
    assert lookups.account.held == pytest.approx(FIRST_SECONDS * (1 + PAUSE_FACTOR))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert lookups.account.held == 0.0


async def test_request_that_fails_or_is_left_is_held_as_well(lookups: CacheLookups, loop: Loop) -> None:
    async def fail(*_: object) -> None:
        loop.clock.now_s += 0.01
        raise ValueError("a bug")

    scope: Any = {"type": "http"}
    with pytest.raises(ValueError, match="a bug"):
        await lookups.run(fail, scope, never, drop, caller=CALLER)
    assert lookups.account.held == pytest.approx(0.05)


async def test_caller_who_holds_their_share_is_not_read_but_another_is(lookups: CacheLookups, loop: Loop) -> None:
    app, held = App(loop.clock, seconds=0.004, status=503), 0.0
    while lookups.may_look_up(CALLER, SMALL):
        await look_up(lookups, app)
        held += app.seconds * (1 + PAUSE_FACTOR)
        assert held < 2 * SHARE_S
    assert held == pytest.approx(SHARE_S, rel=0.1)
    assert lookups.may_look_up(OTHER, SMALL)


async def test_one_lookup_is_always_tried_however_long_the_others_took(lookups: CacheLookups, loop: Loop) -> None:
    for _ in range(3):
        await look_up(lookups, App(loop.clock, seconds=1.0, status=503))
        assert not lookups.may_look_up(CALLER, SMALL)
        loop.advance(5.0)
        assert lookups.may_look_up(CALLER, SMALL)


async def test_lookups_in_vain_take_a_fifth_of_the_time_in_equal_parts(lookups: CacheLookups, loop: Loop) -> None:
    """Two callers send more than can be looked up, one of them ten times as much as the other, for ten seconds."""
    spent = dict.fromkeys((CALLER, OTHER), 0.0)
    app = App(loop.clock, seconds=0.001, status=503)
    while loop.clock.now_s < 10:
        for caller in (*[CALLER] * 10, OTHER):
            if lookups.may_look_up(caller, SMALL):
                await look_up(lookups, app, caller)
                spent[caller] += app.seconds
        loop.advance(0.001)
    assert sum(spent.values()) == pytest.approx(10 / (1 + PAUSE_FACTOR), rel=0.1)
    assert spent[OTHER] == pytest.approx(spent[CALLER], rel=0.25)


def measured(work: Coroutine[Any, Any, None], clock: ManualClock) -> tuple[MeasuredSteps, asyncio.Task[None]]:
    steps = MeasuredSteps(work, clock)

    async def run() -> None:
        await steps

    return steps, asyncio.create_task(run())


async def test_time_that_a_coroutine_waits_is_not_measured() -> None:
    clock, gate = ManualClock(), asyncio.get_running_loop().create_future()
    results = list[str]()

    async def work() -> None:
        clock.now_s += 1
        results.append(await gate)
        clock.now_s += 2

    steps, running = measured(work(), clock)
    await asyncio.sleep(0)
    clock.now_s += 100
    gate.set_result("awaited")
    await running
    assert (steps.seconds, results) == (3, ["awaited"])


async def test_cancellation_and_errors_of_what_it_awaits_reach_the_coroutine() -> None:
    clock, gate = ManualClock(), asyncio.get_running_loop().create_future()
    seen = list[type[BaseException]]()

    async def work() -> None:
        try:
            await gate
        except ValueError:
            seen.append(ValueError)
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            clock.now_s += 1
            seen.append(asyncio.CancelledError)
            raise

    steps, running = measured(work(), clock)
    await asyncio.sleep(0)
    gate.set_exception(ValueError())
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert running.cancelled()
    assert (steps.seconds, seen) == (1, [ValueError, asyncio.CancelledError])


async def test_time_outs_inside_it_work() -> None:
    async def work() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.get_running_loop().create_future()

    _, running = measured(work(), ManualClock())
    await running
