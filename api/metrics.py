"""What the service has answered, counted: requests, errors by code, latencies per endpoint."""

from collections import Counter, defaultdict, deque
from functools import partial

import numpy as np

REMEMBERED_REQUESTS = 2048
"""Latencies kept per endpoint: percentiles are those of its latest requests, and memory stays bounded."""
PERCENTILES = (50, 95, 99)


class Metrics:
    """Owns the counters of one app. Labels come from closed sets: routes and problem codes."""

    def __init__(self) -> None:
        self._requests: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._latencies_s: defaultdict[str, deque[float]] = defaultdict(partial(deque, maxlen=REMEMBERED_REQUESTS))

    def count(self, endpoint: str, seconds: float, problem_code: str | None) -> None:
        """Note one answered request."""
        self._requests[endpoint] += 1
        self._latencies_s[endpoint].append(seconds)
        if problem_code is not None:
            self.note_failure(problem_code)

    def note_failure(self, problem_code: str) -> None:
        """Note a failure; alone, that of a caller whose request never became one."""
        self._errors[problem_code] += 1

    @property
    def requests(self) -> int:
        return self._requests.total()

    @property
    def errors(self) -> dict[str, int]:
        """Answers by problem code."""
        return dict(self._errors)

    def endpoints(self) -> dict[str, tuple[int, dict[str, float]]]:
        """Per endpoint, answers since the start and percentiles of its latest latencies in milliseconds."""
        return {name: (self._requests[name], _percentiles_ms(values_s)) for name, values_s in self._latencies_s.items()}


def _percentiles_ms(latencies_s: deque[float]) -> dict[str, float]:
    values = np.percentile(np.fromiter(latencies_s, dtype=np.float64) * 1e3, PERCENTILES)
    return {f"p{percent}": round(float(value), 3) for percent, value in zip(PERCENTILES, values, strict=True)}
