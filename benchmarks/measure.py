"""One measurement of each kind: the server under load, FastEmbed called directly, the bare loop."""

import math
import time
from collections import Counter
from dataclasses import asdict, dataclass

from benchmarks.load import Job, Report
from benchmarks.processes import Child, NotLoggedError, Server, run_load
from benchmarks.rows import Row
from benchmarks.work import least_cost, percentile

LOGGED_WITHIN_S = 3.0


@dataclass(frozen=True, slots=True)
class Latency:
    """Of one stream's requests."""

    p50_ms: float
    p99_ms: float
    requests: int


@dataclass(frozen=True, slots=True)
class Served:
    """What the server did with a row's load."""

    texts_per_s: float
    cost_per_s: float
    """Least modelled cost (tokens) of the requests answered, per second."""
    cost_per_text: float
    cpu_ms_per_text: float
    load_core_share: float
    others_core_share: float
    """Of one core, used by processes that are no part of the benchmark."""
    latencies: list[Latency]
    """One per stream of the row."""


@dataclass(frozen=True, slots=True)
class Called:
    """What FastEmbed, called directly, did with the same requests."""

    texts_per_s: float
    cpu_ms_per_text: float
    latency: Latency


@dataclass(frozen=True, slots=True)
class Recording:
    """The micro-batches, (texts, longest), that the server made of a row's load, and what that load was."""

    shapes: list[tuple[int, int]]
    texts: int
    cost: float


@dataclass(frozen=True, slots=True)
class Meter:
    """Measures; the processes belong to the caller."""

    baseline: Child
    seconds: float
    warm_s: float

    def serve(self, server: Server, row: Row, seed: str) -> Served:
        """Put the row's load on *server*.

        Raises:
            RowError: an answer was no 200.
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
            latencies=[latency_of(stream.latencies_ms) for stream in report.streams],
        )

    def call(self, row: Row, seed: str) -> Called:
        asked = {"stream": asdict(row.stream), "seed": seed, "warm_s": self.warm_s, "seconds": self.seconds}
        answer = self.baseline.ask("call", **asked)
        texts = len(answer["latencies_ms"]) * row.stream.texts_per_request
        return Called(
            texts_per_s=texts / answer["seconds"],
            cpu_ms_per_text=answer["cpu_s"] * 1000 / texts,
            latency=latency_of(answer["latencies_ms"]),
        )

    def record(self, server: Server, row: Row, seed: str) -> Recording:
        """Learn the micro-batches of a row from a server that logs them."""
        before = server.log_length()
        report = self._load(server, row, seed)
        cost, texts = 0.0, 0
        for n, stream in enumerate(row.streams):
            answered = report.streams[n].answered
            cost += sum(self._costs(row, n, seed, answered))
            texts += answered * stream.texts_per_request
        return Recording(shapes=shapes_logged(server, before, texts), texts=texts, cost=cost)

    def _load(self, server: Server, row: Row, seed: str) -> Report:
        job = Job(server.port, server.process.pid, list(row.streams), seed, self.warm_s, self.seconds)
        return run_load(job)

    def _done(self, row: Row, n: int, seed: str, report: Report) -> tuple[float, float]:
        """Add up the cost and the texts a stream got done inside the window."""
        shares = report.streams[n].shares
        costs = self._costs(row, n, seed, 1 + max((number for number, _ in shares), default=-1))
        texts = sum(share for _, share in shares) * row.streams[n].texts_per_request
        return sum(share * costs[number] for number, share in shares), texts

    def _costs(self, row: Row, n: int, seed: str, requests: int) -> list[int]:
        lengths = self.baseline.ask("lengths", stream=asdict(row.streams[n]), seed=seed, requests=requests)
        return [least_cost(request) for request in lengths]


def bare_cpu_ms_per_text(bare: Child, row: Row, recording: Recording, *, lanes: int, served: Served) -> float:
    """Replay a recording, and tell the CPU per text of what *served* did.

    The load of a measured window and of the recording are not quite the same (in a row of two streams, one may have got
    ahead), so CPU goes by modelled cost: CPU per cost in the replay x cost per text in the window.
    """
    answer = bare.ask("replay", shapes=recording.shapes, threads=min(lanes, row.texts_in_flight))
    cpu_ms_per_cost: float = answer["cpu_s"] * 1000 / recording.cost
    return cpu_ms_per_cost * served.cost_per_text


def shapes_logged(server: Server, before: int, texts: int) -> list[tuple[int, int]]:
    """Read the model runs logged since *before*; together they hold *texts* texts, or something is amiss.

    Raises:
        NotLoggedError: they do not.
    """
    deadline = time.monotonic() + LOGGED_WITHIN_S
    while True:
        events = (event for event in server.events_after(before) if event.get("event") == "micro_batch_encoded")
        shapes = [(int(event["texts"]), int(event["longest"])) for event in events]
        if sum(n for n, _ in shapes) == texts:
            return shapes
        if time.monotonic() > deadline:
            logged = sum(n for n, _ in shapes)
            raise NotLoggedError(f"{texts} texts were answered, the micro_batch_encoded lines add up to {logged}.")
        time.sleep(0.05)


def most_frequent(shapes: list[tuple[int, int]], count: int) -> str:
    """Write the number of texts per run, the most frequent first."""
    counted = Counter(texts for texts, _ in shapes).most_common(count)
    return ", ".join(f"{texts} ({runs / len(shapes):.0%})" for texts, runs in counted)


def latency_of(latencies_ms: list[float]) -> Latency:
    if not latencies_ms:
        return Latency(math.nan, math.nan, 0)
    return Latency(percentile(latencies_ms, 0.5), percentile(latencies_ms, 0.99), len(latencies_ms))
