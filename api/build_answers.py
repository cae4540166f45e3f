"""Converts results of the engine into answers of the native API."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import orjson
from litestar.response.base import ASGIResponse
from numpy.typing import NDArray

from api.answer_formats import ARROW, OCTETS, Format, arrow, octets, result_headers
from api.answer_pieces import rows_per_piece, yield_to_others
from api.answer_types import (
    Chunk,
    ChunksAnswer,
    EmbedAnswer,
    EmbedBatchAnswer,
    FingerprintFacts,
    ModelDetails,
    ModelEntry,
    OptimisedCopyFacts,
    Probe,
    PromptPair,
    RuntimeFacts,
    SelfCheckFacts,
    StuckLane,
    StuckProbe,
    TextTokens,
    Token,
    TokenizeAnswer,
    TrainedSizes,
    WorkEstimate,
)
from api.metric_types import ModelUsage
from api.process_reports import StuckModel
from api.request_types import Encoding
from engine.catalog import Model
from engine.embed_results import EmbedResult, TokenCount
from engine.fingerprint import ModelFingerprint
from engine.loaded_facts import LoadedFacts
from engine.optimised_copy import CopyState
from engine.runtime import Runtime
from engine.self_check import SelfCheckResult
from engine.vectors import to_base64
from web.request_context import RequestContext
from web.responses import JSON, Duration, json_answer, json_of

PROCESSING_TIME = Duration("processing_time_ms", units_per_s=1e3, digits=3)


async def embed_answer(
    result: EmbedResult,
    context: RequestContext,
    *,
    text_length: int,
    encoding: Encoding,
    answer_format: Format,
    started_s: float,
) -> ASGIResponse:
    """Answer a request for one text that arrived at *started_s*, on `time.perf_counter`."""
    if answer_format != JSON or result.chunks is not None:
        return await batch_answer(result, context, encoding=encoding, answer_format=answer_format, started_s=started_s)
    content = EmbedAnswer(
        embedding=_encoded(result.vectors, encoding)[0],
        model_name=result.model.name,
        dimension=result.dimension,
        text_length=text_length,
        tokens=result.tokens[0],
        truncated=result.truncated[0],
        processing_time_ms=_ms_since(started_s),
    )
    return _result_answer(result, content)


async def batch_answer(
    result: EmbedResult, context: RequestContext, *, encoding: Encoding, answer_format: Format, started_s: float
) -> ASGIResponse:
    """Answer a request for several texts, or for chunks, that arrived at *started_s*, on `time.perf_counter`.

    A long JSON answer is written in pieces, alternately with those of other answers.
    """
    if answer_format == OCTETS:
        return octets(result)
    if answer_format == ARROW:
        return await asyncio.to_thread(arrow, result)  # the first call imports pyarrow
    embeddings = await _written(result.vectors, encoding, context)
    facts = (
        result.model.name,
        result.dimension,
        len(result.tokens),
        result.tokens,
        result.truncated,
        _ms_since(started_s),
    )
    if result.chunks is None:
        content: EmbedBatchAnswer | ChunksAnswer = EmbedBatchAnswer(embeddings, *facts)
    else:
        chunks = [Chunk(chunk.index, chunk.start, chunk.end, chunk.tokens) for chunk in result.chunks]
        content = ChunksAnswer(embeddings, chunks, *facts)
    return _result_answer(result, content)


def _result_answer(result: EmbedResult, content: Any) -> ASGIResponse:
    return json_answer(content, headers=result_headers(result), single_hit=result.single_hit, duration=PROCESSING_TIME)


async def tokenize_answer(count: TokenCount, *, started_s: float) -> ASGIResponse:
    """Answer a request for tokens that arrived at *started_s*, on `time.perf_counter`."""
    texts = _texts(count) if count.pieces is None else await asyncio.to_thread(_texts, count)
    estimate = WorkEstimate(count.estimate.micro_batches, round(count.estimate.seconds * 1e3, 3))
    return json_answer(
        TokenizeAnswer(count.model.name, count.max_tokens, len(texts), texts, estimate, _ms_since(started_s))
    )


def _texts(count: TokenCount) -> list[Any]:
    """Serialise the texts one by one: a hundred thousand tokens at once would block the event loop."""
    return [
        orjson.Fragment(orjson.dumps(TextTokens(tokens, truncated, _token_list(count, index))))
        for index, (tokens, truncated) in enumerate(zip(count.tokens, count.truncated, strict=True))
    ]


def _token_list(count: TokenCount, index: int) -> list[Token] | None:
    if count.pieces is None:
        return None
    return [Token(piece.token, piece.id, piece.start, piece.end) for piece in count.pieces[index]]


async def _written(vectors: NDArray[Any], encoding: Encoding, context: RequestContext) -> Any:
    """Return the vectors as they appear in JSON; many of them are written already, several in each element."""
    size = rows_per_piece(vectors.shape[1])
    if len(vectors) <= size:
        return _encoded(vectors, encoding)
    pieces = list[orjson.Fragment]()
    for start in range(0, len(vectors), size):
        if start:
            await yield_to_others(context)
        pieces.append(orjson.Fragment(json_of(_encoded(vectors[start : start + size], encoding))[1:-1]))
    return pieces


def _encoded(vectors: NDArray[Any], encoding: Encoding) -> Any:
    """Return the vectors as they appear in JSON."""
    return to_base64(vectors) if encoding == "base64" else vectors


def _ms_since(started_s: float) -> float:
    return round((time.perf_counter() - started_s) * 1e3, 3)


def live_answer(stuck: Sequence[StuckModel]) -> ASGIResponse:
    """Answer a liveness probe: 200, or 503 with the runs that do not end."""
    if not stuck:
        return json_answer(Probe("live"))
    lanes = [StuckLane(run.model_name, run.seconds) for run in stuck]
    return json_answer(StuckProbe("stuck", lanes), status=503)


def model_entry(model: Model, loaded: LoadedFacts | None) -> ModelEntry:
    return ModelEntry(name=model.name, **_model_facts(model, loaded))


def model_details(model: Model, loaded: LoadedFacts | None, usage: ModelUsage) -> ModelDetails:
    card = model.card
    check, fingerprint = (loaded.self_check, loaded.fingerprint) if loaded else (None, None)
    return ModelDetails(
        model_name=model.name,
        **_model_facts(model, loaded),
        load_time=round(loaded.load_s, 3) if loaded else None,
        loaded_at=loaded.loaded_at if loaded else None,
        last_used=loaded.last_used if loaded else None,
        memory_bytes=loaded.memory_bytes if loaded else 0,
        memory_measured=bool(loaded and loaded.is_measured),
        needs_prompt=card.needs_prompt,
        prompts=PromptPair(card.prompts.query, card.prompts.document),
        uses_tasks=card.uses_tasks,
        normalized=check.is_unit if check else card.normalized,
        matryoshka=TrainedSizes(list(card.matryoshka.sizes), card.matryoshka.any_from) if card.matryoshka else None,
        self_check=_self_check_facts(check) if check else None,
        stamp=_fingerprint_facts(fingerprint) if fingerprint else None,
        runtime=_runtime_facts(fingerprint.runtime) if fingerprint else None,
        optimised_copy=_copy_facts(loaded.copy_state) if loaded else None,
        usage=usage,
    )


def _copy_facts(state: CopyState) -> OptimisedCopyFacts:
    return OptimisedCopyFacts(state.is_used, state.size_bytes, state.reason or None)


def _model_facts(model: Model, loaded: LoadedFacts | None) -> dict[str, Any]:
    """Return the fields of `ModelFacts`."""
    return {
        "dimension": model.dim,
        "max_tokens": loaded.max_tokens if loaded else model.max_tokens,
        "size": model.size_bytes,
        "description": model.description,
        "license": model.license,
        "source": model.source,
        "is_cached": loaded is not None,
    }


def _self_check_facts(check: SelfCheckResult) -> SelfCheckFacts:
    return SelfCheckFacts(
        batch_drift=check.batch_drift,
        batch_invariant=check.is_batch_invariant,
        batching=check.batching,
        batching_cost=check.batching_cost,
        canary_cosine=check.canary_cosine,
    )


def _fingerprint_facts(fingerprint: ModelFingerprint) -> FingerprintFacts:
    return FingerprintFacts(
        revision=fingerprint.revision,
        onnx_sha256=fingerprint.onnx_sha256,
        onnxruntime=fingerprint.runtime.onnxruntime,
        fastembed=fingerprint.runtime.fastembed,
        fingerprint=fingerprint.digest,
    )


def _runtime_facts(runtime: Runtime) -> RuntimeFacts:
    return RuntimeFacts(
        id=runtime.id,
        onnxruntime=runtime.onnxruntime,
        fastembed=runtime.fastembed,
        tokenizers=runtime.tokenizers,
        cpu=runtime.cpu,
    )
