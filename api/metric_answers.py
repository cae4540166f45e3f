"""Converts what the parts of one process have counted into the answer of `GET /metrics`."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict

from api.metric_types import (
    BacklogMetrics,
    CacheInfo,
    ConnectionMetrics,
    DialectMetrics,
    EndpointMetrics,
    LimitMetrics,
    LogMetrics,
    MetricsAnswer,
    MicroBatchMetrics,
    ModelLoadMetrics,
    ModelMetrics,
    QueueMetrics,
    ResultCacheMetrics,
    StageMetrics,
)
from engine.downloads import LoadState
from engine.ledger import Account
from engine.load_counters import ModelLoads
from engine.scheduler_state import SchedulerState
from engine.usage import Usage
from telemetry.metrics import Metrics


def metrics_answer(
    metrics: Metrics,
    state: SchedulerState,
    used: Mapping[str, Usage],
    accounts: Iterable[Account],
    *,
    cache_info: CacheInfo,
    uptime_s: float,
    loads: LoadState,
    results: ResultCacheMetrics,
    limits: LimitMetrics,
) -> MetricsAnswer:
    """Return the answer of one process, without percentiles: these are computed from the latencies of all."""
    return MetricsAnswer(
        total_requests=metrics.requests,
        total_embeddings=sum(usage.texts for usage in used.values()),
        uptime_seconds=uptime_s,
        in_flight=metrics.in_flight,
        event_loop_lag_seconds=round(metrics.loop_lag.highest_s, 6),
        lanes_busy_seconds=state.lanes_busy_s,
        cache_info=cache_info,
        statuses=metrics.statuses(),
        errors=metrics.errors,
        rate_limited=metrics.rate_limited,
        endpoints={name: EndpointMetrics(requests, {}) for name, requests in metrics.endpoints().items()},
        dialects={name: DialectMetrics(*numbers) for name, numbers in metrics.dialects().items()},
        stages={name: StageMetrics(found.count, found.total) for name, found in metrics.stages().items()},
        queue=QueueMetrics(
            waiting_requests=state.waiting_requests,
            waiting_texts=state.waiting_texts,
            waiting_seconds=round(state.waiting_seconds, 3),
            running=state.running,
            lanes=state.lanes,
            lanes_stuck=state.lanes_stuck,
            lanes_died=state.lanes_died,
        ),
        backlog={account.kind: _backlog(account) for account in accounts},
        micro_batches=MicroBatchMetrics(
            runs=state.micro_batches,
            texts=state.texts,
            padded_tokens=state.padded_tokens,
            dropped_texts=state.dropped_texts,
        ),
        models={name: _model(used.get(name), loads.models.get(name)) for name in {**loads.models, **used}},
        model_loads=ModelLoadMetrics(
            loads=loads.loads,
            downloads_running=loads.downloads_running,
            downloads_waiting=loads.downloads_waiting,
            downloads_refused=loads.downloads_refused,
        ),
        result_cache=results,
        limits=limits,
        log=LogMetrics(metrics.log_lines_dropped),
        connections=ConnectionMetrics(**asdict(metrics.connections)),
    )


def _model(usage: Usage | None, loads: ModelLoads | None) -> ModelMetrics:
    usage, loads = usage or Usage(), loads or ModelLoads()
    return ModelMetrics(
        usage.requests,
        usage.texts,
        usage.tokens,
        truncated=usage.truncated,
        loads=loads.loads,
        load_failures=loads.failures,
        load_seconds=loads.seconds,
        evictions=dict(loads.evictions),
        memory_bytes=loads.memory_bytes,
    )


def _backlog(account: Account) -> BacklogMetrics:
    backlog = account.backlog
    return BacklogMetrics(round(backlog.seconds, 3), round(backlog.limit_seconds, 3), backlog.callers)
