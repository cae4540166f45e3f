"""A server that records the texts it is sent: what benchmarks and drills send to a service."""

import json
import re
import socketserver
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class Recorder(socketserver.ThreadingTCPServer):
    """A real server that counts the texts it is sent, and gives every request the same answer.

    Attributes:
        texts: how often each came.
        ignored: bodies whose texts do not count.
    """

    allow_reuse_address = True
    request_queue_size = 512

    def __init__(self, answer: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.port = int(self.server_address[1])
        self.answer = answer
        self.texts: Counter[str] = Counter()
        self.ignored: set[bytes] = set()
        self.lock = threading.Lock()

    def count(self, body: bytes) -> None:
        if body in self.ignored:
            return
        content: dict[str, Any] = json.loads(body)
        texts = content.get("texts") or content.get("input") or content.get("inputs") or content["text"]
        with self.lock:
            self.texts.update([texts] if isinstance(texts, str) else texts)

    def finish(self) -> None:
        """End the server once all its connections have ended. All texts have been counted then."""
        self.shutdown()
        self.server_close()

    @property
    def repeated(self) -> dict[str, int]:
        """Return how often each text came that came more than once. Call `finish` first."""
        return {text: count for text, count in self.texts.items() if count > 1}


class _Connection(socketserver.StreamRequestHandler):
    server: Recorder
    timeout = 5.0

    def handle(self) -> None:
        try:
            while self._answer_one():
                pass
        except (ConnectionError, TimeoutError):
            pass

    def _answer_one(self) -> bool:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            if not (line := self.rfile.readline()):
                return False
            head += line
        length = int((re.findall(rb"(?i)content-length: (\d+)", head) or [b"0"])[0])
        body = self.rfile.read(length)
        if len(body) == length > 0:
            self.server.count(body)
        self.wfile.write(self.server.answer)
        return True


@contextmanager
def recording(answer: bytes = OK) -> Iterator[Recorder]:
    server = Recorder(answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.finish()
        thread.join()
