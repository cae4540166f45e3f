"""The lifecycle of the service: starting, healthy, draining. The phase changes only here.

`serving.process_signals` receives SIGTERM, and `serving.uvicorn_server.DrainingServer` starts the drain here.
"""

import asyncio
import time
from collections.abc import Callable

from api.process_reports import Phase


class Lifecycle:
    """Owns the phase of the service, and the reason if its start failed."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Enter the phase `starting`; *clock* returns monotonic seconds."""
        self._phase: Phase = "starting"
        self._failure: str | None = None
        self._start_ended = asyncio.Event()
        self._drain_began = asyncio.Event()
        self._clock = clock
        self._began_s = clock()
        self.address: str | None = None
        """Where the server listens, as in a URL; None: it has not said that."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when the phase has changed."""

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def is_healthy(self) -> bool:
        """Whether the service accepts work."""
        return self._phase == "healthy"

    @property
    def failure(self) -> str | None:
        """Why the service cannot start; None: it could, or it is still starting."""
        return self._failure

    @property
    def uptime_s(self) -> float:
        return round(self._clock() - self._began_s, 3)

    def finish_start(self) -> bool:
        """Accept work from now on, unless the service drains already; return whether it accepts work."""
        if self._phase == "starting":
            self._enter("healthy")
        self._start_ended.set()
        return self.is_healthy

    def fail_start(self, reason: str) -> None:
        """Record why the service cannot start."""
        self._failure = reason
        self._start_ended.set()

    def start_draining(self) -> None:
        """Accept no new work; accepted work is still answered."""
        self._enter("draining")
        self._start_ended.set()
        self._drain_began.set()

    async def wait_for_start(self) -> None:
        """Wait until the start has succeeded or failed, or the service drains."""
        await self._start_ended.wait()

    async def wait_for_drain(self) -> None:
        """Wait until the service accepts no more work."""
        await self._drain_began.wait()

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        self.on_change()
