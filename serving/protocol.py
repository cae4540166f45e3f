"""One caller's connection: what may come in, how long its caller may take, and what he hears who breaks a rule.

uvicorn's protocol reads HTTP; here stand the bounds that it does not have. Whoever keeps the service waiting (with a
head, a body, or an answer that he does not take) has a deadline, and gives way when the connections run out.
"""

import asyncio
from collections import deque
from typing import Any

import httptools
import structlog
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from engine.errors import OverloadedError, ServiceError
from serving.connection_limits import MAX_PIPELINED, Stage
from serving.connection_pool import ConnectionPool
from serving.protocol_errors import (
    LargeHeadError,
    MalformedRequestError,
    NoConnectionError,
    SlowRequestError,
    whole_answer,
)
from serving.request_heads import fault_of, without_upgrade
from web.problems import request_id_of
from web.request_context import context_of

LINGER_S = 2.0
"""So long a connection that ends is still read: closed with unread bytes, it would be reset, and its answer lost."""

log = structlog.get_logger()


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with bounds on time, size and number."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        lobby: ConnectionPool,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._lobby = lobby
        self._rules = lobby.rules
        self._stage = Stage.HEAD
        self._deadline: asyncio.TimerHandle | None = None
        self._dead_bytes = 0  # came in since the last thing that counts: a head, or a piece of a body
        self._is_reading_head = False
        self._is_deaf = False
        self._turned_away: ServiceError | None = None
        self._turned_away_at_once = 0  # of one read
        self._owed: deque[RequestResponseCycle] = deque()  # requests without a whole answer; the first one is at work
        self.held_bytes = 0  # of bodies that have no answer yet

    # --- Coming and going -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self._lobby.awaits(self)
        self._wait_at_most(self._rules.header_timeout_s)
        is_full = len(self.connections) > self._rules.max_connections
        if is_full and not self._lobby.make_room_for(self):
            self._refuse(NoConnectionError(self._rules.max_connections))

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._lobby.forget(self)
        self._let_go()
        super().connection_lost(exc)
        for cycle in self._owed:  # uvicorn tells the newest one only
            cycle.disconnected = True
            if (on_disconnect := context_of(cycle.scope).on_disconnect) is not None:
                on_disconnect()

    def give_way(self) -> None:
        """Leave the place to another connection."""
        self._let_go()
        self._tell_app_of_the_end()
        self.transport.abort()  # what is still in its buffer has not been taken for long

    def end_after_answer(self) -> None:
        """The request at work is the last one."""
        if (cycle := self._unanswered) is not None:
            cycle.keep_alive = False

    @property
    def _unanswered(self) -> RequestResponseCycle | None:
        """The newest request, if it has no whole answer yet."""
        return self._owed[-1] if self._owed else None

    # --- Coming in ------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        if self._stage in (Stage.IDLE, Stage.TAKING):
            self._enter(Stage.HEAD)
        self._dead_bytes += len(data)
        self._turned_away_at_once = 0
        self._unset_keepalive_if_required()
        self._parse(data)
        if self._has_ended():
            return
        if self._dead_bytes > self._rules.max_header_bytes and self._stage is Stage.LINGER:
            self.transport.abort()  # it has its answer
        elif self._dead_bytes > self._rules.max_header_bytes:
            self._refuse(LargeHeadError(self._rules.max_header_bytes))  # trailers and chunk extensions, too
        elif self._deadline is None and self._stage is Stage.HEAD:
            self._wait_at_most(self._rules.header_timeout_s)
        elif self._deadline is None and self._stage is Stage.BODY:
            self._wait_at_most(self._rules.body_timeout_s)

    def _parse(self, data: bytes) -> None:
        """Read *data*; the wish for another protocol is passed over, which HTTP allows.

        The parser leaves out the body of a request that has such a wish (Java's own client sends `h2c` with the first
        one), so it gets its head once more without it.
        """
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as wish:
                method, version = self.parser.get_method(), self.parser.get_http_version()
                data = without_upgrade(method, self.url, version, self.headers) + data[wish.args[0] :]
            except httptools.HttpParserError:
                return self._refuse(MalformedRequestError())
            else:
                return None

    def _has_ended(self) -> bool:
        return self._is_deaf or self.transport.is_closing()

    def on_message_begin(self) -> None:
        if self._is_deaf or len(self.pipeline) >= MAX_PIPELINED:
            raise OverflowError  # it stops the parser, which otherwise makes thousands of requests of one read
        self._is_reading_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_reading_head:  # later ones are trailers: taken for headers, they would pass by what checks those
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._is_reading_head = False
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise ValueError  # it stops the parser; this wish cannot be passed over
            return  # it comes again, see `_parse`
        refused = self._refusal()
        if refused is None and self._may_be_turned_away():
            self._turned_away = self._lobby.turn_away(self.url.decode("latin-1"))
        if self._turned_away is not None:
            self._dead_bytes = 0
            self._enter(Stage.BODY)
            return
        context = context_of(self.scope)
        context.rejection, context.server_reports_disconnect = refused, True
        super().on_headers_complete()
        self._owed.append(self.cycle)
        if refused is not None or self._lobby.is_draining:
            self.cycle.keep_alive = False
        self._dead_bytes = 0
        if self._stage is Stage.HEAD:  # else an earlier request of a pipeline is at work
            self._enter(Stage.BODY)

    def on_body(self, body: bytes) -> None:
        if self._has_ended():
            return
        self._dead_bytes = 0
        if self._turned_away is not None:
            return
        super().on_body(body)
        if self._unanswered is not None and context_of(self.scope).rejection is None:  # such a body is not kept
            self.held_bytes += len(body)
            if not self._lobby.hold(self, len(body)):
                self._refuse(OverloadedError("More bodies are under way than fit into memory.", retry_after_s=1))

    def on_message_complete(self) -> None:
        self._dead_bytes = 0
        if self.parser.should_upgrade() or self._is_deaf:
            return
        if self._turned_away is not None:
            self._turn_away(self._turned_away)
            return
        super().on_message_complete()
        if not self._owed:
            self._rest()
        else:
            self._enter(Stage.WORK)

    def _refusal(self) -> ServiceError | None:
        version, max_bytes = self.parser.get_http_version(), self._rules.max_header_bytes
        fault = fault_of(self.url, self.headers, version, max_bytes=max_bytes)
        return fault or self._lobby.refusal(self.parser.get_method())

    def _may_be_turned_away(self) -> bool:
        """Whether the request can be answered here, where that costs least: a plain one, which no other one precedes.

        Pages of other origins need headers that only the app knows.
        """
        return (
            self._unanswered is None
            and not self.flow.write_paused  # only the app waits for callers who do not take their answers
            and self._turned_away_at_once < MAX_PIPELINED
            and self.parser.get_method() == b"POST"
            and self.parser.get_http_version() == "1.1"
            and self.parser.should_keep_alive()
            and not self.expect_100_continue
            and all(name != b"origin" for name, _ in self.headers)
        )

    # --- Going out ------------------------------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        self._owed.popleft()
        super().on_response_complete()
        self._let_go()
        if self.transport.is_closing():
            self._wait_at_most(self._rules.body_timeout_s)  # the peer may not take what is in the buffer
        elif self._owed:  # the next request of a pipeline
            if self._owed[0].more_body:  # and not one behind it, which is not begun yet
                self._enter(Stage.BODY)
                self._wait_at_most(self._rules.body_timeout_s)
        elif self._stage is Stage.BODY:
            self._enter(Stage.LINGER)
            self._wait_at_most(LINGER_S)
        elif self.transport.get_write_buffer_size():
            self._enter(Stage.TAKING)
            self._wait_at_most(self._rules.body_timeout_s)
        else:
            self._enter(Stage.IDLE)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_at_most(self._rules.body_timeout_s)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stage is Stage.WORK:
            self._stop_waiting()

    def _refuse(self, error: ServiceError) -> None:
        """End the connection with this failure, after the answers that it still owes."""
        if self._is_deaf:
            return
        self._is_deaf = True
        self._lobby.note(error)
        if len(self._owed) > 1 and self._owed[-1].more_body:  # earlier ones are at work: it is never begun
            self._owed.pop()
            self.pipeline.popleft()
            self.cycle = self._owed[-1]
            self._enter(Stage.WORK)
        if (cycle := self._unanswered) is not None:
            if not cycle.more_body:
                cycle.keep_alive = False
                return
            if cycle.response_started:
                self.transport.close()
                self._enter(Stage.TAKING)
                self._wait_at_most(self._rules.body_timeout_s)
                return
        self._tell_app_of_the_end()
        self.transport.write(whole_answer(error, [*self.server_state.default_headers, CLOSE_HEADER]))
        self._enter(Stage.LINGER)
        self._wait_at_most(LINGER_S)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def _turn_away(self, error: ServiceError) -> None:
        """Answer a request that the app never sees; the connection goes on."""
        self._turned_away = None
        self._turned_away_at_once += 1
        request_id = request_id_of(self.headers)
        self.transport.write(whole_answer(error, self.server_state.default_headers, request_id=request_id))
        self._rest()

    def _let_go(self) -> None:
        self._lobby.let_go(self.held_bytes)
        self.held_bytes = 0

    def _tell_app_of_the_end(self) -> None:
        if (cycle := self._unanswered) is not None:
            cycle.disconnected = True
            cycle.message_event.set()

    # --- Waiting --------------------------------------------------------------------------------------------------

    def _rest(self) -> None:
        """Between two requests; uvicorn's own timer has been stopped by the body that came after its answer."""
        self._enter(Stage.IDLE)
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        if self._deadline is None and self.transport.get_write_buffer_size():
            self._wait_at_most(self._rules.body_timeout_s)  # it is closed only once the peer has taken all

    def _enter(self, stage: Stage) -> None:
        if stage is Stage.WORK:
            self._lobby.forget(self)
        elif self._stage is Stage.WORK:
            self._lobby.awaits(self)
        if self._deadline is not None:
            self._stop_waiting()
        self._stage = stage
        if stage is Stage.WORK and self.flow.write_paused:  # the answer waits for the caller, who does not take others
            self._wait_at_most(self._rules.body_timeout_s)

    def _wait_at_most(self, seconds: float) -> None:
        self._stop_waiting()
        self._deadline = self.loop.call_later(seconds, self._waited)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _waited(self) -> None:
        """The caller's time is over."""
        self._deadline = None
        match Stage.TAKING if self.transport.is_closing() else self._stage:
            case Stage.HEAD if self._dead_bytes:
                self._refuse(SlowRequestError("head", "HEADER_TIMEOUT", self._rules.header_timeout_s))
            case Stage.BODY:
                self._refuse(SlowRequestError("body", "BODY_TIMEOUT", self._rules.body_timeout_s))
            case Stage.TAKING if not self.transport.get_write_buffer_size():
                self._enter(Stage.IDLE)  # taken at last
            case Stage.HEAD | Stage.LINGER:
                self.transport.abort()  # nothing came, or nothing more was due
            case _:
                log.info("connection_cut", stage=self._stage.name.lower())
                self.give_way()
