"""Reads keys and models again when SIGHUP asks for it, one reload at a time."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

log = structlog.get_logger()


class Reloading:
    """Owns the reload that runs. Requests that arrive meanwhile cause one more after it, however many they are."""

    def __init__(
        self,
        *,
        read_keys: Callable[[], None],
        read_models: Callable[[], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read nothing yet.

        Args:
            read_keys: reads the API keys again. It runs in the event loop, as at each look-up that finds the file
                changed: beside a look-up, in a thread, it could accept a removed key once more.
            read_models: reads the folder of models again.
            clock: monotonic seconds.
        """
        self._read_keys = read_keys
        self._read_models = read_models
        self._clock = clock
        self._running: asyncio.Task[None] | None = None
        self._is_due = False

    def request(self) -> None:
        """Reload soon; call it in the event loop."""
        self._is_due = True
        if self._running is None:
            self._running = asyncio.get_running_loop().create_task(self._run())

    async def finished(self) -> None:
        """Wait for the reload that runs, if any."""
        if self._running is not None:
            await self._running

    async def _run(self) -> None:
        try:
            while self._is_due:
                self._is_due = False
                await self._reload()
        finally:
            self._running = None

    async def _reload(self) -> None:
        """Read both. After a failure, what was read before stays in force."""
        started_s = self._clock()
        log.info("reload_started")
        try:
            self._read_keys()
            await self._read_models()
        except Exception:
            log.exception("reload_failed")
        else:
            log.info("reload_ended", seconds=round(self._clock() - started_s, 3))
