"""Answer types of `GET /metrics`. Every JSON key of the answer is defined here.

With several workers, the answer of each is a part of the whole. Fields without a rule of `telemetry.merging` count
something since the start, so a new counter is one line here.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from telemetry.merging import Current, Derived, Highest, Names, Setting, first_of

LimitStore = Literal["off", "memory", "supervisor", "redis"]
RedisResultState = Literal["off", "reachable", "read-only", "unreachable"]


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """The models in memory, least recently used first, and the limits for evicting them; times in seconds.

    With several workers: the models that any of them has in memory, and the limits of each.
    """

    cached_models: Names[list[str]]
    num_cached: Highest[int]
    max_cached: Setting[int]
    cache_ttl: Setting[float]
    cleanup_interval: Setting[float]


@dataclass(frozen=True, slots=True)
class ModelUsage:
    """Work done by a model since the service started."""

    requests: int
    texts: int
    tokens: int


@dataclass(frozen=True, slots=True)
class ModelMetrics(ModelUsage):
    """Work done by a model, and what happened to it, since the service started.

    `truncated` texts were cut: the model saw only a part of them. `load_seconds` are those of all `loads`, without
    downloads. `evictions` are by reason: `ttl`, `capacity`, `memory`, `reload`. `memory_bytes` is what it takes now.
    """

    truncated: int = 0
    loads: int = 0
    load_failures: int = 0
    load_seconds: float = 0.0
    evictions: dict[str, int] = field(default_factory=dict)
    memory_bytes: Current[int] = 0


@dataclass(frozen=True, slots=True)
class StageMetrics:
    """A part of the time of requests: how many had it, and how long it took in all of them.

    `load`: a model was loaded; `cache`: cached results were looked up; `tokenize`; `queue`: until the first text ran;
    `run`: from there until the last text had its vector.
    """

    count: int
    seconds: float


@dataclass(frozen=True, slots=True)
class EndpointMetrics:
    """One endpoint: answers since the start, and percentiles of its latest 2,048 latencies in milliseconds.

    These are of served requests only (status below 400): errors take microseconds, or as long as a timeout.
    """

    requests: int
    latency_ms: Derived[dict[str, float]]


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

    waiting_requests: Current[int]
    waiting_texts: Current[int]
    waiting_seconds: Highest[float]
    running: Current[int]
    lanes: Current[int]
    lanes_stuck: Current[int]
    lanes_died: int


@dataclass(frozen=True, slots=True)
class BacklogMetrics:
    """Work of one kind that waits: seconds until it is done, its limit, and how many callers hold some of it."""

    seconds: Highest[float]
    limit_seconds: Highest[float]
    callers: Current[int]


@dataclass(frozen=True, slots=True)
class MicroBatchMetrics:
    """Model runs since the start: their number, texts and tokens with padding, and texts dropped before a run."""

    runs: int
    texts: int
    padded_tokens: int
    dropped_texts: int


@dataclass(frozen=True, slots=True)
class LimitMetrics:
    """Where quotas are counted, and how often memory has replaced an unreachable store.

    `off`: nowhere; `memory`: in this process; `supervisor`: in the supervisor, for all workers; `redis`: in Redis. If
    one of several workers counts by itself, it is `memory`.
    """

    store: Annotated[LimitStore, first_of("memory", "supervisor", "redis", "off")]
    fallbacks: int


@dataclass(frozen=True, slots=True)
class TextSources:
    """Where the results of texts came from since the start: kept before, computed, or computed once for several."""

    hits: int
    misses: int
    coalesced: int


@dataclass(frozen=True, slots=True)
class RedisResultMetrics:
    """The results in Redis: whether it can be used, and what was done since the start.

    `read-only`: no result can be written, because Redis is full, or a replica. `fetches` are trips to read, and
    `fetch_seconds` their time together; `fetch_buckets` how many took at most so many seconds, but more than the bucket
    before. `lookups` are results that were looked up, and `hits` those found. `writes` were written; `dropped` were
    not, because too many waited (`queue_bytes`) or Redis could not be used. `errors` are by kind. With several workers,
    the state is the worst.
    """

    state: Annotated[RedisResultState, first_of("unreachable", "read-only", "reachable", "off")]
    fetches: int
    fetch_seconds: float
    fetch_buckets: dict[str, int]
    lookups: int
    hits: int
    writes: int
    dropped: int
    queue_bytes: Current[int]
    errors: dict[str, int]


@dataclass(frozen=True, slots=True)
class ResultCacheMetrics:
    """Cached results: where those of texts came from, in all and by model, and what is in memory.

    `evictions` are results that were removed for others, `rejections` results that were too large to keep, or
    came again but were not used often enough to be protected,
    `expirations` results older than RESULT_CACHE_TTL. `held_texts` are texts with cached results in long answers that
    clients have not received yet.
    """

    hits: int
    misses: int
    coalesced: int
    entries: Current[int]
    bytes: Current[int]
    limit_bytes: Current[int]
    evictions: int
    rejections: int
    expirations: int
    held_texts: Current[int]
    held_limit_texts: Current[int]
    models: dict[str, TextSources]
    redis: RedisResultMetrics


@dataclass(frozen=True, slots=True)
class ModelLoadMetrics:
    """Models that are being loaded, and their downloads: those that run, that wait, and that were refused in all."""

    loads: Current[int]
    downloads_running: Current[int]
    downloads_waiting: Current[int]
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

    open: Current[int]
    idle: Current[int]
    receiving: Current[int]
    processing: Current[int]
    body_bytes: Current[int]
    closed_for_others: int


@dataclass(frozen=True, slots=True)
class MetricsAnswer:
    """Work done by the service since it started, and its present state.

    `in_flight` requests have begun and have no answer yet. `event_loop_lag_seconds` is the highest delay of the event
    loop in the last 15 to 30 seconds. `lanes_busy_seconds` is the time of all `queue.lanes` in model runs, so without
    the express lane. `statuses` are answers by status, `rate_limited` rejections by quota.
    """

    total_requests: int
    total_embeddings: int
    uptime_seconds: Setting[float]
    in_flight: Current[int]
    event_loop_lag_seconds: Highest[float]
    lanes_busy_seconds: float
    cache_info: CacheInfo
    statuses: dict[str, int]
    errors: dict[str, int]
    rate_limited: dict[str, int]
    endpoints: dict[str, EndpointMetrics]
    dialects: dict[str, DialectMetrics]
    stages: dict[str, StageMetrics]
    queue: QueueMetrics
    backlog: dict[str, BacklogMetrics]
    micro_batches: MicroBatchMetrics
    models: dict[str, ModelMetrics]
    model_loads: ModelLoadMetrics
    result_cache: ResultCacheMetrics
    limits: LimitMetrics
    log: LogMetrics
    connections: ConnectionMetrics


@dataclass(frozen=True, slots=True)
class WorkerMetrics:
    """One worker process: the number of its slot, and its own amounts of this moment.

    `requests` and `embeddings` count from the start of this process. `resident_bytes` contain all pages that it shares
    with other processes, `proportional_bytes` its part of them; null: unknown on this system. `restarts` are those of
    the slot, by reason. `stale`: it has not answered in time, so all this is from its last report.
    """

    worker: int
    pid: int
    status: Literal["starting", "healthy", "draining"]
    stale: bool
    uptime_seconds: float
    requests: int
    embeddings: int
    queue_seconds: float
    lanes: int
    connections: int
    cached_models: list[str]
    resident_bytes: int | None
    proportional_bytes: int | None
    restarts: dict[str, int]


@dataclass(frozen=True, slots=True)
class WorkersMetrics:
    """The workers: their number, how many accept work, how often any was replaced, and each process that runs."""

    number: int
    ready: int
    restarts: int
    supervisor_resident_bytes: int | None
    processes: list[WorkerMetrics]


@dataclass(frozen=True, slots=True)
class MetricsOfWorkers(MetricsAnswer):
    """The answer with several workers: that of the whole, and `workers`."""

    workers: WorkersMetrics
