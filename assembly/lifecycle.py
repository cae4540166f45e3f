"""The life of the service: starting, healthy, draining. This is the only place where the phase changes."""

import asyncio
import time
from collections.abc import Callable
from typing import Literal

Phase = Literal["starting", "healthy", "draining"]


class Lifecycle:
    """Owns the phase of the service, and why its start failed."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin to start; *clock* gives seconds, monotonic."""
        self._phase: Phase = "starting"
        self._failure: str | None = None
        self._is_started = asyncio.Event()
        self._clock = clock
        self._began_s = clock()

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def is_healthy(self) -> bool:
        """Whether the service accepts work."""
        return self._phase == "healthy"

    @property
    def failure(self) -> str | None:
        """Why the service could not start; None: it could, or it is still starting."""
        return self._failure

    @property
    def uptime_s(self) -> float:
        return round(self._clock() - self._began_s, 3)

    def finish_start(self) -> None:
        """Accept work from now on, unless the service is draining already."""
        if self._phase == "starting":
            self._phase = "healthy"
        self._is_started.set()

    def fail_start(self, reason: str) -> None:
        """Record why the service cannot start."""
        self._failure = reason
        self._is_started.set()

    def start_draining(self) -> None:
        """Accept no new work; accepted work is still answered."""
        self._phase = "draining"

    async def wait_for_start(self) -> None:
        """Return once the start has succeeded or failed."""
        await self._is_started.wait()
