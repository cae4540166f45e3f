"""Histograms: amounts counted by their size. Those of several processes can be added exactly.

The bounds belong to the name of a histogram, and never depend on settings: workers that were started with different
settings can still be added.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

DURATIONS_S: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
    *(120.0, 300.0, 600.0, 1800.0, 3600.0, 86400.0),
)
"""Bounds of what may take up to REQUEST_TIMEOUT: about three per decade from 1 ms to a minute, fewer above. The text
for Prometheus contains those up to REQUEST_TIMEOUT: see `up_to`."""
LEAST_LAST_BOUND_S: Final = 60.0
"""The text has the bounds up to this one, however short REQUEST_TIMEOUT is."""
SHORT_DURATIONS_S: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
"""Bounds of what usually takes less than a millisecond."""
TEXTS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0)
TOKENS: Final = (4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0)
RUN_TEXTS: Final = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0)
RATIOS: Final = (0.0, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75)


@dataclass(frozen=True, slots=True)
class Buckets:
    """What a histogram has counted.

    Attributes:
        counts: per bucket, not cumulative: up to each bound, and last those above all of them.
        total: sum of all amounts.
    """

    counts: tuple[int, ...]
    total: float

    @property
    def count(self) -> int:
        """How many amounts were counted."""
        return sum(self.counts)


class Histogram:
    """Counts amounts by their size."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: Sequence[float]) -> None:
        """Count nothing yet. *bounds* are the highest amounts of all buckets but the last, lowest first."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, amount: float) -> int:
        """Count *amount*, and return the number of its bucket."""
        place = bisect_left(self._bounds, amount)
        self._counts[place] += 1
        self._total += amount
        return place

    def read(self) -> Buckets:
        """Return what was counted so far."""
        return Buckets(tuple(self._counts), self._total)


def up_to(timeout_s: float) -> int:
    """Return how many of `DURATIONS_S` a reader needs if nothing takes longer than *timeout_s*."""
    return min(len(DURATIONS_S), bisect_left(DURATIONS_S, max(timeout_s, LEAST_LAST_BOUND_S)) + 1)


def shortened(buckets: Buckets, bounds: int) -> Buckets:
    """Return *buckets* with the first *bounds* bounds only: what is above them is counted together."""
    counts = buckets.counts
    return Buckets((*counts[:bounds], sum(counts[bounds:])), buckets.total)
