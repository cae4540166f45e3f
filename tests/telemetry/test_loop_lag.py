"""Event-loop lag: the highest delay, and how long it is reported."""

import asyncio

import pytest

from telemetry.loop_lag import INTERVAL_S, TICK_S, LoopLag
from tests.support.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def late_by(lag: LoopLag, clock: ManualClock, seconds: float, times: int = 1) -> None:
    """Let the timer run *seconds* late, several *times*."""
    for _ in range(times):
        clock.now_s += TICK_S + seconds
        lag.tick()


async def test_highest_delay_is_reported(clock: ManualClock) -> None:
    lag = LoopLag(clock=clock)
    assert lag.highest_s == 0
    async with lag.running():
        for seconds in (0.0, 0.5, 0.25):
            late_by(lag, clock, seconds)
        assert lag.highest_s == pytest.approx(0.5)


async def test_delay_that_has_not_ended_counts(clock: ManualClock) -> None:
    lag = LoopLag(clock=clock)
    async with lag.running():
        clock.now_s += TICK_S + 2.0
        assert lag.highest_s == pytest.approx(2.0)
    assert lag.highest_s == 0, "a loop that has ended is not late"


async def test_delay_is_reported_for_an_interval_and_not_for_three(clock: ManualClock) -> None:
    lag, ticks = LoopLag(clock=clock), int(INTERVAL_S / TICK_S)
    async with lag.running():
        late_by(lag, clock, 0.5)
        late_by(lag, clock, 0.0, ticks)
        assert lag.highest_s == pytest.approx(0.5)
        late_by(lag, clock, 0.0, 2 * ticks)
        assert lag.highest_s == 0


async def test_event_loop_calls_the_timer() -> None:
    ticks = asyncio.Semaphore(0)

    class Watched(LoopLag):
        def tick(self) -> None:
            super().tick()
            ticks.release()

    async with Watched().running():
        for _ in range(2):  # each of them starts the timer again
            await ticks.acquire()
