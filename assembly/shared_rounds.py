"""One round of work answers all who ask for it at the same time."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class SharedRounds(Generic[T]):
    """Runs one round at a time. Who asks during a round gets the next one.

    That one begins after the question, so its result contains everything that happened before the question.
    """

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        """Begin no round yet; *work* is one round."""
        self._work = work
        self._current: asyncio.Task[T] | None = None
        self._next: asyncio.Task[T] | None = None

    async def result(self) -> T:
        """Return the result of the next round."""
        if self._next is None:
            self._next = asyncio.create_task(self._run(self._current))
        return await asyncio.shield(self._next)  # one who leaves does not stop it for the others

    async def _run(self, before: asyncio.Task[T] | None) -> T:
        if before is not None:
            await asyncio.wait([before])
        self._current, self._next = self._next, None
        return await self._work()
