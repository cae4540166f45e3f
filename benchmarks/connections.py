"""Keep-alive connections of load generators: one request at a time on each, on raw non-blocking sockets."""

import selectors
import socket
import time
from contextlib import suppress

from benchmarks.formats import Target

RECEIVE_BYTES = 1 << 18
LAST_CHUNK = b"\r\n0\r\n\r\n"
"""Ends a chunked answer. JSON contains no line breaks of this kind, and servers send no trailers with it."""


class RefusedError(Exception):
    """The server answered with a status other than 200, or closed the connection."""


class Client:
    """One keep-alive connection and its current request."""

    def __init__(self, stream: int, target: Target) -> None:
        self.stream = stream
        self.number = -1
        self.sent_at = 0.0
        self.is_last = False
        self.socket = socket.create_connection((target.host, target.port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(0)
        self.unsent = memoryview(b"")
        self._head = b""
        self._body_left = -1
        self._is_chunked = False
        self._end = b""

    def begin(self, number: int, request: bytes) -> None:
        self.number = number
        self.unsent = memoryview(request)
        self._head, self._body_left, self._is_chunked = b"", -1, False
        self.sent_at = time.perf_counter()
        self.send()

    def send(self) -> None:
        self.unsent = self.unsent[self.socket.send(self.unsent) :]

    def read(self) -> bool:
        """Read what has arrived, and return whether the answer is complete."""
        received = self.socket.recv(RECEIVE_BYTES)
        if not received:
            raise RefusedError("The server closed a connection with an unanswered request.")
        if self._body_left >= 0:
            self._body_left -= len(received)
        elif self._is_chunked:
            self._end = (self._end + received)[-len(LAST_CHUNK) :]
        else:
            self._head += received
            self._read_head()
        return self._body_left == 0 or (self._is_chunked and self._end == LAST_CHUNK)

    def _read_head(self) -> None:
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            return
        if self._head[9:12] != b"200":
            raise RefusedError(self._refusal(end))
        head = self._head[: end + 2].lower()
        self.is_last = b"\r\nconnection: close\r\n" in head
        self._is_chunked = b"\r\ntransfer-encoding: chunked\r\n" in head
        if self._is_chunked:
            self._end = self._head[end + 2 :][-len(LAST_CHUNK) :]
        else:
            self._body_left = content_length(head) - (len(self._head) - end - 4)

    def header(self, name: bytes) -> bytes:
        """Return a header of the answer, *name* in lower case; empty: it has none."""
        head = self._head[: self._head.find(b"\r\n\r\n") + 2].lower()
        return head.partition(b"\r\n" + name + b":")[2].partition(b"\r\n")[0].strip()

    def _refusal(self, end: int) -> str:
        """Return the status and the beginning of the body, which may come a moment later."""
        status, body = self._head[9:end].split(b"\r\n", 1)[0], self._head[end + 4 :]
        if not body:
            self.socket.settimeout(1)
            with suppress(OSError):
                body = self.socket.recv(RECEIVE_BYTES)
        return f"{status.decode('latin-1')} {body[:300].decode('utf-8', 'replace')}"


class Connections:
    """Owns the open connections to one server. True while there is one."""

    def __init__(self, target: Target) -> None:
        """Open none to *target* yet."""
        self._target = target
        self._selector = selectors.DefaultSelector()

    def __bool__(self) -> bool:
        return bool(self._selector.get_map())

    def open(self, stream: int) -> Client:
        """Return a new connection for requests of *stream*."""
        client = Client(stream, self._target)
        self._selector.register(client.socket, selectors.EVENT_READ, client)
        return client

    def send(self, client: Client, number: int, request: bytes) -> None:
        """Send the next request of *client*, or as much of it as its socket accepts now."""
        client.begin(number, request)
        self._watch(client)

    def wait(self, timeout_s: float) -> list[tuple[Client, int]]:
        """Return the clients that can send or receive, for `progress`; empty: none can for *timeout_s*."""
        return [(key.data, events) for key, events in self._selector.select(timeout_s)]

    def progress(self, client: Client, events: int) -> bool:
        """Send and receive what is possible now; return whether the answer is complete.

        Raises:
            RefusedError: the answer is not a 200, or the server closed the connection.
        """
        if events & selectors.EVENT_WRITE:
            client.send()
            self._watch(client)
        return bool(events & selectors.EVENT_READ) and client.read()

    def usable(self, client: Client) -> Client:
        """Return *client*, or a new one in its place if the server closes its connection."""
        if not client.is_last:
            return client
        self.close(client)
        return self.open(client.stream)

    def close(self, client: Client) -> None:
        """Close one connection."""
        self._selector.unregister(client.socket)
        client.socket.close()

    def close_all(self) -> None:
        """Close all connections."""
        for key in list(self._selector.get_map().values()):
            key.data.socket.close()
        self._selector.close()

    def _watch(self, client: Client) -> None:
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.unsent else 0)
        if self._selector.get_key(client.socket).events != wanted:
            self._selector.modify(client.socket, wanted, client)


def content_length(head: bytes) -> int:
    """Return the Content-Length in the head of an answer; 0: it has none."""
    _, found, after = head.lower().partition(b"\r\ncontent-length:")
    return int(after.split(b"\r\n", 1)[0]) if found else 0
