"""The way out of a connection: an answer's head leaves together with its body, in one system call and one packet."""

import asyncio
from typing import Protocol

STATUS_LINE = b"HTTP/1.1 "


class Transport(Protocol):
    """What uvicorn's cycle of request and answer uses of a transport, and how both parts leave at once."""

    def write(self, data: bytes, /) -> None: ...
    def writelines(self, data: list[bytes], /) -> None: ...
    def is_closing(self) -> bool: ...
    def close(self) -> None: ...


class ResponseWriter:
    """Stands before a connection's transport, for answers only.

    uvicorn writes the head and the body of an answer one after the other. Each would be a system call of its own, which
    wakes the caller, too. So a head waits for what follows it in the same step of the loop; where nothing does, as with
    an answer that comes piece by piece, it goes out alone in the next step.
    """

    def __init__(self, transport: Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""

    def write(self, data: bytes) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.writelines([head, data])
        elif data.startswith(STATUS_LINE):
            self._head = data
            self._loop.call_soon(self.flush)
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """Let a head go that nothing follows now."""
        if self._head and not self._transport.is_closing():
            self._transport.write(self._head)
        self._head = b""

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self.flush()
        self._transport.close()
