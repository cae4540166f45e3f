"""Reads keys from a slow store for several requests at a time."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import islice

Read = Callable[[Sequence[bytes]], Awaitable[Sequence[bytes | None]]]


@dataclass(slots=True, eq=False)
class _Waiting:
    keys: Sequence[bytes]
    values: asyncio.Future[Sequence[bytes | None]]


class SharedReads:
    """Begins a read at once while few are in flight; what comes meanwhile is read together.

    So a lone request does not wait, and under load, a read serves many requests: they need fewer round trips, and none
    of them waits for a connection.
    """

    def __init__(self, read: Read, *, max_reads: int, max_keys: int) -> None:
        """Read with *read*, which never raises.

        Args:
            read: returns the values of keys, in their order.
            max_reads: reads in flight.
            max_keys: keys per read; nobody asks for more.
        """
        self._read = read
        self._max_reads = max_reads
        self._max_keys = max_keys
        self._waiting: deque[_Waiting] = deque()
        self._reads: set[asyncio.Task[None]] = set()

    async def values(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Return the values of *keys*. Callers may leave while they wait."""
        waiting = _Waiting(keys, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._begin()
        return await waiting.values

    def release(self) -> None:
        """Let those who wait for a read that has not begun go, without values."""
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.values.done():
                waiting.values.set_result([None] * len(waiting.keys))

    async def aclose(self) -> None:
        """Cancel all reads; nobody waits for them any more."""
        for task in self._reads:
            task.cancel()
        await asyncio.gather(*self._reads, return_exceptions=True)

    def _begin(self) -> None:
        while len(self._reads) < self._max_reads and (together := self._next()):
            task = asyncio.get_running_loop().create_task(self._read_for(together))
            self._reads.add(task)
            task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._reads.discard(task)
        self._begin()

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
        values = iter(await self._read([key for waiting in together for key in waiting.keys]))
        for waiting in together:
            found = list(islice(values, len(waiting.keys)))
            if not waiting.values.done():
                waiting.values.set_result(found)
