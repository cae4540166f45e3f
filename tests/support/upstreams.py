"""Small servers that stand behind a proxy in place of the service, each in a thread of the test's own."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.support.proxies import ProxyProcess, nginx, running_proxy

TOLD = {
    401: {"WWW-Authenticate": 'Bearer realm="embeddings"'},
    403: {},
    429: {"Retry-After": "17", "RateLimit": '"default";r=0;t=17'},
    500: {},
    504: {},
}
"""Answers that a proxy must leave alone, and the headers that stand in them."""
PATIENCE_S = 30
MUCH = b"0123456789abcdef" * 500_000


class Quiet(BaseHTTPRequestHandler):
    """Speaks HTTP/1.1, and writes no log."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the base class has it
        """Write nothing."""

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


class Echo(Quiet):
    """Answers with the headers that it got, and with the status that the path asks for."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({name.lower(): self.headers.get_all(name) for name in self.headers}).encode()
        status = int(self.path[1:])
        fixed = {"Content-Type": "application/problem+json", "Content-Length": str(len(body))}
        self.begin(status, {**fixed, **TOLD.get(status, {})})
        self.wfile.write(body)


class Gated(Quiet):
    """Begins an answer, and goes on with it when a test lets it.

    `/stream?TYPE` sends one line, waits for the gate, and sends another one; `/much` sends eight megabytes at once, and
    then tells that nobody kept it waiting.
    """

    gate: threading.Event
    begun: threading.Event
    written: threading.Event

    def do_GET(self) -> None:
        what, _, media_type = self.path.partition("?")
        if what == "/stream":
            # As the service says it with each stream.
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
def serving(handler: type[Quiet]) -> Iterator[str]:
    """Its `host:port`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@contextmanager
def echoing(
    folder: Path, changes: Mapping[str, str] | None = None, *, source: Path | None = None
) -> Iterator[ProxyProcess]:
    """An nginx before a server that tells what it was sent."""
    nginx()  # without it, nothing needs to be started
    with serving(Echo) as address, running_proxy(folder, [address], changes, source=source) as proxy:
        yield proxy
