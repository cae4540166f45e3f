"""One worker process as both sides see it: what it inherits, and what the supervisor knows of it."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from host.message_channel import Handler, MessageChannel
from serving.child_processes import ChildProcesses
from serving.connection_dispatcher import ConnectionDispatcher
from serving.process_start import WORKER_VARIABLE
from serving.worker_connections import WorkerConnections

READ_REST_S = 1.0
"""How long to read what a process has sent before its end. It is there already, unless a child has kept the socket."""
MAX_REASON_BYTES = 4096
"""Longest reason of a failed start. The system writes that much to a pipe as a whole."""


@dataclass(frozen=True, slots=True)
class WorkerLink:
    """What a worker inherits from the supervisor.

    Attributes:
        number: of its slot, from 1; a replacement has the same number.
        workers: the number of slots.
        channel_socket: for calls between this worker and the supervisor.
        connections_socket: for client connections from the supervisor.
        reason_pipe: file descriptor to which the worker writes why it cannot start.
    """

    number: int
    workers: int
    channel_socket: socket.socket
    connections_socket: socket.socket
    reason_pipe: int

    @classmethod
    def from_environment(cls) -> "WorkerLink | None":
        """Return what this process has inherited; None: it is not a worker. Returns it once only."""
        if (text := os.environ.pop(WORKER_VARIABLE, None)) is None:
            return None
        given = json.loads(text)
        descriptors = {name: given[name] for name in ("channel", "connections", "reason")}
        for descriptor in descriptors.values():
            os.set_inheritable(descriptor, False)  # noqa: FBT003 - not for the processes that this one starts
        return cls(
            number=given["number"],
            workers=given["workers"],
            channel_socket=socket.socket(fileno=descriptors["channel"]),
            connections_socket=socket.socket(fileno=descriptors["connections"]),
            reason_pipe=descriptors["reason"],
        )

    def report_failure(self, reason: str) -> None:
        """Give the supervisor the reason why this worker cannot start; it needs no event loop."""
        with suppress(OSError):
            os.write(self.reason_pipe, reason.encode("utf-8", "replace")[:MAX_REASON_BYTES])


class WorkerProcess:
    """What the supervisor knows of one worker process."""

    def __init__(
        self,
        *,
        number: int,
        pid: int,
        ended: asyncio.Future[int],
        channel_socket: socket.socket,
        connections: WorkerConnections,
        reason_pipe: int,
        handlers: Mapping[str, Handler],
    ) -> None:
        """Describe a process that was just started; `start_worker` calls this."""
        self.number = number
        """The number of its slot."""
        self.pid = pid
        self.ended = ended
        """Its exit code, as `ChildProcesses.start` returns it."""
        self.ready = asyncio.Event()
        """Set when its required models are loaded."""
        self.is_reported = False
        """Whether the log says that it is ready; only then may the log say that all are."""
        self.draining = asyncio.Event()
        """Set when it ends by itself: it accepts no more requests."""
        self.is_retired = False
        """Whether it was asked to end, or is being replaced because it does not work: it gets no more connections."""
        self.connections = connections
        """The client connections that it has."""
        own = {"worker.ready": self._set_ready, "worker.draining": self._set_draining}
        self.channel = MessageChannel(channel_socket, {**handlers, **own})
        self._reason_pipe = reason_pipe
        self._running = asyncio.create_task(self.channel.run())

    @property
    def is_ready(self) -> bool:
        """Whether it accepts requests."""
        is_ending = self.is_retired or self.draining.is_set() or self.ended.done()
        return self.ready.is_set() and not is_ending

    def signal(self, number: int) -> None:
        """Send a signal to it, unless it has ended."""
        if not self.ended.done():
            os.kill(self.pid, number)

    async def stop(self, timeout_s: float) -> None:
        """Let it reject new work, answer what is accepted, and end. Kill it if it still runs after *timeout_s*."""
        self.is_retired = True
        self.signal(signal.SIGTERM)
        await self._wait_for_end(timeout_s)

    async def retire(self, timeout_s: float) -> None:
        """Let it end without a lost request: others get its connections. Stop it if it runs after *timeout_s*."""
        self.is_retired = True
        self.connections.retire()
        await asyncio.wait([self.ended], timeout=timeout_s)
        await self.stop(timeout_s)

    def withdraw(self) -> None:
        """Let others get new connections, and what becomes idle here, because this worker does not work or drains."""
        self.is_retired = True
        self.connections.withdraw()

    async def _wait_for_end(self, timeout_s: float) -> None:
        await asyncio.wait([self.ended], timeout=timeout_s)
        self.signal(signal.SIGKILL)
        await asyncio.wait([self.ended])

    async def read_rest(self) -> None:
        """After the end of the process: handle what it has sent before."""
        await asyncio.wait([self._running], timeout=READ_REST_S)

    def close(self) -> str | None:
        """Close what belongs to this process, after its end; return why it could not start, if it gave a reason."""
        self._running.cancel()
        self.channel.close()
        self.connections.remove()
        reason = b""
        with suppress(OSError):
            reason = os.read(self._reason_pipe, MAX_REASON_BYTES)
        os.close(self._reason_pipe)
        return reason.decode("utf-8", "replace") or None

    def _set_ready(self, _: bytes) -> bytes:
        self.ready.set()
        self.connections.set_ready()
        return b""

    def _set_draining(self, _: bytes) -> bytes:
        self.draining.set()
        self.connections.is_ready = False  # others are better, if there are any
        return b""


def start_worker(
    children: ChildProcesses,
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    number: int,
    workers: int,
    dispatcher: ConnectionDispatcher,
    handlers: Mapping[str, Handler],
) -> WorkerProcess:
    """Start a worker by *command*.

    Raises:
        OSError: the system cannot start a process, or has no free file descriptor.
    """
    channel, its_channel = socket.socketpair()
    with its_channel, ExitStack() as undo:
        undo.callback(channel.close)
        connections = dispatcher.add_worker(number)
        undo.callback(connections.remove)
        reason, its_reason = os.pipe()
        undo.callback(os.close, reason)
        os.set_blocking(reason, False)
        descriptors = {
            "channel": its_channel.fileno(),
            "connections": connections.worker_end.fileno(),
            "reason": its_reason,
        }
        link = json.dumps({"number": number, "workers": workers, **descriptors})
        try:
            pid, ended = children.start(
                command, environment={**environment, WORKER_VARIABLE: link}, descriptors=tuple(descriptors.values())
            )
        finally:
            os.close(its_reason)
        undo.pop_all()
    return WorkerProcess(
        number=number,
        pid=pid,
        ended=ended,
        channel_socket=channel,
        connections=connections,
        reason_pipe=reason,
        handlers=handlers,
    )
