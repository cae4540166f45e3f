"""A worker's end of the channel to the supervisor: reports its state, and ends when the supervisor has ended."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import msgspec
import structlog
from litestar import Litestar

from assembly.lifecycle import Lifecycle
from assembly.running import RunningService
from host.message_channel import Handler, MessageChannel
from serving.worker_process import WorkerLink
from serving.worker_watch import Pulse

log = structlog.get_logger()


class WorkerChannel:
    """Owns the channel while the app runs."""

    def __init__(self, link: WorkerLink) -> None:
        """Send nothing before `lifespan`; *link* is from the supervisor."""
        self.number = link.number
        self.workers = link.workers
        self.handlers: dict[str, Handler] = {}
        """For calls of the supervisor; complete before `lifespan`."""
        self.channel = MessageChannel(link.channel_socket, self.handlers)

    @asynccontextmanager
    async def lifespan(self, service: RunningService, _: Litestar) -> AsyncIterator[None]:
        """Keep the channel of *service* open; this is the first lifespan to begin and the last to end."""
        self.handlers["worker.ping"] = partial(_answer_ping, service)
        await self.channel.open()
        works = (self._watch_supervisor(), self._report_states(service.lifecycle))
        tasks = [asyncio.create_task(work) for work in works]
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

    async def _report_states(self, lifecycle: Lifecycle) -> None:
        await lifecycle.wait_for_start()
        if lifecycle.is_healthy:
            self.channel.notify("worker.ready")
            await lifecycle.wait_for_drain()
            self.channel.notify("worker.draining")


def _answer_ping(service: RunningService, _: bytes) -> bytes:
    return msgspec.msgpack.encode(Pulse(is_stuck=service.parts.scheduler.stuck != []))
