"""Writes the head of an answer together with its body: one system call and packet instead of two."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http import HTTPStatus
from typing import Any, Protocol

Message = MutableMapping[str, Any]

MAX_JOINED_BYTES = 256 * 1024
"""Larger parts are written after the head: joining copies them, which costs more than a second write."""
STATUS_LINES = {status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}
NOT_IN_NAMES = re.compile(rb"[\x00-\x1F\x7F()<>@,;:\[\]={} \t\\\"]")
NOT_IN_VALUES = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
"""Characters of headers that uvicorn rejects."""
FRAMING = frozenset({b"connection", b"transfer-encoding"})
"""Headers that change how an answer ends; uvicorn acts on them."""


class Exchange(Protocol):
    """What is used here of uvicorn's object for a request and its answer."""

    transport: asyncio.Transport
    flow: Any
    scope: Any
    default_headers: list[tuple[bytes, bytes]]
    message_event: asyncio.Event
    on_response: Callable[[], None]
    disconnected: bool
    keep_alive: bool
    access_log: bool
    waiting_for_100_continue: bool
    response_started: bool
    response_complete: bool
    chunked_encoding: bool | None


class JoinedSend:
    """ASGI's `send` of one request: keeps the start of the answer until the first part of its body comes.

    A whole answer is written here: uvicorn searches each header twice for characters that are not allowed, which takes
    as long as all else that a short answer needs. What is not ordinary is left to uvicorn.
    """

    def __init__(self, exchange: Exchange, send: Callable[[Any], Awaitable[None]]) -> None:
        """Write through *send*, which writes to the transport of *exchange*."""
        self._exchange = exchange
        self._send = send
        self._start: Message | None = None

    async def __call__(self, message: Message) -> None:
        """Send *message*, or keep it. A start that comes while another one is kept replaces it: the app has failed."""
        exchange = self._exchange
        if message["type"] == "http.response.start" and exchange.scope["method"] != "HEAD":  # which has no body
            self._start = message
        elif self._start is not None:
            start, self._start = self._start, None
            if exchange.flow.write_paused:
                await exchange.flow.drain()
            body: bytes = message.get("body", b"")
            is_whole = message["type"] == "http.response.body" and not message.get("more_body")
            if is_whole and (head := _checked_head(exchange, start, len(body))) is not None:
                _write_whole(exchange, head, body)
                return
            await self._send(start)
            await self._send(message)
        else:
            await self._send(message)


def _checked_head(exchange: Exchange, start: Message, length: int) -> bytes | None:
    """Return the head of a whole answer, whose body has this *length*; None: uvicorn has to look at it."""
    if start["status"] not in STATUS_LINES or exchange.disconnected or exchange.response_started or exchange.access_log:
        return None
    headers = [(name.lower(), value) for name, value in (*exchange.default_headers, *start["headers"])]
    values = dict(headers)
    if values.get(b"content-length") != b"%d" % length or not FRAMING.isdisjoint(values):
        return None
    if NOT_IN_NAMES.search(b"".join(values)) or NOT_IN_VALUES.search(b"".join([value for _, value in headers])):
        return None
    if not exchange.keep_alive:
        headers.append((b"connection", b"close"))
    return head_of(start["status"], headers)


def head_of(status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the head of an HTTP/1.1 answer with a status of `STATUS_LINES`."""
    return b"".join([STATUS_LINES[status], *[b"%s: %s\r\n" % header for header in headers], b"\r\n"])


def _write_whole(exchange: Exchange, head: bytes, body: bytes) -> None:
    """Write a whole answer, and do what uvicorn does at the end of one."""
    exchange.response_started = exchange.response_complete = True
    exchange.waiting_for_100_continue = exchange.chunked_encoding = False
    if len(body) <= MAX_JOINED_BYTES:
        exchange.transport.write(head + body)
    else:
        exchange.transport.write(head)
        exchange.transport.write(body)
    exchange.message_event.set()
    if not exchange.keep_alive:
        exchange.transport.close()
    exchange.on_response()
