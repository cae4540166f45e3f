"""HTTP/1.1 connections with limits on time, size and number, and the errors for clients that exceed one.

Whenever the server waits for a client (to send a head or a body, or to receive an answer), the client has a deadline,
and its connection may be closed when there are too many connections or bodies.
"""

import asyncio
from typing import Any

import httptools
import structlog

from engine.errors import OverloadedError, ServiceError
from serving.connection_limits import MAX_PIPELINED, MAX_PIPELINED_PER_ADDRESS, MAX_TINY_CHUNKS, TINY_BYTES, Stage
from serving.connection_pool import HEAD, IDLE, TRANSFER, ConnectionPool
from serving.early_answers import EarlyAnswers
from serving.half_closed import HalfClosedClient
from serving.protocol_errors import LargeHeadError, MalformedRequestError, SlowRequestError, complete_answer
from serving.request_heads import RequestHead, authority_of, find_fault
from serving.uvicorn_adapter import StopParsingError, UvicornProtocol
from web.dialects import Dialect
from web.problems import InternalError
from web.request_context import context_of
from web.security_headers import Header

CLOSE_HEADER: Header = (b"connection", b"close")
LINGER_S = 2.0
"""How long a connection is read before it is closed. Closed with unread bytes it would be reset, and the client might
lose the answer."""

log = structlog.get_logger()


class HttpProtocol(UvicornProtocol):
    """One connection: reads requests within the limits, gives them to the app, and rejects everything else."""

    def __init__(self, *, pool: ConnectionPool, **from_uvicorn: Any) -> None:
        super().__init__(max_header_bytes=pool.limits.max_header_bytes, **from_uvicorn)
        self._pool = pool
        self._limits = pool.limits
        self._stage = Stage.READING_HEAD
        self._deadline: asyncio.TimerHandle | None = None
        self._bytes_without_progress = 0  # received since the last complete head, piece of a body, or end of a request
        self._body_pieces = self._body_bytes = 0  # of the newest request
        self._ignores_input = False
        self._keeps_body = False  # of the newest request; the body of a rejected one is dropped
        self._early = EarlyAnswers(pool)

    # --- Begin and end of the connection --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self._transport = transport
        self._place = self._pool.enter(self.client, abort=transport.abort, unsent=transport.get_write_buffer_size)
        refusal = self._pool.admit(self._place)
        self._pool.wait(self._place, IDLE)
        self._set_deadline(self._limits.header_timeout_s)
        if refusal is not None:
            self._reject(refusal)

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_deadline()
        self._pool.leave(self._place)
        self._start_held()
        super().connection_lost(exc)
        self.report_disconnect()
        for scope in self.unanswered_scopes:
            if (on_disconnect := context_of(scope).on_disconnect) is not None:
                on_disconnect()

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn's own always closes the connection
        """Keep the connection if the client, which sends no more, waits for answers to complete requests."""
        self.drop_unstarted()
        if not self.has_unanswered or self.is_body_incomplete:
            return False
        self.close_after_answers()
        client = HalfClosedClient(
            self._transport, has_answer_started=self.has_answer_started, on_reset=self._transport.abort
        )
        self.answer_through(client)
        client.probe()
        return not self._transport.is_closing()

    def close_after_answers(self) -> None:
        self._start_held()
        super().close_after_answers()

    def _abort(self) -> None:
        """Close the connection at once, and drop what the client has not received yet."""
        self._pool.leave(self._place)
        self._transport.abort()

    # --- Receiving ------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._ignores_input:
            return
        if self._stage in (Stage.IDLE, Stage.SENDING):
            self._enter(Stage.READING_HEAD)
        self._early.in_read = 0
        max_bytes = self._limits.max_header_bytes
        room = max_bytes - self._bytes_without_progress
        if self._stage is Stage.READING_HEAD and len(data) > room:
            self._receive(data[:room])  # only the parser knows whether the head ends within the limit
            if self._bytes_without_progress >= max_bytes and not self._has_ended():
                self._reject(LargeHeadError(max_bytes))
            data = data[room:]
        if not self._ignores_input:
            self._receive(data)

    def _receive(self, data: bytes) -> None:
        self._bytes_without_progress += len(data)
        try:
            self.feed(data)
        except httptools.HttpParserError as error:
            self._reject(self._why_stopped(error.__context__))
        if self._has_ended():
            return
        if self._bytes_without_progress > self._limits.max_header_bytes:  # trailers, or extensions of a chunk
            if self._stage is Stage.LINGERING:
                self._transport.abort()  # it has its answer
            else:
                self._reject(LargeHeadError(self._limits.max_header_bytes))
        elif self._stage is Stage.READING_HEAD:
            self._wait_for_client(HEAD, self._limits.header_timeout_s)
        elif self._stage is Stage.READING_BODY:
            self._wait_for_client(TRANSFER, self._limits.body_timeout_s)
        elif self._stage in (Stage.IDLE, Stage.SENDING):  # the newest complete request was answered early
            if self.is_head_begun:
                self._await_next_request()
            else:
                self.restart_keep_alive_timer()  # uvicorn stopped it when data arrived

    def _why_stopped(self, raised: BaseException | None) -> ServiceError:
        """Return the error for the client after the parser has stopped; a callback may have *raised* an exception."""
        if self.is_head_too_large:
            return LargeHeadError(self._limits.max_header_bytes)
        if raised is None or isinstance(raised, StopParsingError | httptools.HttpParserError):
            return MalformedRequestError()
        error = InternalError()
        log.error("request_failed", code=error.code, exc_info=raised)
        return error

    def on_message_begin(self) -> None:
        if self._ignores_input or self._is_pipeline_full():
            raise StopParsingError  # the parser would make thousands of requests of one read
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        head = self.finish_head()
        if self.is_upgrade:
            if head.method == b"CONNECT":
                raise StopParsingError  # without its upgrade, this request has no meaning
            return
        self._bytes_without_progress = self._body_pieces = self._body_bytes = 0
        rejection = find_fault(head, max_bytes=self._limits.max_header_bytes) or self._pool.rejection(head.method)
        is_alone = rejection is None and not self.has_unanswered and not self.is_write_paused
        if is_alone and self._early.take(head, self.request_scope, self.common_headers):
            self._enter(Stage.READING_BODY)
        else:
            self._start(head, rejection)

    def _start(self, head: RequestHead, rejection: ServiceError | None) -> None:
        """Give the newest request to the app, which answers with *rejection* if there is one."""
        context = context_of(self.request_scope)
        context.rejection, context.server_reports_disconnect = rejection, True
        context.authority = authority_of(head.target)
        self._keeps_body = rejection is None
        super().on_headers_complete()
        if rejection is not None or self._pool.is_draining:
            self.close_after_answers()
        if self._stage is Stage.READING_HEAD:  # otherwise the app works on an earlier request of a pipeline
            self._enter(Stage.READING_BODY)

    def on_body(self, body: bytes) -> None:
        if self._has_ended():
            return
        self._bytes_without_progress = 0
        self._body_pieces += 1
        self._body_bytes += len(body)
        if self._body_pieces > MAX_TINY_CHUNKS + self._body_bytes // TINY_BYTES:
            raise StopParsingError  # the parser would make thousands of pieces of one read
        if self._early.is_rejected:
            return
        if not (is_held := self._early.add(body)):
            super().on_body(body)
        is_kept = is_held or (self.has_unanswered and self._keeps_body)
        if is_kept and not self._pool.reserve_bytes(self._place, len(body)):
            self._reject(OverloadedError("Too many request bodies are in memory.", retry_after_s=1))

    def on_message_complete(self) -> None:
        self._bytes_without_progress = 0
        if self.is_upgrade or self._ignores_input:
            return
        if (answer := self._early.end(self.request_scope, self.common_headers)) is not None:
            self._transport.write(answer)
            self._pool.release_bytes(self._place)
            if self.has_connection_trailer or self._pool.is_draining:
                self._transport.close()
        else:
            self._start_held()
            super().on_message_complete()
            if self.has_connection_trailer:
                self.close_after_answers()
        if self.has_unanswered:
            self._enter(Stage.PROCESSING)
        else:  # it was answered early
            self._await_next_request()

    def _start_held(self) -> None:
        """Give a request to the app after all: no answer to it is kept, or it ends early."""
        if (held := self._early.give_back()) is not None:
            head, body = held
            self._start(head, None)
            if body:
                super().on_body(body)

    def _is_pipeline_full(self) -> bool:
        queued, of_address = self._place.queued_requests, self._place.share.queued_requests
        return queued >= MAX_PIPELINED or (queued > 0 and of_address >= MAX_PIPELINED_PER_ADDRESS)

    # --- Sending --------------------------------------------------------------------------------------------------

    def queue_changed(self) -> None:
        self._pool.count_queued(self._place, self.queued_requests)

    def answer_completed(self) -> None:
        self._pool.release_bytes(self._place, kept=self.unread_bytes)
        if self._transport.is_closing():
            self._set_deadline(self._limits.body_timeout_s)  # to receive what is in the buffer
        elif self.has_unanswered:  # the next request of a pipeline
            if self.is_body_incomplete:
                self._enter(Stage.READING_BODY)
                self._wait_for_client(TRANSFER, self._limits.body_timeout_s)
        elif self._stage is Stage.READING_BODY:
            self._enter(Stage.LINGERING)
            self._set_deadline(LINGER_S)
        else:
            self._await_next_request()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._pool.wait(self._place, TRANSFER)
        self._set_deadline(self._limits.body_timeout_s)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stage is Stage.PROCESSING:
            self._pool.keep(self._place)
            self._clear_deadline()

    def _reject(self, error: ServiceError) -> None:
        """End the connection with *error*, after the answers to earlier requests."""
        if self._ignores_input:
            return
        self._ignores_input = True
        self._start_held()
        self._pool.report(error)
        if self.drop_unstarted():
            self._enter(Stage.PROCESSING)
        if self.has_unanswered and not self.is_body_incomplete:
            self.close_after_answers()
        elif self.has_answer_started:
            self._transport.close()
            self._enter(Stage.SENDING)
            self._set_deadline(self._limits.body_timeout_s)
        else:
            self.report_disconnect()
            self._pool.release_bytes(self._place)
            dialect = self._dialect_of_request() if self.has_unanswered else None
            self._transport.write(complete_answer(error, [*self.common_headers, CLOSE_HEADER], dialect=dialect))
            self._enter(Stage.LINGERING)
            self._set_deadline(LINGER_S)
            self._transport.write_eof()

    def _dialect_of_request(self) -> Dialect | None:
        """Return the dialect of the newest request. If its task has not begun yet, no middleware has found it."""
        context = context_of(self.request_scope)
        return context.dialect if context.request_id else self._pool.find_dialect(str(self.request_scope["path"]))

    # --- Stages and deadlines -------------------------------------------------------------------------------------

    def _await_next_request(self) -> None:
        """Be idle, as soon as the client has received all answers; or wait for the rest of a head that has begun."""
        if self._transport.get_write_buffer_size():
            self._enter(Stage.SENDING)
            self._wait_for_client(TRANSFER, self._limits.body_timeout_s)
        elif self.is_head_begun:
            self._enter(Stage.READING_HEAD)
            self._wait_for_client(HEAD, self._limits.header_timeout_s)
            self.stop_keep_alive_timer()
        else:
            self._enter(Stage.IDLE)

    def _enter(self, stage: Stage) -> None:
        if self._deadline is not None:
            self._clear_deadline()
        self._stage = stage
        if stage is Stage.PROCESSING:
            self._pool.keep(self._place)
            if self.is_write_paused:  # the app waits until the client receives earlier answers
                self._wait_for_client(TRANSFER, self._limits.body_timeout_s)
        elif stage is Stage.IDLE or stage is Stage.LINGERING:
            self._pool.wait(self._place, IDLE)

    def _wait_for_client(self, what: int, seconds: float) -> None:
        """Give the client this time, unless it has a deadline, and let the pool close the connection for others."""
        if self._place.waits_for != what:
            self._pool.wait(self._place, what)
        if self._deadline is None:
            self._set_deadline(seconds)

    def _set_deadline(self, seconds: float) -> None:
        self._clear_deadline()
        self._deadline = asyncio.get_running_loop().call_later(seconds, self._on_deadline)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _on_deadline(self) -> None:
        """Close the connection: the client was too slow. It gets an error if it was sending a request."""
        self._deadline = None
        match Stage.SENDING if self._transport.is_closing() else self._stage:
            case Stage.READING_HEAD if self._bytes_without_progress or self.is_head_begun:
                self._reject(SlowRequestError("head", "HEADER_TIMEOUT", self._limits.header_timeout_s))
            case Stage.READING_BODY:
                self._reject(SlowRequestError("body", "BODY_TIMEOUT", self._limits.body_timeout_s))
            case Stage.SENDING if not self._transport.get_write_buffer_size():
                self._await_next_request()  # the client has received everything meanwhile
            case Stage.READING_HEAD | Stage.LINGERING:
                self._transport.abort()  # nothing was received, or nothing more was expected
            case _:
                log.info("connection_cut", stage=self._stage.name.lower())
                self._abort()

    def _has_ended(self) -> bool:
        return self._ignores_input or self._transport.is_closing()
