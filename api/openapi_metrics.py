"""Examples of the answer of `GET /metrics`, for OpenAPI."""

from dataclasses import fields

from api.metric_types import (
    BacklogMetrics,
    CacheInfo,
    ConnectionMetrics,
    DialectMetrics,
    EndpointMetrics,
    LimitMetrics,
    LogMetrics,
    MetricsAnswer,
    MetricsOfWorkers,
    MicroBatchMetrics,
    ModelLoadMetrics,
    ModelMetrics,
    QueueMetrics,
    RedisResultMetrics,
    ResultCacheMetrics,
    StageMetrics,
    TextSources,
    WorkerMetrics,
    WorkersMetrics,
)
from api.problem_examples import MODEL_NAME

CACHE = CacheInfo([MODEL_NAME], num_cached=1, max_cached=5, cache_ttl=3600.0, cleanup_interval=60.0)
_WORKERS = WorkersMetrics(
    number=2,
    ready=2,
    restarts=0,
    supervisor_resident_bytes=48_021_504,
    processes=[
        WorkerMetrics(
            worker=1,
            pid=8,
            status="healthy",
            stale=False,
            uptime_seconds=86.4,
            requests=7,
            embeddings=170,
            queue_seconds=0.0,
            lanes=1,
            connections=4,
            cached_models=[MODEL_NAME],
            resident_bytes=221_388_800,
            proportional_bytes=173_773_824,
            restarts={"reload": 1},
        )
    ],
)
METRICS_ANSWER = MetricsAnswer(
    total_requests=15,
    total_embeddings=340,
    uptime_seconds=86.4,
    in_flight=1,
    event_loop_lag_seconds=0.0031,
    lanes_busy_seconds=7.2,
    cache_info=CACHE,
    statuses={"200": 12, "400": 1, "429": 2},
    errors={"invalid-input": 1, "rate-limited": 2},
    rate_limited={"requests": 2},
    endpoints={
        "POST /embed/batch": EndpointMetrics(12, {"p50": 41.2, "p95": 77.9, "p99": 80.3}),
        "POST /v1/embeddings": EndpointMetrics(3, {"p50": 38.0, "p95": 44.6, "p99": 45.2}),
    },
    dialects={"native": DialectMetrics(12, 2), "openai": DialectMetrics(3, 1)},
    stages={"queue": StageMetrics(9, 0.171), "run": StageMetrics(9, 0.402)},
    queue=QueueMetrics(0, 0, waiting_seconds=0.0, running=1, lanes=2, lanes_stuck=0, lanes_died=0),
    backlog={"bulk": BacklogMetrics(12.4, 60.0, callers=2)},
    micro_batches=MicroBatchMetrics(runs=97, texts=340, padded_tokens=9420, dropped_texts=0),
    models={
        MODEL_NAME: ModelMetrics(
            requests=12,
            texts=340,
            tokens=9021,
            truncated=2,
            loads=1,
            load_failures=0,
            load_seconds=0.41,
            evictions={"ttl": 0},
            memory_bytes=137_000_000,
        )
    },
    model_loads=ModelLoadMetrics(loads=0, downloads_running=0, downloads_waiting=0, downloads_refused=0),
    result_cache=ResultCacheMetrics(
        hits=141,
        misses=187,
        coalesced=12,
        entries=187,
        bytes=369_699,
        limit_bytes=62_000_000,
        evictions=0,
        rejections=0,
        expirations=0,
        held_texts=0,
        held_limit_texts=200_000,
        models={MODEL_NAME: TextSources(hits=141, misses=187, coalesced=12)},
        redis=RedisResultMetrics(
            "reachable",
            fetches=9,
            fetch_seconds=0.0061,
            fetch_buckets={"0.0005": 4, "0.001": 4, "+Inf": 1},
            lookups=199,
            hits=12,
            writes=187,
            dropped=0,
            queue_bytes=0,
            errors={"timeout": 0},
        ),
    ),
    limits=LimitMetrics("redis", fallbacks=0),
    log=LogMetrics(lines_dropped=0),
    connections=ConnectionMetrics(9, idle=7, receiving=1, processing=1, body_bytes=5120, closed_for_others=0),
)
METRICS_OF_WORKERS = MetricsOfWorkers(
    **{one.name: getattr(METRICS_ANSWER, one.name) for one in fields(METRICS_ANSWER)}, workers=_WORKERS
)
