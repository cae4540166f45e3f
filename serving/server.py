"""The process around the app: its socket, its signals, its exit code."""

import asyncio
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import NoReturn, Protocol, cast

import structlog
import uvicorn
from litestar import Litestar

from engine.errors import ServiceError
from host.ports import ListenError, open_listening_socket
from serving.connection_limits import ConnectionLimits
from serving.connection_pool import ConnectionPool
from serving.protocol import HttpProtocol

if sys.platform != "win32":
    import resource

OTHER_FILES = 100
"""Open files that are no connections of callers: models, the hub, Redis, the log."""
CLOSE_S = 1.0
"""What is kept of the time to drain for closing all that is open: a supervisor kills who is not gone by then."""

log = structlog.get_logger()


class ServiceState(Protocol):
    """What the server needs of the service behind the app."""

    @property
    def failure(self) -> str | None:
        """Why the service could not start; None: it could."""
        ...

    def start_draining(self) -> None:
        """Accept no new work."""


class Server(uvicorn.Server):
    """A server that drains: asked to stop, it goes on listening until all accepted work is answered.

    Meanwhile probes hear that it drains, new work is refused by `HttpProtocol`, and each answer ends its connection.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        state: ServiceState,
        lobby: ConnectionPool,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Serve the app of *config*, whose connections share *lobby*; *clock* gives seconds, monotonic."""
        super().__init__(config)
        self._state = state
        self._lobby = lobby
        self._clock = clock
        time_s = float(config.timeout_graceful_shutdown or 0)
        self._close_s = min(CLOSE_S, time_s / 2)
        self._drain_s = time_s - self._close_s
        self._ends: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """First signal: drain. Second signal: end at once, with the code that shells give to who ended by a signal."""
        self._state.start_draining()
        self._lobby.is_draining = True
        if self.should_exit:
            os._exit(128 + sig)  # nothing is logged or flushed: what was interrupted may hold the lock that this needs
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Whether it is time to end, asked ten times a second."""
        if not await super().on_tick(counter):
            return False
        if self._ends is None:
            self._ends = self._clock() + self._drain_s
            log.info("drain_started", requests=len(self.server_state.tasks), seconds=self._drain_s)
            for connection in self.server_state.connections:
                cast("HttpProtocol", connection).end_after_answer()
        is_done = not self.server_state.tasks
        return is_done or self._clock() >= self._ends

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close everything; what is still unanswered is told so now."""
        left_s = 0.0 if self._ends is None else max(0.0, self._ends - self._clock())
        self.config.timeout_graceful_shutdown = math.ceil(left_s)
        log.info("drain_ended", unanswered=len(self.server_state.tasks))
        try:
            await asyncio.wait_for(super().shutdown(sockets), left_s + self._close_s)
        except TimeoutError:
            log.warning("shutdown_forced")  # a model may hang in its run, and no thread can be stopped from outside
            _leave(0)


def serve(
    app: Litestar,
    *,
    host: str,
    port: int,
    drain_s: int,
    limits: ConnectionLimits,
    state: ServiceState,
    count_failure: Callable[[str], None],
    reject_early: Callable[[str], ServiceError | None],
) -> int:
    """Run *app* until a signal stops it.

    Args:
        app: the service.
        host: address to listen on.
        port: TCP port to listen on.
        drain_s: seconds from the signal to the end; accepted requests are answered meanwhile.
        limits: of every connection.
        state: the state of the service behind *app*.
        count_failure: gets the code of each failure that happens before there is a request.
        reject_early: returns why a POST to this path is rejected, whatever its body, and counts it; None: it is not.

    Returns:
        The exit code: 0 after a signal, 1 where the service could not start; standard error says why.
    """
    try:
        listening = open_listening_socket(host, port)
    except ListenError as error:
        return _fail(str(error))
    lobby = ConnectionPool(_within_file_limit(limits), note=count_failure, turn_away=reject_early)
    config = uvicorn.Config(
        app,
        http=cast("type[asyncio.Protocol]", partial(HttpProtocol, lobby=lobby)),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=math.ceil(limits.keep_alive_timeout_s),
        timeout_graceful_shutdown=drain_s,
    )
    server = Server(config, state, lobby)
    server.run(sockets=[listening])
    failure = state.failure or ("the log says why." if server.lifespan.should_exit else None)
    return _end(0 if failure is None else _fail(f"Cannot start: {failure}"))


def _within_file_limit(rules: ConnectionLimits) -> ConnectionLimits:
    """As many connections as this process may have open files, after it has raised that number as far as it may."""
    if sys.platform == "win32":
        return rules
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        if rules.max_connections > (room := max(1, most - OTHER_FILES)):
            log.warning("connections_limited", max_connections=room, wanted=rules.max_connections, open_files=most)
            return replace(rules, max_connections=room)
    return rules


def _end(code: int) -> int:
    """Leave threads alone that still run: neither a download nor a model that hangs can be stopped.

    Python would wait for the end of the first, and take down ONNX Runtime under the second.
    """
    if any(thread is not threading.main_thread() for thread in threading.enumerate()):
        _leave(code)
    return code


def _leave(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _fail(reason: str) -> int:
    sys.stderr.write(f"{reason}\n")
    return 1
