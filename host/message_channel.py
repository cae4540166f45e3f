"""Calls and notices between two processes of the service, over a Unix stream socket.

Both ends have a `MessageChannel`. A message is a msgpack array with its length before it. The other end is a process
of the same service, started by the same user, so messages are trusted; the limits here guard against mistakes.
"""

import asyncio
import itertools
import socket
from collections.abc import Awaitable, Callable, Mapping
from enum import IntEnum
from typing import Final

import msgspec
import structlog

LENGTH_BYTES = 4
MAX_MESSAGE_BYTES = 64 << 20
MAX_WAITING_BYTES = 4 << 20
"""Bytes that may wait for the other end to read them. More means that it hangs: nothing more is sent to it."""

Handler = Callable[[bytes], Awaitable[bytes] | bytes]
"""Takes the payload of a call and returns that of its answer; what it returns to a notice is ignored."""

log = structlog.get_logger()


class ChannelClosedError(Exception):
    """The channel is closed, or the other end does not read what was sent to it."""


class RemoteCallError(Exception):
    """The handler at the other end has failed, or there is none. The other end has logged why."""


class _Kind(IntEnum):
    CALL = 0
    NOTICE = 1
    ANSWER = 2
    FAILURE = 3


class _Message(msgspec.Struct, array_like=True, frozen=True):
    """One message. *number* tells which call an answer belongs to; *method* is empty in answers."""

    kind: _Kind
    number: int
    method: str
    payload: bytes


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(_Message)


class MessageChannel:
    """One end of the connection between two processes. Belongs to one event loop."""

    def __init__(self, sock: socket.socket, handlers: Mapping[str, Handler]) -> None:
        """Send nothing before `run`.

        Args:
            sock: a connected Unix stream socket; the channel closes it.
            handlers: answer the calls of the other end, by method. One that returns an awaitable runs as a task.
        """
        self._socket = sock
        self._handlers = handlers
        self._transport: asyncio.Transport | None = None
        self._numbers = itertools.count()
        self._calls: dict[int, asyncio.Future[bytes]] = {}
        self._tasks: set[asyncio.Future[bytes]] = set()
        self._closed = asyncio.Event()

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def open(self) -> None:
        """Connect to the event loop: messages are received and can be sent from now on."""
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_unix_connection(
            lambda: _Reader(self._receive, self._end), sock=self._socket
        )

    async def run(self) -> None:
        """Receive messages until either end closes the channel; opens it if it is not open yet."""
        if self._transport is None:
            await self.open()
        await self._closed.wait()

    def close(self) -> None:
        """Close the channel. Open calls at both ends raise `ChannelClosedError`."""
        if self._transport is not None:
            self._transport.close()
        else:
            self._socket.close()
            self._closed.set()

    async def call(self, method: str, payload: bytes = b"", *, timeout_s: float) -> bytes:
        """Let the other end handle *payload*, and return its answer.

        Raises:
            ChannelClosedError: the channel is closed, or closes meanwhile, or the other end does not read.
            TimeoutError: there is no answer after *timeout_s* seconds.
            RemoteCallError: the handler failed.
        """
        number = next(self._numbers)
        if not self._send(_Message(_Kind.CALL, number, method, payload)):
            raise ChannelClosedError
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        finally:
            del self._calls[number]

    def notify(self, method: str, payload: bytes = b"") -> bool:
        """Send *payload* without waiting for an answer; return whether it was sent."""
        return self._send(_Message(_Kind.NOTICE, 0, method, payload))

    def _send(self, message: _Message) -> bool:
        transport = self._transport
        if transport is None or transport.is_closing() or transport.get_write_buffer_size() > MAX_WAITING_BYTES:
            return False
        body = _ENCODER.encode(message)
        transport.write(len(body).to_bytes(LENGTH_BYTES) + body)
        return True

    def _receive(self, body: bytes) -> None:
        message = _DECODER.decode(body)
        if message.kind in (_Kind.CALL, _Kind.NOTICE):
            self._handle(message)
            return
        answer = self._calls.get(message.number)
        if answer is None or answer.done():  # the caller has stopped waiting
            return
        if message.kind is _Kind.ANSWER:
            answer.set_result(message.payload)
        else:
            answer.set_exception(RemoteCallError(message.payload.decode()))

    def _handle(self, message: _Message) -> None:
        try:
            result = self._handlers[message.method](message.payload)
        except Exception as error:  # noqa: BLE001 - the other end must get an answer
            self._fail(message, error)
            return
        if isinstance(result, bytes):
            self._answer(message, result)
            return
        task = asyncio.ensure_future(result)
        self._tasks.add(task)

        def finish(task: asyncio.Future[bytes]) -> None:
            self._tasks.discard(task)
            if task.cancelled():
                return
            if (error := task.exception()) is not None:
                self._fail(message, error)
            else:
                self._answer(message, task.result())

        task.add_done_callback(finish)

    def _answer(self, message: _Message, payload: bytes) -> None:
        if message.kind is _Kind.CALL:
            self._send(_Message(_Kind.ANSWER, message.number, "", payload))

    def _fail(self, message: _Message, error: BaseException) -> None:
        log.error("channel_call_failed", method=message.method, exc_info=error)
        if message.kind is _Kind.CALL:
            self._send(_Message(_Kind.FAILURE, message.number, "", type(error).__name__.encode()))

    def _end(self) -> None:
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(ChannelClosedError())
        for task in self._tasks:
            task.cancel()
        self._closed.set()


class _Reader(asyncio.Protocol):
    """Cuts what arrives into messages."""

    def __init__(self, receive: Callable[[bytes], None], end: Callable[[], None]) -> None:
        self._receive = receive
        self._end = end
        self._buffer = bytearray()
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= LENGTH_BYTES:
            length = int.from_bytes(self._buffer[start : start + LENGTH_BYTES])
            if length > MAX_MESSAGE_BYTES:
                self._close("a message is too long")
                return
            end = start + LENGTH_BYTES + length
            if len(self._buffer) < end:
                break
            try:
                self._receive(bytes(self._buffer[start + LENGTH_BYTES : end]))
            except msgspec.MsgspecError as error:
                self._close(str(error))
                return
            start = end
        del self._buffer[:start]

    def _close(self, reason: str) -> None:
        log.error("channel_broken", reason=reason)
        if self._transport is not None:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._end()
