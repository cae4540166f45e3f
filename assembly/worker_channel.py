"""A worker's side of the channel to the supervisor: it reports when it is ready, and drains if the other end is gone."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import structlog
from litestar import Litestar

from assembly.lifecycle import Lifecycle
from host.message_channel import Handler, MessageChannel
from serving.worker_process import WorkerLink

log = structlog.get_logger()


class WorkerChannel:
    """Owns the channel while the app runs."""

    def __init__(self, link: WorkerLink, lifecycle: Lifecycle, *, handlers: Mapping[str, Handler]) -> None:
        """Send nothing before `lifespan`.

        Args:
            link: from the supervisor.
            lifecycle: of this worker's service.
            handlers: for calls of the supervisor.
        """
        self.channel = MessageChannel(link.channel_socket, handlers)
        self._lifecycle = lifecycle

    @asynccontextmanager
    async def lifespan(self, _: Litestar) -> AsyncIterator[None]:
        """Keep the channel open."""
        await self.channel.open()
        tasks = [asyncio.create_task(self._watch_supervisor()), asyncio.create_task(self._report_start())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            self.channel.close()

    async def _watch_supervisor(self) -> None:
        """Drain and end when the supervisor has ended: nothing else would stop this worker."""
        await self.channel.run()
        log.error("supervisor_lost")
        signal.raise_signal(signal.SIGTERM)

    async def _report_start(self) -> None:
        await self._lifecycle.wait_for_start()
        if self._lifecycle.is_healthy:
            self.channel.notify("worker.ready")


def worker_lifespan(
    worker: WorkerLink | None, lifecycle: Lifecycle
) -> list[Callable[[Litestar], AbstractAsyncContextManager[None]]]:
    """Return the lifespan of the channel of *worker*; none without workers."""
    return [] if worker is None else [WorkerChannel(worker, lifecycle, handlers={}).lifespan]
