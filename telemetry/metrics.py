"""What the service has answered, counted: requests, errors by code, latencies per endpoint."""

from bisect import bisect_left
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field

import numpy as np

REMEMBERED_REQUESTS = 2048
"""Latencies kept per endpoint: percentiles are those of its latest requests, and memory stays bounded."""
PERCENTILES = (50, 95, 99)
BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Latencies are also counted between these, since the start: such counts of several replicas can be added up."""


@dataclass(frozen=True, slots=True)
class Latencies:
    """The latencies of one endpoint's answers since the start.

    Attributes:
        counts: how many took up to each of BOUNDS_S, but longer than the bound before; the last one: longer than all.
        total_s: their sum.
    """

    counts: tuple[int, ...]
    total_s: float


@dataclass(slots=True)
class _Endpoint:
    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    total_s: float = 0.0
    latest_s: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED_REQUESTS))


class Metrics:
    """Owns the counters of one app. Labels come from closed sets: routes and problem codes."""

    def __init__(self) -> None:
        self._errors: Counter[str] = Counter()
        self._endpoints: defaultdict[str, _Endpoint] = defaultdict(_Endpoint)

    def count(self, endpoint: str, seconds: float, problem_code: str | None) -> None:
        """Note one answered request."""
        noted = self._endpoints[endpoint]
        noted.counts[bisect_left(BOUNDS_S, seconds)] += 1
        noted.total_s += seconds
        noted.latest_s.append(seconds)
        if problem_code is not None:
            self.note_failure(problem_code)

    def note_failure(self, problem_code: str) -> None:
        """Note a failure; alone, that of a caller whose request never became one."""
        self._errors[problem_code] += 1

    @property
    def requests(self) -> int:
        return sum(sum(noted.counts) for noted in self._endpoints.values())

    @property
    def errors(self) -> dict[str, int]:
        """Answers by problem code."""
        return dict(self._errors)

    def endpoints(self) -> dict[str, tuple[int, dict[str, float]]]:
        """Per endpoint, answers since the start and percentiles of its latest latencies in milliseconds."""
        return {name: (sum(noted.counts), _percentiles_ms(noted.latest_s)) for name, noted in self._endpoints.items()}

    def latencies(self) -> dict[str, Latencies]:
        """Per endpoint, the latencies since the start."""
        return {name: Latencies(tuple(noted.counts), noted.total_s) for name, noted in self._endpoints.items()}


def _percentiles_ms(latencies_s: deque[float]) -> dict[str, float]:
    values = np.percentile(np.fromiter(latencies_s, dtype=np.float64) * 1e3, PERCENTILES)
    return {f"p{percent}": round(float(value), 3) for percent, value in zip(PERCENTILES, values, strict=True)}
