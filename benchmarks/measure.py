"""One measurement of each kind: the server under load, FastEmbed called directly, the bare loop."""

import math
import time
from collections import Counter
from dataclasses import asdict, dataclass

from benchmarks.cost_model import least_cost
from benchmarks.load import Job, Report, run_load
from benchmarks.processes import BenchError, Child, Server
from benchmarks.tables import percentile
from benchmarks.workloads import Row

LOG_DELAY_S = 3.0
"""How long the log line of an answered request may take to appear."""


class NotLoggedError(BenchError):
    """The log lines of micro-batches do not add up to the texts answered."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Latencies of one stream."""

    p50_ms: float
    p99_ms: float
    requests: int


@dataclass(frozen=True, slots=True)
class Served:
    """What the server did with a row's load.

    Attributes:
        cost_per_s: least modelled cost (tokens) of the requests answered, per second.
        load_core_share: CPU of the load generator, as a share of one core.
        others_core_share: CPU of processes outside the benchmark, as a share of one core.
        latencies: one per stream of the row.
    """

    texts_per_s: float
    cost_per_s: float
    cost_per_text: float
    cpu_ms_per_text: float
    load_core_share: float
    others_core_share: float
    latencies: list[Latency]


@dataclass(frozen=True, slots=True)
class Called:
    """What FastEmbed, called directly, did with the same requests."""

    texts_per_s: float
    cpu_ms_per_text: float
    latency: Latency


@dataclass(frozen=True, slots=True)
class Recording:
    """The micro-batches (texts, longest) that the server ran for a row's load, and the texts and cost of that load."""

    shapes: list[tuple[int, int]]
    texts: int
    cost: float


@dataclass(frozen=True, slots=True)
class Meter:
    """Measures the server and FastEmbed; their processes belong to the caller."""

    baseline: Child
    seconds: float
    warm_s: float

    def serve(self, server: Server, row: Row, seed: str) -> Served:
        """Put the row's load on *server*.

        Raises:
            RowError: an answer was not a 200.
        """
        report = self._load(server, row, seed)
        costs, texts = zip(*(self._done(row, n, seed, report) for n in range(len(row.streams))), strict=True)
        return Served(
            texts_per_s=sum(texts) / self.seconds,
            cost_per_s=sum(costs) / self.seconds,
            cost_per_text=sum(costs) / sum(texts),
            cpu_ms_per_text=report.server_cpu_s * 1000 / sum(texts),
            load_core_share=report.own_cpu_s / report.window_s,
            others_core_share=max(0.0, report.all_cpu_s - report.server_cpu_s - report.own_cpu_s) / report.window_s,
            latencies=[_latency_of(stream.latencies_ms) for stream in report.streams],
        )

    def call(self, row: Row, seed: str) -> Called:
        """Call FastEmbed with the requests of the row's first stream."""
        asked = {"stream": asdict(row.stream), "seed": seed, "warm_s": self.warm_s, "seconds": self.seconds}
        answer = self.baseline.ask("call", **asked)
        texts = len(answer["latencies_ms"]) * row.stream.texts_per_request
        return Called(
            texts_per_s=texts / answer["seconds"],
            cpu_ms_per_text=answer["cpu_s"] * 1000 / texts,
            latency=_latency_of(answer["latencies_ms"]),
        )

    def record(self, server: Server, row: Row, seed: str) -> Recording:
        """Record the micro-batches of a row on a server that logs them."""
        before = server.log_length()
        report = self._load(server, row, seed)
        cost, texts = 0.0, 0
        for n, stream in enumerate(row.streams):
            answered = report.streams[n].answered
            cost += sum(self._costs(row, n, seed, answered))
            texts += answered * stream.texts_per_request
        return Recording(shapes=_logged_shapes(server, before, texts), texts=texts, cost=cost)

    def _load(self, server: Server, row: Row, seed: str) -> Report:
        return run_load(Job(server.port, server.process.pid, list(row.streams), seed, self.warm_s, self.seconds))

    def _done(self, row: Row, n: int, seed: str, report: Report) -> tuple[float, float]:
        """Return the cost and the number of texts that stream *n* completed inside the window."""
        shares = report.streams[n].shares
        costs = self._costs(row, n, seed, 1 + max((number for number, _ in shares), default=-1))
        texts = sum(share for _, share in shares) * row.streams[n].texts_per_request
        return sum(share * costs[number] for number, share in shares), texts

    def _costs(self, row: Row, n: int, seed: str, requests: int) -> list[int]:
        lengths = self.baseline.ask("lengths", stream=asdict(row.streams[n]), seed=seed, requests=requests)
        return [least_cost(request) for request in lengths]


def bare_cpu_ms_per_text(bare_loop: Child, row: Row, recording: Recording, *, lanes: int, served: Served) -> float:
    """Replay a recording, and return the CPU per text that the bare loop needs for the load of *served*.

    The load of a measured window and that of the recording differ a little (of two streams, one may have got ahead), so
    CPU is scaled by modelled cost: CPU per cost in the replay x cost per text in the window.
    """
    answer = bare_loop.ask("replay", shapes=recording.shapes, threads=min(lanes, row.concurrent_texts))
    cpu_ms_per_cost: float = answer["cpu_s"] * 1000 / recording.cost
    return cpu_ms_per_cost * served.cost_per_text


def _logged_shapes(server: Server, before: int, texts: int) -> list[tuple[int, int]]:
    """Return the model runs logged after the first *before* bytes.

    Raises:
        NotLoggedError: they do not contain *texts* texts in all.
    """
    deadline = time.monotonic() + LOG_DELAY_S
    while True:
        events = (event for event in server.events_after(before) if event.get("event") == "micro_batch_encoded")
        shapes = [(int(event["texts"]), int(event["longest"])) for event in events]
        logged = sum(n for n, _ in shapes)
        if logged == texts:
            return shapes
        if time.monotonic() > deadline:
            raise NotLoggedError(f"{texts} texts were answered, the micro_batch_encoded lines add up to {logged}.")
        time.sleep(0.05)


def most_frequent(shapes: list[tuple[int, int]], count: int) -> str:
    """Return the *count* most frequent numbers of texts per run, such as `4 (27%), 5 (26%)`."""
    counted = Counter(texts for texts, _ in shapes).most_common(count)
    return ", ".join(f"{texts} ({runs / len(shapes):.0%})" for texts, runs in counted)


def _latency_of(latencies_ms: list[float]) -> Latency:
    if not latencies_ms:
        return Latency(math.nan, math.nan, 0)
    return Latency(percentile(latencies_ms, 0.5), percentile(latencies_ms, 0.99), len(latencies_ms))
