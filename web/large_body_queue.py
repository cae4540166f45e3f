"""Queue for large request bodies: decodes one at a time, with pauses in which other requests are served."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from engine.errors import OverloadedError

Result = TypeVar("Result")

PAUSE_FACTOR = 4
"""A pause is this many times as long as the work before it, so large bodies take at most a fifth of the event loop."""
MAX_WAITING = 64
"""Maximum number of waiting bodies; each is in memory while it waits."""


class LargeBodyQueue:
    """Runs one function at a time on the event loop. A thread would not help: decoding holds the GIL."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = asyncio.Lock()
        self._waiting = 0

    async def run(self, work: Callable[[], Result]) -> Result:
        """Wait for earlier work and its pause, then call *work* and return its result.

        Raises:
            OverloadedError: `MAX_WAITING` others are waiting already.
        """
        if self._waiting >= MAX_WAITING:
            raise OverloadedError("Too many large bodies arrived at once.", retry_after_s=1)
        self._waiting += 1
        try:
            await self._lock.acquire()
        finally:
            self._waiting -= 1
        started = self._clock()
        try:
            return work()
        finally:
            pause_s = PAUSE_FACTOR * (self._clock() - started)
            asyncio.get_running_loop().call_later(pause_s, self._lock.release)
