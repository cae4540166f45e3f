"""Work that holds the event loop for long is done in turns, with pauses in which everybody else is served."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from engine.errors import OverloadedError

Done = TypeVar("Done")

REST = 4
"""A pause is so many times as long as the work before it, which therefore gets a fifth of the time at most."""
MAX_WAITING = 64
"""Who wait for their turns keep what they have sent in memory."""


class LargeBodyQueue:
    """Owns who has a turn. Threads would not help here: a decoder keeps Python's lock until it is done."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def take(self, work: Callable[[], Done]) -> Done:
        """What *work* gives or raises, once it is its turn.

        Raises:
            OverloadedError: too many wait for their turns.
        """
        if self._waiting >= MAX_WAITING:
            raise OverloadedError("Too many large bodies came at once.", retry_after_s=1)
        self._waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1
        began = self._clock()
        try:
            return work()
        finally:
            rest_s = REST * (self._clock() - began)
            asyncio.get_running_loop().call_later(rest_s, self._turn.release)
