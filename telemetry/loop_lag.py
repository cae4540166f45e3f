"""Event-loop lag: how late the event loop runs its timers, because something blocks it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

TICK_S = 0.25
"""Seconds between two measurements."""
INTERVAL_S = 15.0
"""The highest delay is that of the last 15 to 30 seconds: a scrape every 15 s misses none, however many ask."""


class LoopLag:
    """Measures the delays of a timer, and keeps the highest one of the last interval and of the one before."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Measure nothing before `running`; *clock*: monotonic seconds."""
        self._clock = clock
        self._due_s: float | None = None
        self._interval_ends_s = 0.0
        self._highest_s = self._highest_before_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def highest_s(self) -> float:
        """The highest delay, that of a timer that is late now included."""
        late_s = 0.0 if self._due_s is None else self._clock() - self._due_s
        return max(0.0, late_s, self._highest_s, self._highest_before_s)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Measure the delays of the running event loop in the block."""
        self._interval_ends_s = self._clock() + INTERVAL_S
        self._wait()
        try:
            yield
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._due_s = None

    def tick(self) -> None:
        """Note how late this call is, and wait for the next one."""
        now_s = self._clock()
        if self._due_s is not None:
            self._highest_s = max(self._highest_s, now_s - self._due_s)
        if now_s >= self._interval_ends_s:
            self._highest_before_s, self._highest_s = self._highest_s, 0.0
            self._interval_ends_s = now_s + INTERVAL_S
        self._wait()

    def _wait(self) -> None:
        self._due_s = self._clock() + TICK_S
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self.tick)
