"""Request metrics: answers, errors by code, and latencies per endpoint."""

from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from telemetry.answered_request import AnsweredRequest
from telemetry.log_output import dropped_lines

MAX_RECENT_LATENCIES = 2048
"""Latencies kept per endpoint for percentiles. They describe recent requests, and memory stays bounded. With 2048 of
them, about 20 are above the 99th percentile."""
PERCENTILES = (50, 95, 99)
BUCKET_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the latency histogram's buckets, in seconds: about three per decade, from 1 ms to a minute.
Unlike percentiles, the buckets of several replicas can be added up."""


@dataclass(frozen=True, slots=True)
class Latencies:
    """The latency histogram of one endpoint since the start.

    Attributes:
        counts: answers per bucket, not cumulative: up to each of `BUCKET_BOUNDS_S`, and last those above all of them.
        total_s: sum of all latencies.
    """

    counts: tuple[int, ...]
    total_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionCounts:
    """The connections that are open now, by what they do, and what they hold.

    Attributes:
        open: all of them.
        idle: without a request.
        receiving: the client has not sent all of a request, or not received all of an answer.
        processing: the service works on a request.
        body_bytes: of request bodies that have no answer yet.
        closed_for_others: closed since the start because others needed their place or memory.
    """

    open: int = 0
    idle: int = 0
    receiving: int = 0
    processing: int = 0
    body_bytes: int = 0
    closed_for_others: int = 0


@dataclass(slots=True)
class _Endpoint:
    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKET_BOUNDS_S) + 1))
    total_s: float = 0.0
    recent_s: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_RECENT_LATENCIES))


class Metrics:
    """Owns the counters of one app. Labels come from closed sets: routes and error codes."""

    def __init__(self, *, dropped_lines: Callable[[], int] = dropped_lines) -> None:
        """Count nothing yet; *dropped_lines* returns how many lines of the log could not be written."""
        self._dropped_lines = dropped_lines
        self._errors: Counter[str] = Counter()
        self._endpoints: defaultdict[tuple[str, str], _Endpoint] = defaultdict(_Endpoint)  # by endpoint and dialect
        self._errors_of: Counter[str] = Counter()  # by dialect
        self._connections: Callable[[], ConnectionCounts] = ConnectionCounts
        self.on_change: Callable[[], None] = lambda: None
        """Called when something was counted."""

    def observe(self, answered: AnsweredRequest) -> None:
        """Count one answered request, and its error."""
        metrics = self._endpoints[answered.endpoint, answered.dialect]
        metrics.counts[bisect_left(BUCKET_BOUNDS_S, answered.seconds)] += 1
        metrics.total_s += answered.seconds
        metrics.recent_s.append(answered.seconds)
        if answered.problem_code is not None:
            self._errors_of[answered.dialect] += 1
            self._errors[answered.problem_code] += 1
        self.on_change()

    def count_error(self, problem_code: str) -> None:
        """Count an error only, for a connection that failed before it became a request."""
        self._errors[problem_code] += 1
        self.on_change()

    def watch_connections(self, counts: Callable[[], ConnectionCounts]) -> None:
        """Report what *counts* returns; without it, as under another server, there are no connections to report."""
        self._connections = counts

    @property
    def connections(self) -> ConnectionCounts:
        """The connections now."""
        return self._connections()

    @property
    def requests(self) -> int:
        """Answered requests of all endpoints since the start."""
        return sum(sum(metrics.counts) for metrics in self._endpoints.values())

    @property
    def errors(self) -> dict[str, int]:
        """Errors since the start, by code."""
        return dict(self._errors)

    @property
    def log_lines_dropped(self) -> int:
        """Lines of the log that could not be written since the start of the process."""
        return self._dropped_lines()

    def endpoints(self) -> dict[str, int]:
        """Return, per endpoint, the answers since the start."""
        answers: Counter[str] = Counter()
        for (name, _), metrics in self._endpoints.items():
            answers[name] += sum(metrics.counts)
        return dict(answers)

    def recent_s(self) -> dict[str, list[float]]:
        """Return the latest latencies of each endpoint, for `percentiles_ms`."""
        found: defaultdict[str, list[float]] = defaultdict(list)
        for (name, _), metrics in self._endpoints.items():
            found[name] += metrics.recent_s
        return dict(found)

    def dialects(self) -> dict[str, tuple[int, int]]:
        """Return, per dialect, the answers since the start and how many of them were errors."""
        answers: Counter[str] = Counter()
        for (_, dialect), metrics in self._endpoints.items():
            answers[dialect] += sum(metrics.counts)
        return {dialect: (number, self._errors_of[dialect]) for dialect, number in answers.items()}

    def latencies(self) -> dict[tuple[str, str], Latencies]:
        """Return the latency histogram of each endpoint and dialect."""
        return {key: Latencies(tuple(metrics.counts), metrics.total_s) for key, metrics in self._endpoints.items()}


def percentiles_ms(latencies_s: Sequence[float]) -> dict[str, float]:
    """Return the percentiles of at least one latency, in milliseconds. Between two latencies they are interpolated."""
    ordered = sorted(latencies_s)
    return {f"p{percent}": round(_percentile(ordered, percent) * 1e3, 3) for percent in PERCENTILES}


def _percentile(ordered: Sequence[float], percent: int) -> float:
    whole, rest = divmod((len(ordered) - 1) * percent, 100)
    low, high = ordered[whole], ordered[min(whole + 1, len(ordered) - 1)]
    return low + (high - low) * rest / 100
