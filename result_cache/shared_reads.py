"""Reads keys from a slow store for several requests at a time."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from host.time_limits import SLICES

Values = Sequence[bytes | None]
Read = Callable[[Sequence[bytes]], Awaitable[Values]]


@dataclass(slots=True, eq=False)
class _Waiting:
    keys: Sequence[bytes]
    values: asyncio.Future[Values]
    last_slice: int


class SharedReads:
    """Reads for a lone request at once. What is asked for meanwhile is read together, when that read ends.

    So a lone request does not wait, and under load, a read serves many requests. Reads that are full do not wait for
    each other.
    """

    def __init__(self, read: Read, *, max_reads: int, max_keys: int, timeout_s: float) -> None:
        """Read with *read*, which raises no error.

        Args:
            read: returns the values of keys, in their order.
            max_reads: reads in flight.
            max_keys: keys per read; no request asks for more.
            timeout_s: how long a request waits, and up to a slice more: a read that takes as long ends first. As in
                `time_limit`, a period in which the event loop is blocked is one slice.
        """
        self._read = read
        self._max_reads = max_reads
        self._max_keys = max_keys
        self._slice_s = timeout_s / SLICES
        self._slice = 0
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: deque[_Waiting] = deque()  # for a read that has not begun
        self._waiting_keys = 0
        self._unanswered: deque[_Waiting] = deque()  # in the order they came; some behind the first may be answered
        self._tasks: set[asyncio.Task[None]] = set()

    def values(self, keys: Sequence[bytes]) -> asyncio.Future[Values]:
        """Return the values of *keys* later; all None if that takes too long. Callers may cancel it."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(keys, loop.create_future(), self._slice + SLICES + 1)
        self._waiting.append(waiting)
        self._waiting_keys += len(keys)
        self._unanswered.append(waiting)
        if self._timer is None:
            self._timer = loop.call_later(self._slice_s, self._end_slice)
        self._begin()
        return waiting.values

    def release(self) -> None:
        """Answer those that wait for a read that has not begun, without values."""
        while self._waiting:
            _answer_without_values(self._waiting.popleft())
        self._waiting_keys = 0

    async def aclose(self) -> None:
        """Cancel all reads, and answer those that wait, without values."""
        self.release()
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for waiting in self._unanswered:
            _answer_without_values(waiting)

    def _begin(self) -> None:
        """Begin a read if there is none in flight, and each one that is full."""
        while len(self._tasks) < (self._max_reads if self._waiting_keys >= self._max_keys else 1):
            if not (together := self._next()):
                return
            self._tasks.add(task := asyncio.get_running_loop().create_task(self._read_for(together)))
            task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._forget_answered()
        if not task.cancelled():
            self._begin()

    def _next(self) -> list[_Waiting]:
        """Take as many as one read may serve; callers that have left are dropped."""
        together: list[_Waiting] = []
        number = 0
        while self._waiting and number + len(self._waiting[0].keys) <= self._max_keys:
            waiting = self._waiting.popleft()
            self._waiting_keys -= len(waiting.keys)
            if not waiting.values.done():
                together.append(waiting)
                number += len(waiting.keys)
        return together

    async def _read_for(self, together: Sequence[_Waiting]) -> None:
        values = await self._read([key for waiting in together for key in waiting.keys])
        start = 0
        for waiting in together:
            stop = start + len(waiting.keys)
            if not waiting.values.done():
                waiting.values.set_result(values[start:stop])
            start = stop

    def _end_slice(self) -> None:
        """Answer those whose time is over."""
        self._slice += 1
        for waiting in takewhile(lambda waiting: waiting.last_slice <= self._slice, self._unanswered):
            _answer_without_values(waiting)
        self._forget_answered()
        if self._unanswered:
            self._timer = asyncio.get_running_loop().call_later(self._slice_s, self._end_slice)
        else:
            self._timer = None

    def _forget_answered(self) -> None:
        while self._unanswered and self._unanswered[0].values.done():
            self._unanswered.popleft()


def _answer_without_values(waiting: _Waiting) -> None:
    if not waiting.values.done():
        waiting.values.set_result([None] * len(waiting.keys))
