"""uvicorn's connection protocol and server, adapted: signals, drain and shutdown; pipelined requests; timers.

Every use of a uvicorn name that its documentation does not describe is in this module. A test checks the installed
version for all of them.
"""

import asyncio
import math
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, cast

import httptools
import structlog
import uvicorn
from litestar import Litestar
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from serving.connection_limits import FIELD_SEPARATORS, MAX_FIELDS
from serving.half_closed import HalfClosedClient
from serving.process_exit import exit_now
from serving.request_heads import RequestHead, without_upgrade
from web.security_headers import Header

CLOSE_S = 1.0
"""The part of the drain time that is kept for closing connections and models: a supervisor kills what runs longer."""

REPEATED_S = 0.2
"""Signals within this time after the first one count as the same: `timeout` and some shells send it to a process and to
its group. The log line `drain_started` appears after this time."""

log = structlog.get_logger()


class UvicornProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol. It knows all requests on the connection that have no complete answer yet.

    A client may send further requests before it has the answer to the first one ("pipelining"). uvicorn gives them to
    the app one after the other. Its name for a request and its answer is "cycle", and it keeps only the newest one.
    """

    def __init__(self, *, max_header_bytes: int, **from_uvicorn: Any) -> None:
        super().__init__(**from_uvicorn)
        self._unanswered_cycles: deque[RequestResponseCycle] = deque()  # the app works on the first one
        self._max_header_bytes = max_header_bytes
        self._is_reading_head = False
        self._fields = 0  # of the head or the trailer that is being received
        self._trailer_bytes = 0
        self.has_connection_trailer = False  # such as `Connection: close`; then the parser may ignore what follows
        self.is_head_too_large = False

    def answer_completed(self) -> None:
        """Do what is due after an answer was completely written to the transport; for subclasses."""

    def queue_changed(self) -> None:
        """Note that a pipelined request was queued or taken from the queue; for subclasses."""

    # --- State ----------------------------------------------------------------------------------------------------

    @property
    def common_headers(self) -> list[Header]:
        """The headers that the server adds to every answer, such as `Date`."""
        return self.server_state.default_headers

    @property
    def is_write_paused(self) -> bool:
        """Whether the client is so slow to receive that the app has to wait before it sends more."""
        return self.flow.write_paused

    @property
    def queued_requests(self) -> int:
        """The number of requests that the app has not started because earlier ones are not answered."""
        return len(self.pipeline)

    @property
    def is_head_begun(self) -> bool:
        """Whether a part of a head has arrived, and not all of it."""
        return self._is_reading_head

    @property
    def has_unanswered(self) -> bool:
        return bool(self._unanswered_cycles)

    @property
    def is_body_incomplete(self) -> bool:
        """Whether the request that the app works on waits for the rest of its body."""
        return bool(self._unanswered_cycles) and self._unanswered_cycles[0].more_body

    @property
    def unread_bytes(self) -> int:
        """The bytes of bodies that were received but not read by the app, such as those of queued requests."""
        return sum(len(cycle.body) for cycle in self._unanswered_cycles)

    @property
    def has_answer_started(self) -> bool:
        """Whether the answer to the request that the app works on is partly written."""
        return bool(self._unanswered_cycles) and self._unanswered_cycles[0].response_started

    @property
    def unanswered_scopes(self) -> list[Mapping[str, object]]:
        """The ASGI scopes of all requests that have no complete answer."""
        return [cycle.scope for cycle in self._unanswered_cycles]

    @property
    def is_upgrade(self) -> bool:
        """Whether the head that was parsed last asks for another protocol; `feed` parses it again without that."""
        return self.parser.should_upgrade()

    @property
    def request_scope(self) -> Mapping[str, object]:
        """The ASGI scope of the request that was received last."""
        return self.scope

    # --- Commands -------------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Parse *data*, and ignore requests for another protocol, as HTTP allows.

        The parser skips the body of a request that asks for an upgrade; Java's HTTP client asks for `h2c` with its
        first request. So such a head is parsed a second time, without the headers that ask, and by a new parser: the
        old one ignores what follows a request after which the connection will be closed.

        Raises:
            httptools.HttpParserError: *data* is not HTTP/1.1, or a callback stopped the parser.
        """
        self._unset_keepalive_if_required()
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = without_upgrade(self.finish_head()) + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn
            else:
                return

    def finish_head(self) -> RequestHead:
        """Return the head that the parser has just completed. Later headers are trailers, and ignored."""
        self._is_reading_head = False
        self._fields = 0
        parser = self.parser
        return RequestHead(
            parser.get_method(), self.url, parser.get_http_version(), self.headers, parser.should_keep_alive()
        )

    def close_after_answers(self) -> None:
        """Close the connection after the answer to the newest request; without one, do nothing."""
        if self._unanswered_cycles:
            self._unanswered_cycles[-1].keep_alive = False

    def drop_unstarted(self) -> bool:
        """Drop the newest request if its body is incomplete and the app has not started it; return whether it was."""
        if len(self._unanswered_cycles) < 2 or not self._unanswered_cycles[-1].more_body:  # noqa: PLR2004 - "not alone"
            return False
        self._unanswered_cycles.pop()
        self.pipeline.popleft()
        self.queue_changed()
        self.cycle = self._unanswered_cycles[-1]
        return True

    def answer_through(self, client: HalfClosedClient) -> None:
        """Let *client* write the answer that is due next."""
        self._unanswered_cycles[0].transport = cast("asyncio.Transport", client)

    def report_disconnect(self) -> None:
        """Make the app's `receive` return `http.disconnect`, and ignore what it sends from now on."""
        for cycle in self._unanswered_cycles:
            cycle.disconnected = True
            cycle.message_event.set()

    def stop_keep_alive_timer(self) -> None:
        """Do not close the connection for want of a request."""
        self._unset_keepalive_if_required()

    def restart_keep_alive_timer(self) -> None:
        """Close the connection if no request comes in time."""
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    # --- Callbacks of the parser and of uvicorn -------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._is_reading_head = True
        self._fields = self._trailer_bytes = 0
        self.has_connection_trailer = False
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep one field of a head, and ignore those of a trailer.

        Raises:
            OverflowError: the head or the trailer is too large. Stops the parser before it makes thousands of fields.
        """
        self._fields += 1
        if self._fields > MAX_FIELDS:
            self._stop_at_large_head()
        if self._is_reading_head:  # its bytes are counted when it is complete
            super().on_header(name, value)
            return
        self._trailer_bytes += len(name) + len(value) + FIELD_SEPARATORS
        if self._trailer_bytes > self._max_header_bytes:
            self._stop_at_large_head()
        if name.lower() == b"connection":  # as a header, a trailer would bypass the checks of the head
            self.has_connection_trailer = True

    def _stop_at_large_head(self) -> NoReturn:
        self.is_head_too_large = True
        raise OverflowError

    def on_headers_complete(self) -> None:
        """Give the request to the app, or queue it behind an earlier one."""
        super().on_headers_complete()
        self._unanswered_cycles.append(self.cycle)
        if self.pipeline:
            self.queue_changed()

    def on_response_complete(self) -> None:
        self._unanswered_cycles.popleft()
        had_queue = bool(self.pipeline)
        super().on_response_complete()
        if had_queue:
            self.queue_changed()
        self.answer_completed()


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

    def run_until_stopped(self, listening: socket.socket) -> bool:
        """Serve on the socket *listening*; return False if the app failed to start or to stop, and logged why."""
        try:
            self.run(sockets=[listening])
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

    async def on_tick(self, counter: int) -> bool:
        """Return whether to close now; uvicorn calls this ten times a second."""
        is_stopping = await super().on_tick(counter)
        if self._is_reload_due:
            self._is_reload_due = False
            self._on_reload()
        if not is_stopping or self._clock() - self._stopped_s < REPEATED_S:
            return False
        now = self._clock()
        if self._drain_ends is None:
            self._drain_ends = now + self._drain_s
            log.info(
                "drain_started",
                signal=self._stop_signal,
                requests=len(self.server_state.tasks),
                seconds=self._drain_s,
            )
            for connection in self.server_state.connections:
                cast("UvicornProtocol", connection).close_after_answers()
        return not self.server_state.tasks or now >= self._drain_ends

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close everything; requests that are still unanswered get an error."""
        left_s = 0.0 if self._drain_ends is None else max(0.0, self._drain_ends - self._clock())
        self.config.timeout_graceful_shutdown = math.ceil(left_s)
        log.info("drain_ended", unanswered=len(self.server_state.tasks))
        try:
            await asyncio.wait_for(super().shutdown(sockets), left_s + self._close_s)
        except TimeoutError:
            log.warning("shutdown_forced")  # a model run hangs, and no thread can be stopped from outside
            exit_now(0)
