"""A load generator that does not wait for answers: requests go out by the clock, however slow the server is.

`python -m benchmarks.openloop` reads an `OpenJob` as JSON from stdin, runs it, and writes an `OpenReport` to stdout. It
is one process on raw non-blocking sockets: a request under way has a connection of its own, kept for later ones.
"""

import itertools
import json
import select
import socket
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.cpu import cpu_s_of, raise_open_files
from benchmarks.load import http_request
from benchmarks.texts import Kind, distinct_texts

PREBUILT = 512
NUMBER = "00000000"
"""Stands at the end of each prebuilt text and is replaced by the request's number, so that no text comes twice."""
BYTES_AT_ONCE = 1 << 18
IDLE_S = 3.0
"""A connection idle for longer is not used again: the server may be closing it at this very moment."""

SPARE_FILES = 64
"""What this process may need besides connections."""


@dataclass(frozen=True, slots=True)
class OpenStream:
    """One kind of request: *rate* a second, or as soon as one of *clients* is answered (a closed loop).

    A client who gets no answer at all sends nothing more.
    """

    kind: Kind
    texts_per_request: int
    rate: float = 0.0
    clients: int = 0


@dataclass(frozen=True, slots=True)
class OpenJob:
    """What to send for *seconds*; then the answers still due are awaited, for *patience_s* at most."""

    port: int
    server_pid: int
    streams: list[OpenStream]
    seed: str
    seconds: float
    patience_s: float = 60.0


@dataclass(slots=True)
class StreamAnswers:
    """What became of one stream."""

    sent: int = 0
    latencies_ms: dict[str, list[float]] = field(default_factory=dict)
    """By status and problem code, such as `200` and `503 overloaded`, in the order of the answers."""
    in_time: int = 0
    """Answers of 200 that came while requests were being sent."""
    failures: dict[str, int] = field(default_factory=dict)
    """Requests without an answer, by kind."""

    def fail(self, kind: str) -> None:
        self.failures[kind] = self.failures.get(kind, 0) + 1


@dataclass(frozen=True, slots=True)
class OpenReport:
    """What one job saw.

    Attributes:
        late_ms: by how much requests went out after their time: the generator's fault, not the server's.
        last_answer_s: when the last answer came, after the last request was due.
    """

    streams: list[StreamAnswers]
    late_ms: list[float]
    server_cpu_s: float
    own_cpu_s: float
    last_answer_s: float


class HttpProtocol:
    """A keep-alive connection and the request under way on it."""

    __slots__ = ("due", "expected", "received", "sent_at", "socket", "stream", "unsent", "used_at")

    def __init__(self, port: int) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.socket.setblocking(False)  # noqa: FBT003 - the name of the method says what False means
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.connect_ex(("127.0.0.1", port))
        self.used_at = self.sent_at = 0.0
        self.stream = -1
        self.unsent = b""
        self.received = b""
        self.expected = -1

    def send(self) -> bool:
        """Whether all is sent."""
        with suppress(BlockingIOError):
            self.unsent = self.unsent[self.socket.send(self.unsent) :]
        return not self.unsent

    def is_answered_after_reading(self) -> bool:
        """Raise ConnectionError where the server closed it."""
        received = self.socket.recv(BYTES_AT_ONCE)
        if not received:
            raise ConnectionAbortedError
        self.received = self.received + received if self.received else received
        if self.expected < 0 and (end := self.received.find(b"\r\n\r\n")) >= 0:
            head = self.received[: end + 2].lower()
            _, found, after = head.partition(b"\r\ncontent-length:")
            self.expected = end + 4 + (int(after.split(b"\r\n", 1)[0]) if found else 0)
        return 0 <= self.expected <= len(self.received)

    def outcome(self) -> tuple[str, bool]:
        """The status (and the code of a problem), and whether the connection stays."""
        status = self.received[9:12].decode("latin-1")
        if status == "200":
            return status, True
        head, _, body = self.received.partition(b"\r\n\r\n")
        code = body.partition(b'"code":"')[2].partition(b'"')[0].decode("latin-1")
        return f"{status} {code}".strip(), b"connection: close" not in head.lower()


class Generator:
    """Owns the connections and the clock of one job."""

    def __init__(self, job: OpenJob) -> None:
        self._job = job
        self._bodies = [prebuilt(stream, job.seed) for stream in job.streams]
        self._number = itertools.count()
        self._answers = [StreamAnswers() for _ in job.streams]
        self._late_ms: list[float] = []
        self._epoll = select.epoll()
        self._open: dict[int, HttpProtocol] = {}
        self._idle: list[HttpProtocol] = []
        self._under_way = 0
        self._most_under_way = raise_open_files() - SPARE_FILES
        self._last_answer = 0.0
        self._end = 0.0

    def run(self) -> OpenReport:
        before = cpu_s_of(self._job.server_pid), time.process_time()
        start = time.perf_counter()
        self._end = start + self._job.seconds
        due = [start + self._first_pause(stream) for stream in self._job.streams]
        for number, stream in enumerate(self._job.streams):
            for _ in range(stream.clients):
                self._begin(number, start)
        while (now := time.perf_counter()) < self._end:
            for number, stream in enumerate(self._job.streams):
                while stream.rate and due[number] <= now:
                    self._begin(number, due[number])
                    due[number] += 1 / stream.rate
            wait_s = min([self._end, *(at for at, one in zip(due, self._job.streams, strict=True) if one.rate)]) - now
            self._attend(max(0.0, wait_s))
        used = cpu_s_of(self._job.server_pid) - before[0], time.process_time() - before[1]
        while self._under_way and time.perf_counter() < self._end + self._job.patience_s:
            self._attend(0.1)
        for connection in list(self._open.values()):
            if connection.stream >= 0:
                self._fail(connection, "no answer")
        return OpenReport(self._answers, self._late_ms, *used, max(0.0, self._last_answer - self._end))

    def _first_pause(self, stream: OpenStream) -> float:
        return 1 / stream.rate if stream.rate else 0.0

    def _begin(self, stream: int, due: float) -> None:
        prefix, suffix = self._bodies[stream][(number := next(self._number)) % PREBUILT]
        now = time.perf_counter()
        self._answers[stream].sent += 1
        self._late_ms.append((now - due) * 1e3)
        if self._under_way >= self._most_under_way:
            self._answers[stream].fail("no connection left")
            return
        connection = self._connection(now)
        connection.stream, connection.sent_at = stream, now
        connection.unsent = b"%s%08d%s" % (prefix, number, suffix)
        connection.received, connection.expected = b"", -1
        self._under_way += 1
        self._send(connection)

    def _connection(self, now: float) -> HttpProtocol:
        if self._idle:
            connection = self._idle.pop()
            if now - connection.used_at < IDLE_S:
                return connection
            for stale in [connection, *self._idle]:
                self._close(stale)
            self._idle.clear()
        connection = HttpProtocol(self._job.port)
        self._open[connection.socket.fileno()] = connection
        self._epoll.register(connection.socket.fileno(), select.EPOLLIN)
        return connection

    def _send(self, connection: HttpProtocol) -> None:
        try:
            is_sent = connection.send()
        except OSError as error:
            self._fail(connection, type(error).__name__)
            return
        events = select.EPOLLIN if is_sent else select.EPOLLIN | select.EPOLLOUT
        if not is_sent:
            self._epoll.modify(connection.socket.fileno(), events)

    def _attend(self, wait_s: float) -> None:
        for descriptor, events in self._epoll.poll(wait_s):
            connection = self._open.get(descriptor)
            if connection is None:
                continue
            if connection.stream < 0:  # idle, and closed by the server
                self._idle.remove(connection)
                self._close(connection)
                continue
            if events & select.EPOLLOUT and connection.unsent:
                self._epoll.modify(descriptor, select.EPOLLIN)
                self._send(connection)
            if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR) and connection.stream >= 0:
                self._read(connection)

    def _read(self, connection: HttpProtocol) -> None:
        try:
            if not connection.is_answered_after_reading():
                return
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(connection, type(error).__name__)
            return
        now, stream = time.perf_counter(), connection.stream
        outcome, stays = connection.outcome()
        answers = self._answers[stream]
        answers.latencies_ms.setdefault(outcome, []).append((now - connection.sent_at) * 1e3)
        answers.in_time += outcome == "200" and now <= self._end
        self._last_answer = now
        self._under_way -= 1
        connection.stream, connection.used_at = -1, now
        if stays:
            self._idle.append(connection)
        else:
            self._close(connection)
        if self._job.streams[stream].clients and now < self._end:
            self._begin(stream, now)

    def _fail(self, connection: HttpProtocol, kind: str) -> None:
        stream = connection.stream
        self._answers[stream].fail(kind)
        self._under_way -= 1
        connection.stream = -1
        self._close(connection)

    def _close(self, connection: HttpProtocol) -> None:
        del self._open[connection.socket.fileno()]
        self._epoll.unregister(connection.socket.fileno())
        connection.socket.close()


def prebuilt(stream: OpenStream, seed: str) -> list[tuple[bytes, bytes]]:
    """Requests, each cut in two where its number goes."""
    texts = distinct_texts(stream.kind, seed)
    requests = []
    for _ in range(PREBUILT):
        chosen = list(itertools.islice(texts, stream.texts_per_request))
        prefix, _, suffix = http_request([*chosen[:-1], f"{chosen[-1]} {NUMBER}"]).rpartition(NUMBER.encode())
        requests.append((prefix, suffix))
    return requests


def job_of(plain: dict[str, Any]) -> OpenJob:
    return OpenJob(**{**plain, "streams": [OpenStream(**stream) for stream in plain["streams"]]})


def report_of(plain: dict[str, Any]) -> OpenReport:
    return OpenReport(**{**plain, "streams": [StreamAnswers(**stream) for stream in plain["streams"]]})


def main() -> None:
    job = job_of(json.load(sys.stdin))
    json.dump(asdict(Generator(job).run()), sys.stdout)


if __name__ == "__main__":
    main()
