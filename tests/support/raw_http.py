"""HTTP over plain sockets, for requests that no client library sends, and one client for all others."""

import json
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import httpx

from tests.support.servers import ServerProcess

PATIENCE_S = 60
"""How long a socket waits. Much longer than any answer takes: a test that waits so long has found a hang."""
BODY = b'{"text": "one"}'
EMBED = b"POST /embed HTTP/1.1\r\nHost: me\r\nContent-Type: application/json\r\n"
"""The begin of a head; the length of the body is missing."""
WHOLE = EMBED + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
PROBE = b"GET /health/live HTTP/1.1\r\nHost: me\r\n\r\n"
LAST_PROBE = PROBE[:-2] + b"Connection: close\r\n\r\n"

CLIENT = httpx.Client(timeout=PATIENCE_S, limits=httpx.Limits(max_keepalive_connections=0))
"""For ordinary requests to any server. It keeps no connection open; a client per request would take 25 ms each."""

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers with lower-case names, and body."""


def connected(server: ServerProcess, *, receive_buffer: int | None = None, source: str = "127.0.0.1") -> socket.socket:
    """Connect to *server*, from the address *source* of this machine.

    With a small *receive_buffer* (bytes), large answers fill the server's buffers.
    """
    connection = socket.socket()
    connection.bind((source, 0))
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(PATIENCE_S)
    connection.connect(("127.0.0.1", httpx.URL(server.url).port))
    return connection


@contextmanager
def many_connected(server: ServerProcess, count: int, **options: Any) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        yield [stack.enter_context(connected(server, **options)) for _ in range(count)]


def send(connection: socket.socket, data: bytes) -> None:
    """Send *data* as far as the server reads it."""
    with suppress(ConnectionError):
        connection.sendall(data)


def receive_all(connection: socket.socket) -> bytes:
    """Return everything until the server closes the connection."""
    pieces = []
    with suppress(ConnectionError):
        while piece := connection.recv(65536):
            pieces.append(piece)
    return b"".join(pieces)


def receive_answer(connection: socket.socket) -> Answer:
    """Return the next answer, and leave what follows it in the socket."""
    with connection.makefile("rb", buffering=0) as stream:
        status = int(stream.readline().split()[1])
        lines = iter(lambda: stream.readline().decode("latin-1").strip(), "")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    body = b""
    while missing := int(headers["content-length"]) - len(body):
        piece = connection.recv(missing)
        assert piece, "The connection ended within an answer."
        body += piece
    return status, headers, body


def receive_answers(connection: socket.socket) -> list[Answer]:
    """Return all answers until the server closes the connection."""
    data = receive_all(connection)
    answers = []
    while data:
        head, _, rest = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(headers["content-length"])
        answers.append((int(first.split()[1]), headers, rest[:length]))
        data = rest[length:]
    return answers


def statuses_of(connections: Sequence[socket.socket], request: bytes = PROBE) -> list[int]:
    """Send *request* on each connection, and return the statuses; the server has read what was sent before."""
    for connection in connections:
        send(connection, request)
    return [receive_answer(connection)[0] for connection in connections]


def wait_until_closed(server: ServerProcess) -> None:
    """Wait until *server* knows of the end of all connections that this process has closed."""
    with connected(server) as last:
        send(last, LAST_PROBE)
        receive_all(last)


def rejected(answer: Answer, status: int, code: str) -> dict[str, Any]:
    """Check that *answer* is this problem and ends its connection; return the problem document."""
    given, headers, body = answer
    problem: dict[str, Any] = json.loads(body)
    assert (given, problem["status"], problem["code"]) == (status, status, code)
    assert headers["content-type"] == "application/problem+json"
    assert headers["connection"] == "close"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-request-id"] == problem["request_id"]
    return problem
