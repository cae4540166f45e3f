"""A time limit for blocks that wait for another process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

SLICES = 5
"""Number of parts of the time limit, see `time_limit`."""


@asynccontextmanager
async def time_limit(seconds: float) -> AsyncIterator[None]:
    """Limit the block to *seconds*, as `asyncio.timeout` does, but without timing out because of a busy event loop.

    The time is counted in slices. A period in which the event loop was blocked counts as one slice, however long it
    was, so an answer that arrived meanwhile is read before the time is over.

    Raises:
        TimeoutError: the time is over.
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None
    async with asyncio.timeout(None) as limit:

        def wait_for(slices: int) -> None:
            nonlocal timer
            if slices:
                timer = loop.call_later(seconds / SLICES, wait_for, slices - 1)
            else:
                limit.reschedule(loop.time())

        wait_for(SLICES)
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()
