"""Small servers that run behind a proxy in place of the service, each in a thread of the test."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.support.proxies import ProxyProcess, nginx, running_proxy

HEADERS_OF_STATUS = {
    401: {"WWW-Authenticate": 'Bearer realm="embeddings"'},
    403: {},
    429: {"Retry-After": "17", "RateLimit": '"default";r=0;t=17'},
    500: {},
    504: {},
}
"""Statuses that a proxy must pass on unchanged, and headers of these answers."""
PATIENCE_S = 30
MUCH = b"0123456789abcdef" * 500_000


class Quiet(BaseHTTPRequestHandler):
    """Uses HTTP/1.1, and writes no log."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
        """Write nothing."""

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


class Echo(Quiet):
    """Returns the request's headers as JSON, with the status that is the path."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({name.lower(): self.headers.get_all(name) for name in self.headers}).encode()
        status = int(self.path[1:])
        fixed = {"Content-Type": "application/problem+json", "Content-Length": str(len(body))}
        self.begin(status, {**fixed, **HEADERS_OF_STATUS.get(status, {})})
        self.wfile.write(body)


class Named(Quiet):
    """Returns the address at which it was called, and closes the connection."""

    def do_GET(self) -> None:
        body = str(self.connection.getsockname()[0]).encode()
        self.begin(200, {"Content-Type": "text/plain", "Content-Length": str(len(body)), "Connection": "close"})
        self.wfile.write(body)


class Gated(Quiet):
    """Starts an answer, and continues when the test opens the gate.

    `/stream?TYPE` sends one line, waits for the gate, and sends another line. `/much` sends eight megabytes at once,
    and sets `written` when all of it is sent.
    """

    gate: threading.Event
    begun: threading.Event
    written: threading.Event

    def do_GET(self) -> None:
        what, _, media_type = self.path.partition("?")
        if what == "/stream":
            # the headers that the service sends with each stream
            self.begin(200, {"Content-Type": media_type, "X-Accel-Buffering": "no", "Transfer-Encoding": "chunked"})
            self._send_chunk(b"first\n")
            self.begun.set()
            self.gate.wait(PATIENCE_S)
            self._send_chunk(b"second\n")
            self._send_chunk(b"")
        else:
            self.begin(200, {"Content-Type": "application/json", "Content-Length": str(len(MUCH))})
            self.wfile.write(MUCH)
            self.written.set()

    def _send_chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))


@contextmanager
def serving(handler: type[Quiet], host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Run a server with this handler until the end of the block; yield its `host:port`."""
    with ThreadingHTTPServer((host, port), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"{host}:{server.server_port}"
        finally:
            server.shutdown()


@contextmanager
def echoing(
    folder: Path,
    changes: Mapping[str, str] | None = None,
    *,
    source: Path | None = None,
    command: str | None = None,
) -> Iterator[ProxyProcess]:
    """Run an nginx before a server that returns what it receives."""
    command = command or nginx()  # skips the test if nginx is missing, before anything is started
    with serving(Echo) as address, running_proxy(folder, [address], changes, source=source, command=command) as proxy:
        yield proxy
