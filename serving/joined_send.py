"""Writes the head of an answer together with the first part of its body: one system call and packet instead of two."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

Message = MutableMapping[str, Any]

MAX_JOINED_BYTES = 256 * 1024
"""Larger parts are written after the head: joining copies them, which costs more than a second write."""


class Exchange(Protocol):
    """What is used here of uvicorn's object for a request and its answer."""

    transport: asyncio.Transport
    flow: Any
    scope: Any


class JoinedSend:
    """ASGI's `send` of one request: keeps the start of the answer until the first part of its body comes."""

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
                await exchange.flow.drain()  # so that nothing below waits while the transport is replaced
            transport = exchange.transport
            exchange.transport = _FirstWrites(transport)  # type: ignore[assignment]  # has what is used
            try:
                await self._send(start)
                await self._send(message)
            finally:
                exchange.transport = transport
        else:
            await self._send(message)


class _FirstWrites:
    """Takes the place of a transport for two writes."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head: bytes | None = None

    def write(self, data: bytes) -> None:
        if self._head is None:
            self._head = data
        elif len(data) <= MAX_JOINED_BYTES:
            self._transport.write(self._head + data)
        else:
            self._transport.write(self._head)
            self._transport.write(data)

    def close(self) -> None:
        self._transport.close()
