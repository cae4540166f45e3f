"""What happens in the part of the result cache that is in Redis, as numbers."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args

from host.redis_client import ErrorKind
from result_cache.circuit_breaker import BreakerState
from telemetry.histograms import Buckets, Histogram

LATENCY_BOUNDS_S = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Upper bounds of the buckets of the latency histogram, in seconds."""
ERROR_KINDS = (*get_args(ErrorKind), "bad-value")
"""The labels of errors. `bad-value`: this service did not write the value there, or another program has changed it."""


@dataclass(frozen=True, slots=True)
class RedisCounts:
    """The counts since the start.

    Attributes:
        lookups: results that were looked up in Redis.
        hits: results that Redis had.
        writes: results that were stored.
        dropped: results that were not stored: too many waited, Redis did not accept them, or they are too large.
        errors: by kind, each of `ERROR_KINDS`.
        latencies: of reads, with the buckets of `LATENCY_BOUNDS_S`. A read serves one or more requests.
        queue_bytes: bytes of results that wait to be written now.
        reading: `closed` while Redis is used.
        writing: `open` while Redis is read only, because it is full, for example.
    """

    lookups: int
    hits: int
    writes: int
    dropped: int
    errors: Mapping[str, int]
    latencies: Buckets
    queue_bytes: int
    reading: BreakerState
    writing: BreakerState


@dataclass(slots=True)
class RedisCounter:
    """Counts since the start."""

    lookups: int = 0
    hits: int = 0
    writes: int = 0
    dropped: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    latencies: Histogram = field(default_factory=lambda: Histogram(LATENCY_BOUNDS_S))

    def count_read(self, seconds: float) -> None:
        self.latencies.observe(seconds)

    def counts(self, *, queue_bytes: int, reading: BreakerState, writing: BreakerState) -> RedisCounts:
        return RedisCounts(
            lookups=self.lookups,
            hits=self.hits,
            writes=self.writes,
            dropped=self.dropped,
            errors={kind: self.errors[kind] for kind in ERROR_KINDS},
            latencies=self.latencies.read(),
            queue_bytes=queue_bytes,
            reading=reading,
            writing=writing,
        )
