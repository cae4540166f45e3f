"""A worker's end of the channel to the supervisor: reports its state, and ends when the supervisor has ended."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import msgspec
import structlog
from litestar import Litestar

from assembly.running import RunningService
from host.message_channel import Handler, MessageChannel
from serving.worker_process import WorkerLink
from serving.worker_watch import Pulse

log = structlog.get_logger()


class WorkerChannel:
    """Owns the channel while the app runs."""

    def __init__(self, link: WorkerLink, service: RunningService, *, handlers: Mapping[str, Handler]) -> None:
        """Send nothing before `lifespan`.

        Args:
            link: from the supervisor.
            service: of this worker.
            handlers: further handlers for calls of the supervisor.
        """
        self.channel = MessageChannel(link.channel_socket, {**handlers, "worker.ping": self._answer_ping})
        self._service = service

    @asynccontextmanager
    async def lifespan(self, _: Litestar) -> AsyncIterator[None]:
        """Keep the channel open; this is the first lifespan to begin and the last to end."""
        await self.channel.open()
        tasks = [asyncio.create_task(work) for work in (self._watch_supervisor(), self._report_states())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            self.channel.close()

    def _answer_ping(self, _: bytes) -> bytes:
        return msgspec.msgpack.encode(Pulse(is_stuck=self._service.parts.scheduler.stuck != []))

    async def _watch_supervisor(self) -> None:
        """Drain and end when the supervisor has ended: nothing else would stop this worker."""
        await self.channel.run()
        log.error("supervisor_lost")
        signal.raise_signal(signal.SIGTERM)

    async def _report_states(self) -> None:
        lifecycle = self._service.lifecycle
        await lifecycle.wait_for_start()
        if lifecycle.is_healthy:
            self.channel.notify("worker.ready")
            await lifecycle.wait_for_drain()
            self.channel.notify("worker.draining")


def worker_lifespan(
    worker: WorkerLink | None, service: RunningService
) -> list[Callable[[Litestar], AbstractAsyncContextManager[None]]]:
    """Return the lifespan of the channel of *worker*; none without workers."""
    return [] if worker is None else [WorkerChannel(worker, service, handlers={}).lifespan]
