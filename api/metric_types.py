"""Answer types of `GET /metrics`. Every JSON key of the answer is defined here."""

from dataclasses import dataclass
from typing import Literal

from api.answer_types import CacheInfo, ModelUsage


@dataclass(frozen=True, slots=True)
class EndpointMetrics:
    """One endpoint: answers since the start, and percentiles of its latest 2,048 latencies in milliseconds."""

    requests: int
    latency_ms: dict[str, float]


@dataclass(frozen=True, slots=True)
class DialectMetrics:
    """One dialect (`native` is our own API): answers since the start, and how many of them were errors."""

    requests: int
    errors: int


@dataclass(frozen=True, slots=True)
class QueueMetrics:
    """Waiting and running work.

    `waiting_seconds`: until the lanes have done what waits, at the measured speed; bulk work is in `backlog` instead.
    `lanes_stuck` are lanes whose run has taken longer than LANE_STUCK_SECONDS; `lanes_died` counts lane threads that
    ended unexpectedly since the start.
    """

    waiting_requests: int
    waiting_texts: int
    waiting_seconds: float
    running: int
    lanes: int
    lanes_stuck: int
    lanes_died: int


@dataclass(frozen=True, slots=True)
class BacklogMetrics:
    """Work of one kind that waits: seconds until it is done, its limit, and how many callers hold some of it."""

    seconds: float
    limit_seconds: float
    callers: int


@dataclass(frozen=True, slots=True)
class MicroBatchMetrics:
    """Model runs since the start: their number, texts and tokens with padding, and texts dropped before a run."""

    runs: int
    texts: int
    padded_tokens: int
    dropped_texts: int


@dataclass(frozen=True, slots=True)
class LimitMetrics:
    """Where quotas are counted (`off`: nowhere), and how often memory has replaced an unreachable Redis."""

    store: Literal["off", "memory", "redis"]
    fallbacks: int


@dataclass(frozen=True, slots=True)
class ModelLoadMetrics:
    """Models that are being loaded, and their downloads: those that run, that wait, and that were refused in all."""

    loads: int
    downloads_running: int
    downloads_waiting: int
    downloads_refused: int


@dataclass(frozen=True, slots=True)
class LogMetrics:
    """Lines of the log that could not be written: it is not read, or the disk is full."""

    lines_dropped: int


@dataclass(frozen=True, slots=True)
class ConnectionMetrics:
    """Open connections by what they do, bytes of request bodies without an answer, and connections closed for others.

    `idle` have no request; `receiving`: the client has not sent all of a request, or not received all of an answer. All
    are 0 under other servers than `python main.py`.
    """

    open: int
    idle: int
    receiving: int
    processing: int
    body_bytes: int
    closed_for_others: int


@dataclass(frozen=True, slots=True)
class MetricsAnswer:
    """Work done by the service since it started, and its present state."""

    total_requests: int
    total_embeddings: int
    uptime_seconds: float
    cache_info: CacheInfo
    errors: dict[str, int]
    endpoints: dict[str, EndpointMetrics]
    dialects: dict[str, DialectMetrics]
    queue: QueueMetrics
    backlog: dict[str, BacklogMetrics]
    micro_batches: MicroBatchMetrics
    models: dict[str, ModelUsage]
    model_loads: ModelLoadMetrics
    limits: LimitMetrics
    log: LogMetrics
    connections: ConnectionMetrics
