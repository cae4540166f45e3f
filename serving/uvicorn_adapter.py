"""uvicorn's connection protocol, adapted: pipelined requests, timers, what the parser does not limit.

Every use of a uvicorn name that its documentation does not describe is in this module and in `serving.uvicorn_server`.
A test checks the installed version for all of them.
"""

import asyncio
from collections import deque
from collections.abc import Mapping, MutableMapping
from typing import Any, NoReturn, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from serving.connection_limits import FIELD_SEPARATORS, MAX_FIELDS
from serving.half_closed import HalfClosedClient
from serving.joined_send import JoinedSend
from serving.request_heads import RequestHead, without_upgrade
from web.security_headers import Header


class StopParsingError(Exception):
    """Raised in a callback of the parser to stop it; every other exception there is a bug."""


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
        return sum([len(cycle.body) for cycle in self._unanswered_cycles])

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
    def request_scope(self) -> MutableMapping[str, Any]:
        """The ASGI scope of the request that was received last."""
        return cast("MutableMapping[str, Any]", self.scope)

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
            StopParsingError: the head or the trailer is too large; the parser would make thousands of fields.
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
        raise StopParsingError

    def on_headers_complete(self) -> None:
        """Give the request to the app, or queue it behind an earlier one."""
        super().on_headers_complete()
        self.cycle.send = cast("Any", JoinedSend(self.cycle, self.cycle.send))  # type: ignore[method-assign]
        self._unanswered_cycles.append(self.cycle)
        if self.pipeline:
            self.queue_changed()

    def on_response_complete(self) -> None:
        del self._unanswered_cycles.popleft().send  # a reference cycle
        had_queue = bool(self.pipeline)
        super().on_response_complete()
        if had_queue:
            self.queue_changed()
        self.answer_completed()
