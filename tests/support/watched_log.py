"""The structlog events of this process, for tests that wait for one in an event loop."""

import asyncio
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import structlog


class WatchedLog:
    """Collects events instead of writing them, and wakes whoever waits for one."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self._grown = asyncio.Event()

    def __call__(self, _logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        self.entries.append(dict(event))
        self._grown.set()
        raise structlog.DropEvent

    def of(self, name: str, **fields: object) -> list[dict[str, Any]]:
        """Return the events of this *name* with these *fields*."""
        return [
            entry
            for entry in self.entries
            if entry["event"] == name and all(entry.get(field) == value for field, value in fields.items())
        ]

    async def wait_for(self, name: str, *, times: int = 1, **fields: object) -> dict[str, Any]:
        """Wait for the event of this *name* and *fields*, the first or the one of number *times*, and return it."""
        await self.wait_until(lambda: len(self.of(name, **fields)) >= times)
        return self.of(name, **fields)[times - 1]

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until an event makes *condition* true."""
        while not condition():
            self._grown.clear()
            await self._grown.wait()


@contextmanager
def watched_log() -> Iterator[WatchedLog]:
    """Collect all events within the block."""
    log = WatchedLog()
    before = structlog.get_config()["processors"]
    structlog.configure(processors=[log])
    try:
        yield log
    finally:
        structlog.configure(processors=before)
