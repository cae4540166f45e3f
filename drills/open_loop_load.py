"""Open-loop load generator: sends requests at a fixed rate, without waiting for answers.

`python -m drills.open_loop_load` reads an `OpenLoopJob` as JSON from stdin, runs it, and writes an `OpenLoopReport` to
stdout. It is one process on raw non-blocking sockets: each request has a connection of its own while it waits for its
answer; later requests reuse it.
"""

import itertools
import json
import select
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.connections import RECEIVE_BYTES, content_length
from benchmarks.load import http_request
from benchmarks.machine import cpu_s_of
from benchmarks.processes import BenchError, spawned
from benchmarks.texts import Kind, distinct_texts
from drills.process_limits import raise_open_files_limit

PREBUILT = 512
PLACEHOLDER = "00000000"
"""Ends each text of a prebuilt request. The request's number replaces it, so that no text is sent twice."""
MAX_IDLE_S = 3.0
"""How long a connection may be idle and still be reused. The server may be closing one that is idle for longer."""
SPARE_FILES = 64
"""Open files that this process may need besides connections."""


@dataclass(frozen=True, slots=True)
class OpenLoopStream:
    """One kind of request, sent at *rate* per second, or by *clients* that wait for their answers (a closed loop).

    A client that gets no answer sends nothing more.
    """

    kind: Kind
    texts_per_request: int
    rate: float = 0.0
    clients: int = 0


@dataclass(frozen=True, slots=True)
class OpenLoopJob:
    """What to send for *seconds*. Answers that are missing then are awaited for at most *patience_s*."""

    port: int
    server_pid: int
    streams: list[OpenLoopStream]
    seed: str
    seconds: float
    patience_s: float = 60.0


@dataclass(slots=True)
class StreamAnswers:
    """The answers of one stream.

    Attributes:
        latencies_ms: by status and problem code, such as `200` and `503 overloaded`, in the order of the answers.
        in_time: answers of 200 that came while requests were being sent.
        failures: requests without an answer, by kind.
    """

    sent: int = 0
    latencies_ms: dict[str, list[float]] = field(default_factory=dict)
    in_time: int = 0
    failures: dict[str, int] = field(default_factory=dict)

    def fail(self, kind: str) -> None:
        self.failures[kind] = self.failures.get(kind, 0) + 1


@dataclass(frozen=True, slots=True)
class OpenLoopReport:
    """What one job measured.

    Attributes:
        late_ms: how late each request was sent, which is the generator's fault, not the server's.
        last_answer_s: when the last answer came, in seconds after the end of sending.
    """

    streams: list[StreamAnswers]
    late_ms: list[float]
    server_cpu_s: float
    own_cpu_s: float
    last_answer_s: float


def run_open_loop(job: OpenLoopJob) -> OpenLoopReport:
    """Run the load generator once, in a process of its own."""
    pipe = subprocess.PIPE
    with spawned(["-m", "drills.open_loop_load"], stdin=pipe, stdout=pipe) as process:
        output, _ = process.communicate(json.dumps(asdict(job)))
    if not output:
        raise BenchError("The load generator ended too early. Its output is above.")
    plain = json.loads(output)
    return OpenLoopReport(**{**plain, "streams": [StreamAnswers(**stream) for stream in plain["streams"]]})


class Connection:
    """A keep-alive connection and its current request."""

    __slots__ = ("expected", "received", "sent_at", "socket", "stream", "unsent", "used_at")

    def __init__(self, port: int) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.socket.setblocking(False)  # noqa: FBT003 - the method has this parameter only
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.connect_ex(("127.0.0.1", port))
        self.used_at = self.sent_at = 0.0
        self.stream = -1  # idle
        self.unsent = b""
        self.received = b""
        self.expected = -1

    def send(self) -> bool:
        """Send what the socket accepts, and return whether that is all."""
        with suppress(BlockingIOError):
            self.unsent = self.unsent[self.socket.send(self.unsent) :]
        return not self.unsent

    def read(self) -> bool:
        """Read what has arrived, and return whether the answer is complete.

        Raises:
            ConnectionAbortedError: the server closed the connection.
        """
        received = self.socket.recv(RECEIVE_BYTES)
        if not received:
            raise ConnectionAbortedError
        self.received = self.received + received if self.received else received
        if self.expected < 0 and (end := self.received.find(b"\r\n\r\n")) >= 0:
            self.expected = end + 4 + content_length(self.received[: end + 2])
        return 0 <= self.expected <= len(self.received)

    def outcome(self) -> tuple[str, bool]:
        """Return the status (and the code of a problem), and whether the connection stays open."""
        status = self.received[9:12].decode("latin-1")
        if status == "200":
            return status, True
        head, _, body = self.received.partition(b"\r\n\r\n")
        code = body.partition(b'"code":"')[2].partition(b'"')[0].decode("latin-1")
        return f"{status} {code}".strip(), b"connection: close" not in head.lower()


class Generator:
    """Owns the connections and the clock of one job."""

    def __init__(self, job: OpenLoopJob) -> None:
        self._job = job
        self._requests = [prebuilt(stream, job.seed) for stream in job.streams]
        self._number = itertools.count()
        self._answers = [StreamAnswers() for _ in job.streams]
        self._late_ms: list[float] = []
        self._epoll = select.epoll()
        self._open: dict[int, Connection] = {}
        self._idle: list[Connection] = []
        self._in_flight = 0
        self._max_in_flight = raise_open_files_limit() - SPARE_FILES
        self._last_answer = 0.0
        self._end = 0.0

    def run(self) -> OpenLoopReport:
        before = cpu_s_of(self._job.server_pid), time.process_time()
        start = time.perf_counter()
        self._end = start + self._job.seconds
        due = {n: start + 1 / stream.rate for n, stream in enumerate(self._job.streams) if stream.rate}
        for n, stream in enumerate(self._job.streams):
            for _ in range(stream.clients):
                self._begin(n, start)
        while (now := time.perf_counter()) < self._end:
            for n in list(due):
                while due[n] <= now:
                    self._begin(n, due[n])
                    due[n] += 1 / self._job.streams[n].rate
            self._exchange(max(0.0, min([self._end, *due.values()]) - now))
        used = cpu_s_of(self._job.server_pid) - before[0], time.process_time() - before[1]
        while self._in_flight and time.perf_counter() < self._end + self._job.patience_s:
            self._exchange(0.1)
        for connection in list(self._open.values()):
            if connection.stream >= 0:
                self._fail(connection, "no answer")
            else:
                self._close(connection)
        self._epoll.close()
        return OpenLoopReport(self._answers, self._late_ms, *used, max(0.0, self._last_answer - self._end))

    def _begin(self, stream: int, due: float) -> None:
        parts = self._requests[stream][(number := next(self._number)) % PREBUILT]
        now = time.perf_counter()
        self._answers[stream].sent += 1
        self._late_ms.append((now - due) * 1e3)
        if self._in_flight >= self._max_in_flight:
            self._answers[stream].fail("no connection left")
            return
        connection = self._connect(now)
        connection.stream, connection.sent_at = stream, now
        connection.unsent = numbered(parts, number)
        connection.received, connection.expected = b"", -1
        self._in_flight += 1
        self._send(connection)

    def _connect(self, now: float) -> Connection:
        """Return an idle connection that was used recently, or a new one."""
        if self._idle:
            connection = self._idle.pop()
            if now - connection.used_at < MAX_IDLE_S:
                return connection
            for stale in [connection, *self._idle]:
                self._close(stale)
            self._idle.clear()
        connection = Connection(self._job.port)
        self._open[connection.socket.fileno()] = connection
        self._epoll.register(connection.socket.fileno(), select.EPOLLIN)
        return connection

    def _send(self, connection: Connection) -> None:
        try:
            is_sent = connection.send()
        except OSError as error:
            self._fail(connection, type(error).__name__)
            return
        if not is_sent:
            self._epoll.modify(connection.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _exchange(self, wait_s: float) -> None:
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

    def _read(self, connection: Connection) -> None:
        try:
            if not connection.read():
                return
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(connection, type(error).__name__)
            return
        now, stream = time.perf_counter(), connection.stream
        outcome, is_kept = connection.outcome()
        answers = self._answers[stream]
        answers.latencies_ms.setdefault(outcome, []).append((now - connection.sent_at) * 1e3)
        answers.in_time += outcome == "200" and now <= self._end
        self._last_answer = now
        self._in_flight -= 1
        connection.stream, connection.used_at = -1, now
        if is_kept:
            self._idle.append(connection)
        else:
            self._close(connection)
        if self._job.streams[stream].clients and now < self._end:
            self._begin(stream, now)

    def _fail(self, connection: Connection, kind: str) -> None:
        self._answers[connection.stream].fail(kind)
        self._in_flight -= 1
        connection.stream = -1
        self._close(connection)

    def _close(self, connection: Connection) -> None:
        del self._open[connection.socket.fileno()]
        self._epoll.unregister(connection.socket.fileno())
        connection.socket.close()


def prebuilt(stream: OpenLoopStream, seed: str) -> list[list[bytes]]:
    """Return requests, each cut where its number goes: at the end of each of its texts."""
    texts = distinct_texts(stream.kind, seed)
    requests = []
    for _ in range(PREBUILT):
        chosen = itertools.islice(texts, stream.texts_per_request)
        requests.append(http_request([f"{text} {PLACEHOLDER}" for text in chosen]).split(PLACEHOLDER.encode()))
    return requests


def numbered(parts: list[bytes], number: int) -> bytes:
    """Return the request made of *parts*, with *number* in each of its texts."""
    return (b"%08d" % number).join(parts)


def main() -> None:
    plain: dict[str, Any] = json.load(sys.stdin)
    job = OpenLoopJob(**{**plain, "streams": [OpenLoopStream(**stream) for stream in plain["streams"]]})
    json.dump(asdict(Generator(job).run()), sys.stdout)


if __name__ == "__main__":
    main()
