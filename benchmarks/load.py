"""Closed-loop load generator: each client sends its next request when the last one is answered.

`python -m benchmarks.load` reads a `Job` as JSON from stdin, runs it, and writes a `Report` as JSON to stdout. It is a
process of its own on raw non-blocking sockets, and builds requests before the clock starts, to take little CPU.
"""

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.connections import Client, Connections, RefusedError
from benchmarks.formats import Target
from benchmarks.machine import cpu_s_of_all, cpu_s_of_tree
from benchmarks.processes import BenchError, spawned
from benchmarks.texts import Stream
from benchmarks.tokens import bundled_tokens

PREBUILT_TEXTS_PER_S = {"short": 1000, "mixed": 300, "cut": 300, "full": 100}
"""Texts built beforehand per second of load: more than two cores embed. Later ones are built when needed."""
ANSWER_TIMEOUT_S = 120.0


class RowError(BenchError):
    """One row cannot be measured; the others can."""


@dataclass(frozen=True, slots=True)
class Job:
    """What to send: the clients of all streams at once, for *warm_s* uncounted and then *seconds* counted seconds.

    Attributes:
        server_pid: whose CPU is counted, with that of its children; None: nobody's, and the report says 0.
        streams: each of another kind, because streams of one kind would send the same texts.
        target: where to and in which format; None: `/embed` and `/embed/batch` on *port*.
    """

    port: int
    server_pid: int | None
    streams: list[Stream]
    seed: str
    warm_s: float
    seconds: float
    target: Target | None = None

    def __post_init__(self) -> None:
        if len({stream.kind for stream in self.streams}) < len(self.streams):
            raise ValueError("Two streams of one kind would send the same texts.")


@dataclass(slots=True)
class StreamReport:
    """The answers of one stream.

    Attributes:
        latencies_ms: of the requests sent inside the measured window.
        shares: (number of the request, share of its time inside the window); requests across an edge count in part.
        answered: requests answered in all, in the warm-up, the window and after it.
    """

    latencies_ms: list[float] = field(default_factory=list)
    shares: list[tuple[int, float]] = field(default_factory=list)
    answered: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What one job measured inside the window; CPU seconds of the server, of the generator and of the machine."""

    window_s: float
    server_cpu_s: float
    own_cpu_s: float
    all_cpu_s: float
    streams: list[StreamReport]


def run_load(job: Job) -> Report:
    """Run the load generator once, in a process of its own.

    Raises:
        RowError: a request was answered with something other than 200, or not at all.
    """
    pipe = subprocess.PIPE
    with spawned(["-m", "benchmarks.load"], stdin=pipe, stdout=pipe) as process:
        output, _ = process.communicate(json.dumps(asdict(job)))
    answer = json.loads(output or '{"error": "the load generator ended too early"}')
    if "error" in answer:
        raise RowError(f"aborted, not every answer was a 200: {answer['error']}")
    return Report(**{**answer, "streams": [StreamReport(**stream) for stream in answer["streams"]]})


def tokens_done(report: Report, streams: Sequence[Stream], seed: str) -> float:
    """Return the tokens that the model got of the texts answered inside the window; see `benchmarks/tokens.py`."""
    total = 0.0
    for stream, found in zip(streams, report.streams, strict=True):
        last = max((number for number, _ in found.shares), default=-1)
        texts = itertools.islice(stream.requests(seed), last + 1)
        counted = [sum(bundled_tokens().count(request)) for request in texts]
        total += sum(share * counted[number] for number, share in found.shares)
    return total


def texts_done(report: Report, streams: Sequence[Stream]) -> float:
    """Return the number of texts answered inside the window; those of requests across its edges count in part."""
    done = [sum(share for _, share in stream.shares) for stream in report.streams]
    return sum(count * stream.texts_per_request for count, stream in zip(done, streams, strict=True))


class Load:
    """Owns the connections and the clock of one job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._connections = Connections(job.target or Target(job.port))
        self._requests = [_prebuilt(stream, job) for stream in job.streams]
        self._reports = [StreamReport() for _ in job.streams]
        self._from = 0.0
        self._to = 0.0

    def run(self) -> Report:
        streams = [n for n, stream in enumerate(self._job.streams) for _ in range(stream.clients)]
        clients = [self._connections.open(n) for n in streams]
        self._from = time.perf_counter() + self._job.warm_s
        self._to = self._from + self._job.seconds
        for client in clients:
            self._next(client)
        self._exchange_until(self._from)
        before = self._clocks()
        self._exchange_until(self._to)
        window_s, server_s, own_s, all_s = (now - then for now, then in zip(self._clocks(), before, strict=True))
        self._exchange_until(self._to + ANSWER_TIMEOUT_S)
        return Report(window_s, server_s, own_s, all_s, self._reports)

    def _clocks(self) -> tuple[float, float, float, float]:
        return time.perf_counter(), self._server_cpu_s(), time.process_time(), cpu_s_of_all()

    def _server_cpu_s(self) -> float:
        return 0.0 if self._job.server_pid is None else cpu_s_of_tree(self._job.server_pid)

    def _exchange_until(self, end: float) -> None:
        while self._connections and (left := end - time.perf_counter()) > 0:
            for client, events in self._connections.wait(left):
                if self._connections.progress(client, events):
                    self._count(client, time.perf_counter())
                    self._next(self._connections.usable(client))
        if self._connections and end > self._to:
            raise RefusedError(f"A request was not answered within {ANSWER_TIMEOUT_S:.0f} s.")

    def _next(self, client: Client) -> None:
        if time.perf_counter() >= self._to:
            self._connections.close(client)
            return
        self._connections.send(client, *next(self._requests[client.stream]))

    def _count(self, client: Client, now: float) -> None:
        report, latency_s = self._reports[client.stream], now - client.sent_at
        report.answered += 1
        inside_s = min(now, self._to) - max(client.sent_at, self._from)
        if inside_s > 0:
            report.shares.append((client.number, inside_s / latency_s))
        if client.sent_at >= self._from:
            report.latencies_ms.append(latency_s * 1000)


def _prebuilt(stream: Stream, job: Job) -> Iterator[tuple[int, bytes]]:
    """Return numbered requests without end, of which the first ones are built already."""
    target = job.target or Target(job.port)
    requests = (target.request(texts) for texts in stream.requests(job.seed))
    count = int((job.warm_s + job.seconds) * PREBUILT_TEXTS_PER_S[stream.kind] / stream.texts_per_request) + 1
    return enumerate(itertools.chain(list(itertools.islice(requests, count)), requests))


def http_request(texts: list[str]) -> bytes:
    """Return a request to `/embed` for one text, to `/embed/batch` for more."""
    return Target(80).request(texts)


def main() -> None:
    plain: dict[str, Any] = json.load(sys.stdin)
    try:
        target = Target(**plain["target"]) if plain["target"] else None
        streams = [Stream(**stream) for stream in plain["streams"]]
        job = Job(**{**plain, "streams": streams, "target": target})
        answer = asdict(Load(job).run())
    except (RefusedError, OSError, ValueError) as error:
        answer = {"error": str(error) or type(error).__name__}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
