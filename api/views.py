"""What the engine knows, put into the native answers."""

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Protocol

from litestar import Response

from api.native import (
    CacheInfo,
    EmbedAnswer,
    EmbedBatchAnswer,
    EndpointMetrics,
    FastResponse,
    MetricsAnswer,
    MicroBatchMetrics,
    ModelDetails,
    ModelEntry,
    ModelUsage,
    QueueMetrics,
)
from engine.catalog import Model
from engine.encoder import Encoder
from engine.scheduler import SchedulerState
from engine.service import Embedded, Usage


class Loaded(Protocol):
    """A model in memory, as the model manager keeps it."""

    encoder: Encoder
    load_s: float
    loaded_at: datetime

    @property
    def last_used(self) -> datetime: ...


class Counted(Protocol):
    """Who counts the answers."""

    @property
    def requests(self) -> int: ...

    @property
    def errors(self) -> dict[str, int]: ...

    def endpoints(self) -> dict[str, tuple[int, dict[str, float]]]: ...


def embed_answer(answer: Embedded, *, text_length: int, started: float) -> Response[EmbedAnswer]:
    """The answer to a request that came in at *started*, on `time.perf_counter`."""
    return FastResponse(
        EmbedAnswer(
            embedding=answer.vectors[0],
            model_name=answer.model.name,
            dimension=answer.vectors.shape[1],
            text_length=text_length,
            tokens=answer.tokens[0],
            truncated=answer.truncated[0],
            processing_time_ms=_ms_since(started),
        )
    )


def batch_answer(answer: Embedded, *, started: float) -> Response[EmbedBatchAnswer]:
    """The answer to a request that came in at *started*, on `time.perf_counter`."""
    return FastResponse(
        EmbedBatchAnswer(
            embeddings=answer.vectors,
            model_name=answer.model.name,
            dimension=answer.vectors.shape[1],
            count=len(answer.tokens),
            tokens=answer.tokens,
            truncated=answer.truncated,
            processing_time_ms=_ms_since(started),
        )
    )


def _ms_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1e3, 3)


def model_entry(model: Model, loaded: Loaded | None) -> ModelEntry:
    return ModelEntry(
        name=model.name,
        dimension=model.dim,
        max_tokens=loaded.encoder.max_tokens if loaded else model.max_tokens,
        size=model.size_bytes,
        description=model.description,
        license=model.license,
        source=model.source,
        is_cached=loaded is not None,
    )


def model_details(model: Model, loaded: Loaded | None, usage: Usage) -> ModelDetails:
    entry = model_entry(model, loaded)
    return ModelDetails(
        model_name=model.name,
        is_cached=entry.is_cached,
        load_time=round(loaded.load_s, 3) if loaded else None,
        loaded_at=loaded.loaded_at if loaded else None,
        last_used=loaded.last_used if loaded else None,
        dimension=entry.dimension,
        max_tokens=entry.max_tokens,
        size=entry.size,
        description=entry.description,
        license=entry.license,
        source=entry.source,
        usage=model_usage(usage),
    )


def model_usage(usage: Usage) -> ModelUsage:
    return ModelUsage(usage.requests, usage.texts, usage.tokens)


def metrics_answer(
    metrics: Counted, state: SchedulerState, used: Mapping[str, Usage], *, cache_info: CacheInfo, uptime_s: float
) -> MetricsAnswer:
    return MetricsAnswer(
        total_requests=metrics.requests,
        total_embeddings=sum(usage.texts for usage in used.values()),
        uptime_seconds=uptime_s,
        cache_info=cache_info,
        errors=metrics.errors,
        endpoints={name: EndpointMetrics(*told) for name, told in metrics.endpoints().items()},
        queue=QueueMetrics(
            waiting_requests=state.waiting_requests,
            waiting_texts=state.waiting_texts,
            waiting_seconds=round(state.waiting_seconds, 3),
            running=state.running,
            lanes=state.lanes,
        ),
        micro_batches=MicroBatchMetrics(
            runs=state.micro_batches,
            texts=state.texts,
            padded_tokens=state.padded_tokens,
            dropped_texts=state.dropped_texts,
        ),
        models={name: model_usage(usage) for name, usage in used.items()},
    )
