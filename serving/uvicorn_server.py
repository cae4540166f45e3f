"""uvicorn's server, adapted: connections from the supervisor, signals, drain and shutdown.

See `serving.uvicorn_adapter` for the names of uvicorn that are used here.
"""

import asyncio
import math
import signal
import socket
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import cast

import structlog
import uvicorn
from litestar import Litestar

from serving.connection_receiver import ConnectionReceiver, HandedOver
from serving.process_exit import exit_now
from serving.process_signals import REPEATED_S
from serving.uvicorn_adapter import UvicornProtocol
from serving.worker_protocol import WorkerProtocol

CLOSE_S = 1.0
"""The part of the drain time that is kept for closing connections and models: a supervisor kills what runs longer."""

log = structlog.get_logger()


class DrainingServer(uvicorn.Server):
    """A server that stops in two steps: it drains (answers all accepted requests), and then it closes.

    While it drains it still accepts connections, so that probes are answered. New work is rejected, and each answer
    ends its connection.
    """

    def __init__(
        self,
        app: Litestar,
        *,
        make_protocol: Callable[..., UvicornProtocol],
        keep_alive_s: float,
        drain_s: int,
        on_stop: Callable[[], None],
        on_reload: Callable[[], None] = lambda: None,
        connections_socket: socket.socket | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare to serve *app*.

        Args:
            app: an ASGI app.
            make_protocol: called for each connection, with uvicorn's keyword arguments.
            keep_alive_s: seconds until a connection without a request is closed.
            drain_s: seconds from the signal to the end.
            on_stop: called at each signal; makes the app and the protocols reject new work.
            on_reload: called in the event loop after `reload`.
            connections_socket: over which the supervisor hands connections to this worker; None: this server accepts
                its connections itself.
            clock: monotonic seconds.
        """
        config = uvicorn.Config(
            app,
            http=cast("type[asyncio.Protocol]", make_protocol),
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            workers=1,  # otherwise uvicorn reads WEB_CONCURRENCY, and fails if that is not a number
            timeout_keep_alive=math.ceil(keep_alive_s),
        )
        super().__init__(config)
        self._on_stop = on_stop
        self._on_reload = on_reload
        self._clock = clock
        self._stop_signal: str | None = None
        self._stopped_s = 0.0
        self._is_reload_due = False
        self._close_s = min(CLOSE_S, drain_s / 2)
        self._drain_s = drain_s - self._close_s
        self._drain_ends: float | None = None
        self._connections_socket = connections_socket
        self._receiver: ConnectionReceiver | None = None

    def run_until_stopped(self, listening: socket.socket | None) -> bool:
        """Serve; return False if the app failed to start or to stop, and logged why.

        Args:
            listening: the socket to accept connections from; None: they come from the supervisor only.
        """
        try:
            self.run(sockets=[] if listening is None else [listening])
        except SystemExit:  # from uvicorn: the app failed to start
            return False
        return not self.lifespan.should_exit

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Install no handlers, as uvicorn would: `ProcessSignals` handles signals before, during and after the run."""
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Drain at the first signal. At a later one end at once, with the exit code that shells use for it."""
        self._on_stop()
        now, name = self._clock(), signal.Signals(sig).name
        if self._stop_signal is None:
            self._stop_signal, self._stopped_s, self.should_exit = name, now, True
        elif now - self._stopped_s < REPEATED_S:
            log.info("signal_repeated", signal=name)
        else:
            log.warning("stopped_at_once", signal=name, unanswered=len(self.server_state.tasks))
            exit_now(128 + sig)

    def reload(self) -> None:
        """Call `on_reload` soon; a signal handler may interrupt the event loop anywhere."""
        self._is_reload_due = True

    def report_unused(self, name: str) -> None:
        log.info("signal_ignored", signal=name)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the app, then take connections."""
        await super().startup(sockets)
        if self._connections_socket is not None:
            self._receiver = ConnectionReceiver(
                self._connections_socket, make_protocol=self._protocol_of, on_retire=self._start_retiring
            )

    def _protocol_of(self, connection: HandedOver) -> asyncio.Protocol:
        make = cast("Callable[..., asyncio.Protocol]", self.config.http_protocol_class)
        return make(
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            connection=connection,
        )

    def _start_retiring(self) -> None:
        log.info("retiring", connections=len(self.server_state.connections), requests=len(self.server_state.tasks))
        self._give_back_idle()

    def _give_back_idle(self) -> None:
        """Give back connections that are idle now; the others are given back when they become idle."""
        if self._receiver is not None and self._receiver.wanted_back:
            for connection in tuple(self.server_state.connections):
                cast("WorkerProtocol", connection).give_back_if_wanted()

    @property
    def _has_retired(self) -> bool:
        """Whether this worker was to retire, and has no connection left."""
        if self._receiver is None or not self._receiver.is_retiring:
            return False
        return not (self.server_state.connections or self.server_state.tasks or self._receiver.is_starting_some)

    async def on_tick(self, counter: int) -> bool:
        """Return whether to close now; uvicorn calls this ten times a second."""
        is_stopping = await super().on_tick(counter)
        if self._is_reload_due:
            self._is_reload_due = False
            self._on_reload()
        self._give_back_idle()
        if not is_stopping:
            return self._has_retired
        if self._clock() - self._stopped_s < REPEATED_S:
            return False
        now = self._clock()
        if self._drain_ends is None:
            self._drain_ends = now + self._drain_s
            for connection in self.server_state.connections:
                cast("UvicornProtocol", connection).close_after_answers()
            log.info(
                "drain_started",
                signal=self._stop_signal,
                requests=len(self.server_state.tasks),  # also of requests that were held until now
                seconds=self._drain_s,
            )
        return not self.server_state.tasks or now >= self._drain_ends

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close everything; requests that are still unanswered get an error."""
        ends = self._clock() + self._drain_s if self._has_retired else self._drain_ends
        left_s = 0.0 if ends is None else max(0.0, ends - self._clock())
        self.config.timeout_graceful_shutdown = math.ceil(left_s)
        log.info("drain_ended", unanswered=len(self.server_state.tasks))
        if self._receiver is not None:
            self._receiver.stop()
        try:
            await asyncio.wait_for(super().shutdown(sockets), left_s + self._close_s)
        except TimeoutError:
            log.warning("shutdown_forced")  # a model run hangs, and no thread can be stopped from outside
            exit_now(0)
