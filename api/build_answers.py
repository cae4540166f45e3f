"""What the engine knows, put into the native answers."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

import orjson
from litestar import Response
from numpy.typing import NDArray

from api.answer_formats import ARROW, FINGERPRINT_HEADER, JSON, OCTETS, Format, arrow, octets
from api.answer_types import (
    CacheInfo,
    ChunksAnswer,
    EmbedAnswer,
    EmbedBatchAnswer,
    EndpointMetrics,
    LimitMetrics,
    MetricsAnswer,
    MicroBatchMetrics,
    ModelDetails,
    ModelEntry,
    ModelUsage,
    Probe,
    PromptPair,
    QueueMetrics,
    SelfCheckFacts,
    StampFacts,
    StuckLane,
    StuckProbe,
    TextTokens,
    TokenizeAnswer,
    TrainedSizes,
    WorkEstimate,
)
from api.request_types import Encoding
from engine.catalog import Model
from engine.embedder import EmbedResult, TokenCount, Usage
from engine.encoder import Encoder
from engine.fingerprint import ModelFingerprint
from engine.scheduler import SchedulerState
from engine.self_check import SelfCheck
from engine.vectors import to_base64
from engine.watchdog import StuckRun
from telemetry.metrics import Latencies
from web.responses import JsonResponse


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

    def latencies(self) -> dict[str, Latencies]: ...


async def embed_answer(
    answer: EmbedResult, *, text_length: int, encoding: Encoding, wanted: Format, started: float
) -> Response[Any]:
    """The answer to a request for one text that came in at *started*, on `time.perf_counter`."""
    if wanted != JSON or answer.chunks is not None:
        return await batch_answer(answer, encoding=encoding, wanted=wanted, started=started)
    content = EmbedAnswer(
        embedding=_written(answer.vectors, encoding)[0],
        model_name=answer.model.name,
        dimension=answer.dimension,
        text_length=text_length,
        tokens=answer.tokens[0],
        truncated=answer.truncated[0],
        processing_time_ms=_ms_since(started),
    )
    return JsonResponse(content, headers={FINGERPRINT_HEADER: answer.fingerprint})


async def batch_answer(answer: EmbedResult, *, encoding: Encoding, wanted: Format, started: float) -> Response[Any]:
    """The answer to a request that came in at *started*, on `time.perf_counter`."""
    if wanted == OCTETS:
        return octets(answer)
    if wanted == ARROW:
        return await asyncio.to_thread(arrow, answer)  # the first one imports pyarrow
    facts = (
        answer.model.name,
        answer.dimension,
        len(answer.tokens),
        answer.tokens,
        answer.truncated,
        _ms_since(started),
    )
    embeddings = _written(answer.vectors, encoding)
    content: EmbedBatchAnswer | ChunksAnswer = (
        EmbedBatchAnswer(embeddings, *facts)
        if answer.chunks is None
        else ChunksAnswer(embeddings, answer.chunks, *facts)
    )
    return JsonResponse(content, headers={FINGERPRINT_HEADER: answer.fingerprint})


async def tokenize_answer(count: TokenCount, *, started: float) -> Response[TokenizeAnswer]:
    """The answer to a request that came in at *started*, on `time.perf_counter`."""
    texts = _texts(count) if count.pieces is None else await asyncio.to_thread(_texts, count)
    estimate = WorkEstimate(count.estimate.micro_batches, round(count.estimate.seconds * 1e3, 3))
    return JsonResponse(
        TokenizeAnswer(count.model.name, count.max_tokens, len(texts), texts, estimate, _ms_since(started))
    )


def _texts(count: TokenCount) -> list[Any]:
    """The texts in JSON already, one by one: a hundred thousand tokens at once would hold the event loop."""
    return [
        orjson.Fragment(orjson.dumps(TextTokens(tokens, truncated, count.pieces[index] if count.pieces else None)))
        for index, (tokens, truncated) in enumerate(zip(count.tokens, count.truncated, strict=True))
    ]


def _written(vectors: NDArray[Any], encoding: Encoding) -> Any:
    """The vectors as JSON will have them."""
    return to_base64(vectors) if encoding == "base64" else vectors


def _ms_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1e3, 3)


def live_answer(stuck: Sequence[StuckRun]) -> Response[Any]:
    if not stuck:
        return JsonResponse(Probe("live"))
    lanes = [StuckLane(run.model, round(run.seconds, 3)) for run in stuck]
    return JsonResponse(StuckProbe("stuck", lanes), status_code=503)


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
    entry, card = model_entry(model, loaded), model.card
    check, fingerprint = (loaded.encoder.check, loaded.encoder.fingerprint) if loaded else (None, None)
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
        needs_prompt=card.needs_prompt,
        prompts=PromptPair(card.prompts.query, card.prompts.document),
        uses_tasks=card.uses_tasks,
        normalized=check.is_unit if check else card.normalized,
        matryoshka=TrainedSizes(list(card.matryoshka.sizes), card.matryoshka.any_from) if card.matryoshka else None,
        self_check=self_check_facts(check) if check else None,
        stamp=fingerprint_facts(fingerprint) if fingerprint else None,
        usage=model_usage(usage),
    )


def self_check_facts(check: SelfCheck) -> SelfCheckFacts:
    return SelfCheckFacts(
        batch_drift=check.batch_drift,
        batch_invariant=check.is_batch_invariant,
        batching=check.batching,
        batching_cost=check.batching_cost,
        canary_cosine=check.canary_cosine,
    )


def fingerprint_facts(fingerprint: ModelFingerprint) -> StampFacts:
    return StampFacts(
        revision=fingerprint.revision,
        onnx_sha256=fingerprint.onnx_sha256,
        onnxruntime=fingerprint.onnxruntime,
        fastembed=fingerprint.fastembed,
        fingerprint=fingerprint.digest,
    )


def model_usage(usage: Usage) -> ModelUsage:
    return ModelUsage(usage.requests, usage.texts, usage.tokens)


def metrics_answer(
    metrics: Counted,
    state: SchedulerState,
    used: Mapping[str, Usage],
    *,
    cache_info: CacheInfo,
    uptime_s: float,
    limits: LimitMetrics,
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
            lanes_stuck=state.lanes_stuck,
            lanes_died=state.lanes_died,
        ),
        micro_batches=MicroBatchMetrics(
            runs=state.micro_batches,
            texts=state.texts,
            padded_tokens=state.padded_tokens,
            dropped_texts=state.dropped_texts,
        ),
        models={name: model_usage(usage) for name, usage in used.items()},
        limits=limits,
    )


def metrics_text(wanted: str, **facts: Any) -> Response[Any]:
    """The same for Prometheus, see `api.prometheus`. Blocks: the first one imports what writes it."""
    from api.prometheus import Facts, text_answer  # noqa: PLC0415 - 0.1 s that only those pay who use it

    return text_answer(wanted, Facts(**facts))
