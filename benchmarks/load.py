"""The load generator, a process of its own: raw non-blocking sockets, requests built before the clock starts.

`python -m benchmarks.load` reads a `Job` as JSON from stdin, runs it, and writes a `Report` as JSON to stdout.
"""

import itertools
import json
import selectors
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.cpu import cpu_s_of, cpu_s_of_all
from benchmarks.texts import Stream

PREBUILT_TEXTS_PER_S = 1000
BYTES_AT_ONCE = 1 << 18
ANSWER_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Job:
    """What to send: every stream's clients at once, for *warm_s* uncounted and then *seconds* counted seconds."""

    port: int
    server_pid: int
    streams: list[Stream]
    seed: str
    warm_s: float
    seconds: float


@dataclass(slots=True)
class StreamReport:
    """What became of one stream."""

    latencies_ms: list[float] = field(default_factory=list)
    """Of the requests sent inside the window."""
    shares: list[tuple[int, float]] = field(default_factory=list)
    """(number of the request, share of its time inside the window): a request across the edge counts in part."""
    answered: int = 0
    """Requests answered in all: warm-up, window and the ones still under way at its end."""


@dataclass(frozen=True, slots=True)
class Report:
    """What one job measured."""

    window_s: float
    server_cpu_s: float
    own_cpu_s: float
    all_cpu_s: float
    """Of everything on the machine: what is neither the server's nor ours was others' and disturbed them."""
    streams: list[StreamReport]


class RefusedError(Exception):
    """The server answered something other than 200."""


class Client:
    """One keep-alive connection and the request under way on it."""

    def __init__(self, stream: int, port: int) -> None:
        self.stream = stream
        self.number = -1
        self.sent_at = 0.0
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(0)
        self.unsent = memoryview(b"")
        self._head = b""
        self._body_left = -1

    def begin(self, number: int, request: bytes) -> None:
        self.number = number
        self.unsent = memoryview(request)
        self._head, self._body_left = b"", -1
        self.sent_at = time.perf_counter()
        self.send()

    def send(self) -> None:
        self.unsent = self.unsent[self.socket.send(self.unsent) :]

    def is_answered_after_reading(self) -> bool:
        received = self.socket.recv(BYTES_AT_ONCE)
        if not received:
            raise RefusedError("The server closed a connection that awaited an answer.")
        if self._body_left >= 0:
            self._body_left -= len(received)
        else:
            self._head += received
            self._read_head()
        return self._body_left == 0

    def _read_head(self) -> None:
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            return
        if self._head[9:12] != b"200":
            raise RefusedError(self._refusal(end))
        _, found, after = self._head[: end + 2].lower().partition(b"\r\ncontent-length:")
        if not found:
            raise RefusedError("The answer has no Content-Length.")
        self._body_left = int(after.split(b"\r\n", 1)[0]) - (len(self._head) - end - 4)

    def _refusal(self, end: int) -> str:
        """Tell the status and how the body begins, which may come a moment later."""
        status, body = self._head[9:end].split(b"\r\n", 1)[0], self._head[end + 4 :]
        if not body:
            self.socket.settimeout(1)
            with suppress(OSError):
                body = self.socket.recv(BYTES_AT_ONCE)
        return f"{status.decode('latin-1')} {body[:300].decode('utf-8', 'replace')}"


class Load:
    """Owns the connections and the clock of one job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._requests = [prebuilt(stream, job) for stream in job.streams]
        self._reports = [StreamReport() for _ in job.streams]
        self._selector = selectors.DefaultSelector()
        self._from = 0.0
        self._to = 0.0

    def run(self) -> Report:
        streams = [n for n, stream in enumerate(self._job.streams) for _ in range(stream.clients)]
        clients = [Client(n, self._job.port) for n in streams]
        self._from = time.perf_counter() + self._job.warm_s
        self._to = self._from + self._job.seconds
        for client in clients:
            self._selector.register(client.socket, selectors.EVENT_READ, client)
            self._next(client)
        self._serve_until(self._from)
        before = self._clocks()
        self._serve_until(self._to)
        window_s, server_s, own_s, all_s = (now - then for now, then in zip(self._clocks(), before, strict=True))
        self._serve_until(self._to + ANSWER_TIMEOUT_S)
        return Report(window_s, server_s, own_s, all_s, self._reports)

    def _clocks(self) -> tuple[float, float, float, float]:
        return time.perf_counter(), cpu_s_of(self._job.server_pid), time.process_time(), cpu_s_of_all()

    def _serve_until(self, end: float) -> None:
        while self._selector.get_map() and (left := end - time.perf_counter()) > 0:
            for key, events in self._selector.select(left):
                self._attend(key.data, events)
        if self._selector.get_map() and end > self._to:
            raise RefusedError(f"A request was not answered within {ANSWER_TIMEOUT_S:.0f} s.")

    def _attend(self, client: Client, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            client.send()
            self._watch(client)
        if events & selectors.EVENT_READ and client.is_answered_after_reading():
            self._note(client, time.perf_counter())
            self._next(client)

    def _next(self, client: Client) -> None:
        if time.perf_counter() >= self._to:
            self._selector.unregister(client.socket)
            client.socket.close()
            return
        client.begin(*next(self._requests[client.stream]))
        self._watch(client)

    def _watch(self, client: Client) -> None:
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.unsent else 0)
        if self._selector.get_key(client.socket).events != wanted:
            self._selector.modify(client.socket, wanted, client)

    def _note(self, client: Client, now: float) -> None:
        report, latency_s = self._reports[client.stream], now - client.sent_at
        report.answered += 1
        inside_s = min(now, self._to) - max(client.sent_at, self._from)
        if inside_s > 0:
            report.shares.append((client.number, inside_s / latency_s))
        if client.sent_at >= self._from:
            report.latencies_ms.append(latency_s * 1000)


def prebuilt(stream: Stream, job: Job) -> Iterator[tuple[int, bytes]]:
    """Give numbered requests, as many built beforehand as a fast server may take; beyond that, built when asked for."""
    requests = (http_request(texts) for texts in stream.requests(job.seed))
    count = int((job.warm_s + job.seconds) * PREBUILT_TEXTS_PER_S / stream.texts_per_request) + 1
    return enumerate(itertools.chain(list(itertools.islice(requests, count)), requests))


def http_request(texts: list[str]) -> bytes:
    path, content = ("/embed", {"text": texts[0]}) if len(texts) == 1 else ("/embed/batch", {"texts": texts})
    body = json.dumps(content).encode()
    head = [
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


def job_of(plain: dict[str, Any]) -> Job:
    return Job(**{**plain, "streams": [Stream(**stream) for stream in plain["streams"]]})


def report_of(plain: dict[str, Any]) -> Report:
    return Report(**{**plain, "streams": [StreamReport(**stream) for stream in plain["streams"]]})


def main() -> None:
    try:
        answer = asdict(Load(job_of(json.load(sys.stdin))).run())
    except (RefusedError, OSError, ValueError) as error:
        answer = {"error": str(error) or type(error).__name__}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
