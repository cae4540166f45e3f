"""The queue of large bodies: their order, the pauses between them, and rejections."""

import asyncio
from functools import partial
from typing import NoReturn

import pytest

from engine.errors import OverloadedError
from tests.support.clock import ManualClock
from web.large_body_queue import FIRST_SECONDS_PER_BYTE, MAX_WAITING_S, PAUSE_FACTOR, LargeBodyQueue

CALLER = ("caller",)
BYTES = 2_000_000


class Loop:
    """Collects what the running loop should call later; a test calls it when it wants to."""

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


async def test_run_returns_the_result_of_the_work_or_raises_its_error() -> None:
    def fail() -> NoReturn:
        raise ValueError("not this")

    queue = LargeBodyQueue()
    assert await queue.run(lambda: 7, caller=CALLER, size_bytes=BYTES) == 7
    with pytest.raises(ValueError, match="not this"):
        await queue.run(fail, caller=CALLER, size_bytes=BYTES)


async def test_next_work_starts_after_a_pause_of_many_times_the_duration(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, done = ManualClock(), list[int]()
    loop, queue = Loop(monkeypatch), LargeBodyQueue(clock=clock)

    def work(number: int) -> None:
        clock.now_s += 0.5
        done.append(number)

    first, second = (
        asyncio.ensure_future(queue.run(partial(work, number), caller=CALLER, size_bytes=BYTES)) for number in (1, 2)
    )
    await settle()
    assert first.done()
    assert (done, loop.pauses) == ([1], [PAUSE_FACTOR * 0.5])
    loop.end_pause()
    await second
    assert done == [1, 2]
    loop.end_pause()


async def test_work_above_the_callers_share_is_rejected_and_others_go_next(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, queue = Loop(monkeypatch), LargeBodyQueue(clock=lambda: 0.0)
    size = int(MAX_WAITING_S / 10 / FIRST_SECONDS_PER_BYTE / (1 + PAUSE_FACTOR) / 0.9)
    await queue.run(lambda: None, caller=CALLER, size_bytes=size)  # the pause begins
    done = list[str]()
    waiting = [
        asyncio.ensure_future(queue.run(lambda: done.append("flood"), caller=CALLER, size_bytes=size)) for _ in range(7)
    ]
    await settle()
    with pytest.raises(OverloadedError):
        await queue.run(lambda: None, caller=CALLER, size_bytes=2 * size)
    waiting.append(
        asyncio.ensure_future(queue.run(lambda: done.append("other"), caller=("other",), size_bytes=size // 2))
    )
    await settle()
    for _ in waiting:
        loop.end_pause()
        await settle()
    await asyncio.gather(*waiting)
    assert done.index("other") <= 1
    assert queue.account.held == 0.0


async def test_cancelled_work_leaves_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, queue = Loop(monkeypatch), LargeBodyQueue()
    await queue.run(lambda: None, caller=CALLER, size_bytes=BYTES)
    leaving = asyncio.ensure_future(queue.run(lambda: None, caller=CALLER, size_bytes=BYTES))
    await settle()
    leaving.cancel()
    await settle()
    loop.end_pause()
    assert await queue.run(lambda: 8, caller=CALLER, size_bytes=BYTES) == 8
