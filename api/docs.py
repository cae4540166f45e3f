"""What OpenAPI says of the routes: every answer they give, each with an example that is valid."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

from litestar.enums import RequestEncodingType
from litestar.openapi import OpenAPIConfig
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example
from litestar.params import BodyKwarg

from api.native import (
    CacheInfo,
    EmbedAnswer,
    EmbedBatchAnswer,
    EmbedBatchRequest,
    EmbedRequest,
    EndpointMetrics,
    Health,
    MetricsAnswer,
    MicroBatchMetrics,
    ModelDetails,
    ModelEntry,
    ModelList,
    ModelUsage,
    Probe,
    QueueMetrics,
)
from api.problems import MEDIA_TYPE, NotJsonError, Problem
from engine import errors

MODEL_NAME = "sentence-transformers/all-MiniLM-L6-v2"
TEXT, OTHER_TEXT = "How do I reset my password?", "I forgot my login."

EmbedBody = Annotated[
    EmbedRequest,
    BodyKwarg(
        media_type=RequestEncodingType.JSON,
        examples=[Example(summary="One text", value={"text": TEXT, "model_name": MODEL_NAME})],
    ),
]
EmbedBatchBody = Annotated[
    EmbedBatchRequest,
    BodyKwarg(
        media_type=RequestEncodingType.JSON,
        examples=[Example(summary="Two texts", value={"texts": [TEXT, OTHER_TEXT], "model_name": MODEL_NAME})],
    ),
]

Responses = Mapping[int, ResponseSpec]

_VECTOR = [0.00687232, -0.06304797, -0.07204665, -0.03246166]
_OTHER_VECTOR = [0.01109264, -0.06335957, -0.00570481, 0.03818972]
_SHORTENED = "The vectors are shortened to 4 of their 384 numbers"
_CACHE = CacheInfo([MODEL_NAME], num_cached=1, max_cached=5, cache_ttl=3600.0, cleanup_interval=60.0)
_ENTRY = ModelEntry(
    name=MODEL_NAME,
    dimension=384,
    max_tokens=256,
    size=46_000_000,
    description="English sentences and short paragraphs.",
    license="apache-2.0",
    source="bundled",
    is_cached=True,
)
_WHEN = datetime(2026, 11, 23, 9, 30, tzinfo=UTC)


def _answer(container: type, value: object, *, description: str, summary: str = "An answer") -> ResponseSpec:
    example = Example(summary=summary, value=_plain(value))
    return ResponseSpec(container, generate_examples=False, description=description, examples=[example])


def _plain(value: object) -> Any:
    """As JSON has it: dates become text."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return _plain(asdict(value)) if hasattr(value, "__dataclass_fields__") else value  # type: ignore[call-overload]


def _problem(kind: type[errors.ServiceError], detail: str, **facts: object) -> tuple[int, Example]:
    return kind.status, Example(
        summary=kind.title,
        value={
            "type": f"urn:fast-embedding:problem:{kind.code}",
            "title": kind.title,
            "status": kind.status,
            "detail": detail,
            "code": kind.code,
            "status_code": kind.status,
            "request_id": "0f5e8c4d2b7a4c39a6d1f8e7b2c3d4e5",
            **facts,
        },
    )


def _problems(*told: tuple[int, Example]) -> dict[int, ResponseSpec]:
    """One row per status; its examples are told apart by their titles."""
    by_status: dict[int, list[Example]] = {}
    for status, example in told:
        by_status.setdefault(status, []).append(example)
    return {
        status: ResponseSpec(
            Problem,
            generate_examples=False,
            description="; or: ".join(str(example.summary) for example in same),
            media_type=MEDIA_TYPE,
            examples=same,
        )
        for status, same in by_status.items()
    }


class _TooLargeError(errors.ServiceError):
    """Litestar reports it; here is how it reads."""

    status, code, title = 413, "content-too-large", "Content Too Large"


_NOT_ALLOWED = _problem(
    errors.ModelNotAllowedError,
    "The model 'thenlper/gte-base' is outside ALLOWED_MODELS. GET /models lists what may be used.",
)
_WORK_PROBLEMS = _problems(
    _problem(
        errors.InvalidInputError,
        "texts[1]: 9000 characters are more than the 8192 that a text may have.",
        field="texts",
        index=1,
        limit=8192,
    ),
    _problem(
        errors.UnknownModelError,
        "No model named 'bge-small' is offered. Did you mean 'BAAI/bge-small-en'?",
        closest=["BAAI/bge-small-en"],
    ),
    _NOT_ALLOWED,
    _problem(_TooLargeError, "The body is larger than MAX_REQUEST_SIZE allows.", limit=10_000_000),
    _problem(NotJsonError, "Send the body as JSON, with the header 'Content-Type: application/json'."),
    _problem(errors.InferenceError, "The model failed on this input. The failure is in the service's log."),
    _problem(errors.InvalidVectorError, "The vector of text 3 holds NaN or infinity, so it is not passed on.", index=3),
    _problem(
        errors.ModelUnavailableError,
        "The model 'thenlper/gte-base' cannot be loaded now: it is not in the cache, and the hub cannot be reached.",
    ),
    _problem(errors.OverloadedError, "Work for 10.2 s is waiting; with this request it would be more than may wait."),
    _problem(errors.DrainingError, "The service is shutting down and takes no new work."),
    _problem(
        errors.DeadlineError,
        "The request's time was over before the answer was there; what still waited was dropped.",
    ),
)


def openapi_config(version: str) -> OpenAPIConfig:
    """The API's description, at /schema for people and at /schema/openapi.json for programs."""
    return OpenAPIConfig(
        title="Fast Embedding API",
        version=version,
        description="Turns text into vectors with FastEmbed's models, on CPU. Errors are RFC 9457 problem details.",
        path="/schema",
        use_handler_docstrings=True,
    )


EMBED: Responses = {
    200: _answer(
        EmbedAnswer,
        {
            "embedding": _VECTOR,
            "model_name": MODEL_NAME,
            "dimension": 384,
            "text_length": len(TEXT),
            "tokens": 9,
            "truncated": False,
            "processing_time_ms": 5.127,
        },
        description="The vector",
        summary=_SHORTENED,
    ),
    **_WORK_PROBLEMS,
}
EMBED_BATCH: Responses = {
    200: _answer(
        EmbedBatchAnswer,
        {
            "embeddings": [_VECTOR, _OTHER_VECTOR],
            "model_name": MODEL_NAME,
            "dimension": 384,
            "count": 2,
            "tokens": [9, 8],
            "truncated": [False, False],
            "processing_time_ms": 7.311,
        },
        description="The vectors, in the order of the texts",
        summary=_SHORTENED,
    ),
    **_WORK_PROBLEMS,
}
HEALTH: Responses = {
    200: _answer(Health, Health("healthy", _CACHE, 86.4), description="It takes work"),
    503: _answer(
        Health, Health("starting", CacheInfo([], 0, 5, 3600.0, 60.0), 0.4), description="It starts or shuts down"
    ),
}
LIVE: Responses = {200: _answer(Probe, Probe("live"), description="The process works")}
READY: Responses = {
    200: _answer(Probe, Probe("ready"), description="Send requests here"),
    503: _answer(Probe, Probe("starting"), description="Send requests elsewhere"),
}
MODELS: Responses = {
    200: _answer(ModelList, ModelList([MODEL_NAME], [MODEL_NAME], [MODEL_NAME], [_ENTRY]), description="The models")
}
MODEL: Responses = {
    200: _answer(
        ModelDetails,
        ModelDetails(
            model_name=MODEL_NAME,
            is_cached=True,
            load_time=0.312,
            loaded_at=_WHEN,
            last_used=_WHEN,
            dimension=_ENTRY.dimension,
            max_tokens=_ENTRY.max_tokens,
            size=_ENTRY.size,
            description=_ENTRY.description,
            license=_ENTRY.license,
            source=_ENTRY.source,
            usage=ModelUsage(requests=12, texts=340, tokens=9021),
        ),
        description="The model",
    ),
    **_problems(
        _problem(errors.InvalidInputError, "name: Expected a string."),
        _NOT_ALLOWED,
        _problem(
            errors.ModelNotFoundError,
            "No model named 'bge-small' is offered. Did you mean 'BAAI/bge-small-en'?",
            closest=["BAAI/bge-small-en"],
        ),
    ),
}
METRICS: Responses = {
    200: _answer(
        MetricsAnswer,
        MetricsAnswer(
            total_requests=14,
            total_embeddings=340,
            uptime_seconds=86.4,
            cache_info=_CACHE,
            errors={"invalid-input": 1},
            endpoints={"POST /embed/batch": EndpointMetrics(12, {"p50": 41.2, "p95": 77.9, "p99": 80.3})},
            queue=QueueMetrics(waiting_requests=0, waiting_texts=0, waiting_seconds=0.0, running=1, lanes=2),
            micro_batches=MicroBatchMetrics(runs=97, texts=340, padded_tokens=9420, dropped_texts=0),
            models={MODEL_NAME: ModelUsage(requests=12, texts=340, tokens=9021)},
        ),
        description="The counters",
    ),
    **_problems(_problem(errors.MetricsDisabledError, "The metrics are switched off by ENABLE_METRICS.")),
}
