"""Who has a turn, who waits, and who is sent away."""

import asyncio
from typing import NoReturn

import pytest

from engine.errors import OverloadedError
from tests.support.clock import ManualClock
from web.large_body_queue import MAX_WAITING, PAUSE_FACTOR, LargeBodyQueue


class Loop:
    """What the running loop was asked to do later, which a test then does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pauses: list[float] = []
        self._later: list[object] = []
        monkeypatch.setattr(asyncio.get_running_loop(), "call_later", self._call_later)

    def _call_later(self, delay_s: float, callback: object) -> None:
        self.pauses.append(delay_s)
        self._later.append(callback)

    def end_pause(self) -> None:
        callback = self._later.pop()
        assert callable(callback)
        callback()


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_work_gives_what_it_gives_and_raises_what_it_raises() -> None:
    def fail() -> NoReturn:
        raise ValueError("not this")

    turns = LargeBodyQueue()
    assert await turns.run(lambda: 7) == 7
    with pytest.raises(ValueError, match="not this"):
        await turns.run(fail)


async def test_the_next_turn_comes_after_a_pause_of_many_times_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, done = ManualClock(), list[int]()
    loop, turns = Loop(monkeypatch), LargeBodyQueue(clock=clock)

    def work(number: int) -> None:
        clock.now_s += 0.5
        done.append(number)

    first, second = (asyncio.ensure_future(turns.run(lambda number=number: work(number))) for number in (1, 2))  # type: ignore[misc]
    await settle()
    assert first.done()
    assert (done, loop.pauses) == ([1], [PAUSE_FACTOR * 0.5])
    loop.end_pause()
    await second
    assert done == [1, 2]
    loop.end_pause()


async def test_too_many_who_wait_are_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, turns = Loop(monkeypatch), LargeBodyQueue()
    await turns.run(lambda: None)  # and now it rests
    waiting = [asyncio.ensure_future(turns.run(lambda: None)) for _ in range(MAX_WAITING)]
    await settle()
    with pytest.raises(OverloadedError):
        await turns.run(lambda: None)
    for _ in waiting:
        loop.end_pause()
        await settle()
    await asyncio.gather(*waiting)


async def test_who_leaves_while_he_waits_keeps_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, turns = Loop(monkeypatch), LargeBodyQueue()
    await turns.run(lambda: None)
    leaving = asyncio.ensure_future(turns.run(lambda: None))
    await settle()
    leaving.cancel()
    await settle()
    loop.end_pause()
    assert await turns.run(lambda: 8) == 8
