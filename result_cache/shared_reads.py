"""Reads keys from a slow store for several requests at a time."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import islice

from host.time_limits import time_limit

Read = Callable[[Sequence[bytes]], Awaitable[Sequence[bytes | None]]]


@dataclass(slots=True, eq=False)
class _Waiting:
    keys: Sequence[bytes]
    values: asyncio.Future[Sequence[bytes | None]]


class SharedReads:
    """Reads for a caller at once while few reads are in flight; those who come meanwhile are served together next.

    So a lone request does not wait, and under load, a read serves many requests: they need fewer round trips, and none
    of them waits for a connection.
    """

    def __init__(self, read: Read, *, max_reads: int, max_keys: int) -> None:
        """Read with *read*, which raises no error.

        Args:
            read: returns the values of keys, in their order.
            max_reads: reads in flight.
            max_keys: keys per read; no request asks for more.
        """
        self._read = read
        self._max_reads = max_reads
        self._max_keys = max_keys
        self._in_flight = 0
        self._waiting: deque[_Waiting] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    async def values(self, keys: Sequence[bytes], *, timeout_s: float) -> Sequence[bytes | None]:
        """Return the values of *keys*. Callers may leave.

        Raises:
            TimeoutError: others were served for so long.
        """
        if self._in_flight < self._max_reads:
            self._in_flight += 1
            try:
                return await self._read(keys)
            finally:
                self._end()
        waiting = _Waiting(keys, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        async with time_limit(timeout_s):
            return await waiting.values

    def release(self) -> None:
        """Let those who wait for a read that has not begun go, without values."""
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.values.done():
                waiting.values.set_result([None] * len(waiting.keys))

    async def aclose(self) -> None:
        """Cancel all reads; no request waits for them any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _end(self) -> None:
        """Begin the next read after one has ended."""
        self._in_flight -= 1
        if together := self._next():
            self._in_flight += 1
            task = asyncio.get_running_loop().create_task(self._read_for(together))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _next(self) -> list[_Waiting]:
        """Take as many as one read may serve; callers that have left are dropped."""
        together: list[_Waiting] = []
        number = 0
        while self._waiting and number + len(self._waiting[0].keys) <= self._max_keys:
            waiting = self._waiting.popleft()
            if not waiting.values.done():
                together.append(waiting)
                number += len(waiting.keys)
        return together

    async def _read_for(self, together: Sequence[_Waiting]) -> None:
        try:
            values = iter(await self._read([key for waiting in together for key in waiting.keys]))
        finally:
            self._end()
        for waiting in together:
            found = list(islice(values, len(waiting.keys)))
            if not waiting.values.done():
                waiting.values.set_result(found)
