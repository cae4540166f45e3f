"""Lets one piece of work run at a time, in an order that is fair between callers."""

import asyncio

from engine.fair_queue import Caller, FairQueue


class FairGate:
    """Owns the work that waits for one place. Work that has entered must leave."""

    def __init__(self) -> None:
        self._queue: FairQueue[asyncio.Future[None]] = FairQueue()
        self._is_busy = False

    async def enter(self, caller: Caller, cost: float, *, order: float = 0.0) -> None:
        """Wait for the place. If this is cancelled, the caller is charged nothing and must not `leave`.

        Args:
            caller: who the work is for.
            cost: in any unit, the same for all work.
            order: among one caller's work, the lowest goes first, then the earliest.
        """
        may_enter = asyncio.get_running_loop().create_future()
        self._queue.push(may_enter, caller=caller, cost=cost, order=order)
        self._admit_next()
        try:
            await may_enter
        except asyncio.CancelledError:
            self._queue.remove(may_enter, caller)
            if not may_enter.cancelled():  # the place was given to it already
                self.leave()
            raise

    def leave(self) -> None:
        """Give the place to the next work."""
        self._is_busy = False
        self._admit_next()

    def _admit_next(self) -> None:
        while self._queue and not self._is_busy:
            may_enter = self._queue.pop()
            if not may_enter.done():  # done: its task was cancelled, and has not removed it yet
                self._is_busy = True
                may_enter.set_result(None)
