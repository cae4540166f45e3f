"""Sends open connections from one process to another, with short messages in the same order, over a Unix socket pair.

The system keeps a connection that was sent and not received yet: it stays open although its sender has closed its own
descriptor, and any process with the receiving end may receive it.
"""

import array
import socket
import struct
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum

_MESSAGE = struct.Struct("!BI")
_READ_BYTES = 512 * _MESSAGE.size
_MAX_DESCRIPTORS = 64
_MAX_UNSENT = 1 << 20
_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # not on macOS


class Message(IntEnum):
    """What a message says. Of `NEW`, `KEPT` and `RETURNED_...`, each comes with one connection."""

    NEW = 1
    """To a worker: serve this connection, on which nothing was read yet."""
    KEPT = 2
    """To a worker: serve this connection, which another worker has kept alive between two requests."""
    ASK = 3
    """To a worker: say `TAKES` as soon as you read this."""
    RETIRE = 4
    """To a worker: end when no connection is left."""
    RETURN = 10
    """To a worker: return as many connections as the number says, as soon as nothing has begun on them."""
    TAKES = 5
    """From a worker: it takes connections."""
    STOPS = 9
    """From a worker: it ends, and takes no more."""
    CLOSED = 6
    """From a worker: this connection has ended."""
    RETURNED_NEW = 7
    """From a worker: another worker shall serve this connection, on which nothing was read yet."""
    RETURNED_KEPT = 8
    """From a worker: another worker shall serve this connection, which is kept alive between two requests."""


_WITH_CONNECTION = frozenset({Message.NEW, Message.KEPT, Message.RETURNED_NEW, Message.RETURNED_KEPT})


@dataclass(frozen=True, slots=True)
class Received:
    """One message. *descriptor* is None if the message has no connection, or if it was lost for want of open files."""

    message: Message
    connection: int
    descriptor: int | None = None


class HandoverChannel:
    """One end of the pair. Not thread-safe."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)  # noqa: FBT003 - as the standard library's own
        self.sock = sock
        self._unsent = bytearray()
        self._incomplete = b""
        self._descriptors: deque[int | None] = deque()

    def send(self, message: Message, connection: int = 0) -> None:
        """Send *message*; what the socket has no room for is sent by `flush`.

        Raises:
            OSError: the other end was closed, or has not read for so long that a megabyte waits.
        """
        self._unsent += _MESSAGE.pack(message, connection)
        if len(self._unsent) > _MAX_UNSENT:
            raise BlockingIOError
        self.flush()

    def queue(self, message: Message, connection: int = 0) -> None:
        """Send *message* with the next `flush`."""
        self._unsent += _MESSAGE.pack(message, connection)

    def flush(self) -> bool:
        """Send what waits, and return whether all of it was sent.

        Raises:
            OSError: the other end was closed.
        """
        with suppress(BlockingIOError, InterruptedError):
            while self._unsent:
                del self._unsent[: self.sock.send(self._unsent)]
        return not self._unsent

    def send_connection(self, message: Message, connection: int, descriptor: int) -> bool:
        """Send *message* with an open connection; return False if the socket has no room for it now.

        Raises:
            OSError: the other end was closed, or too many descriptors are on their way.
        """
        if not self.flush():
            return False
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", (descriptor,)))]
        try:
            self.sock.sendmsg((_MESSAGE.pack(message, connection),), rights)
        except (BlockingIOError, InterruptedError):
            return False
        return True

    def receive(self) -> list[Received] | None:
        """Return the messages of one read, an empty list if there is none now, or None after the other end's end."""
        try:
            data, control, flags, _ = self.sock.recvmsg(
                _READ_BYTES, socket.CMSG_SPACE(4 * _MAX_DESCRIPTORS), _CLOSE_ON_EXEC
            )
        except (BlockingIOError, InterruptedError):
            return []
        except OSError:
            return None
        if not data:
            return None
        for level, kind, rights in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(rights[: len(rights) // numbers.itemsize * numbers.itemsize])
                self._descriptors.extend(numbers)
        if flags & socket.MSG_CTRUNC:  # no more files may be open, so the system has closed the last one
            self._descriptors.append(None)
        return self._split(self._incomplete + data)

    def _split(self, data: bytes) -> list[Received]:
        whole = len(data) // _MESSAGE.size * _MESSAGE.size
        self._incomplete = data[whole:]
        return [self._received(*fields) for fields in _MESSAGE.iter_unpack(data[:whole])]

    def _received(self, code: int, connection: int) -> Received:
        message = Message(code)
        if message not in _WITH_CONNECTION:
            return Received(message, connection)
        return Received(message, connection, self._descriptors.popleft() if self._descriptors else None)

    @property
    def is_open(self) -> bool:
        return self.sock.fileno() >= 0

    def close(self) -> None:
        """Close this end of the pair."""
        self.sock.close()
