"""OpenAPI descriptions of every route: its body and all its answers, each with a valid example."""

from dataclasses import asdict
from datetime import UTC, datetime

from access.principals import MissingPermissionError
from api.answer_formats import ARROW, NotAcceptableError
from api.answer_types import (
    Chunk,
    ChunksAnswer,
    EmbedAnswer,
    EmbedBatchAnswer,
    FingerprintFacts,
    Health,
    HealthOfWorkers,
    ModelDetails,
    ModelEntry,
    ModelList,
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
    WorkerCounts,
    WorkEstimate,
)
from api.metric_types import CacheInfo, MetricsAnswer, ModelUsage
from api.openapi import Responses, answer, body, problem, problems
from api.openapi_metrics import CACHE, METRICS_ANSWER, METRICS_OF_WORKERS
from api.problem_examples import MODEL_NAME, NOT_ALLOWED, NOT_AUTHENTICATED, RUN, WORK, BadRequestError
from api.request_types import EmbedBatchRequest, EmbedRequest, TokenizeRequest
from engine import errors

TEXT, OTHER_TEXT = "How do I reset my password?", "I forgot my login."


EmbedBody = body(
    EmbedRequest,
    ("One text", {"text": TEXT, "model_name": MODEL_NAME}),
    ("A query; the model's prompt for queries is added", {"text": TEXT, "input_type": "query"}),
    ("No cut: a text that is too long is rejected", {"text": TEXT, "truncate": "none"}),
    ("A long text as the mean of its windows", {"text": TEXT, "long_text": "mean"}),
    ("A vector per window, with its characters", {"text": TEXT, "long_text": "chunks"}),
    ("int8 numbers in base64", {"text": TEXT, "dtype": "int8", "encoding": "base64"}),
)
EmbedBatchBody = body(
    EmbedBatchRequest,
    ("Two texts", {"texts": [TEXT, OTHER_TEXT], "model_name": MODEL_NAME}),
    ("Documents, one bit per number", {"texts": [TEXT, OTHER_TEXT], "input_type": "document", "dtype": "ubinary"}),
    (
        "128 numbers of a model that was not trained for it",
        {"texts": [TEXT], "dimensions": 128, "allow_untrained_dimensions": True, "normalize": True},
    ),
)
TokenizeBody = body(
    TokenizeRequest,
    ("Counts", {"texts": [TEXT, OTHER_TEXT], "model_name": MODEL_NAME}),
    ("Each token, as a query", {"texts": ["Hello"], "input_type": "query", "return_tokens": True}),
)

_VECTOR = [0.00687232, -0.06304797, -0.07204665, -0.03246166]
_OTHER_VECTOR = [0.01109264, -0.06335957, -0.00570481, 0.03818972]
_SHORTENED = "The vectors are shortened to 4 of their 384 numbers"
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


_WORK_PROBLEMS = problems(
    problem(
        errors.InvalidInputError,
        "texts[1]: 9000 characters are more than the 8192 allowed in one text.",
        field="texts",
        index=1,
        limit=8192,
    ),
    problem(
        errors.InvalidInputError,
        "dtype: 'float8' is not allowed. Choose one of float32, float16, int8, uint8, binary, ubinary.",
        field="dtype",
        choices=["float32", "float16", "int8", "uint8", "binary", "ubinary"],
    ),
    problem(
        errors.UnknownModelError,
        "No model named 'bge-small' is offered. Did you mean 'BAAI/bge-small-en'?",
        closest=["BAAI/bge-small-en"],
    ),
    problem(NotAcceptableError, f"{ARROW} needs pyarrow, which is not installed here (requirements/arrow.txt)."),
    *WORK,
    *RUN,
)


_STATUSES_OF_RUNS = {NotAcceptableError.status, errors.InferenceError.status}
"""Statuses that cannot occur on a route that runs no model and always answers with JSON."""
_CHUNKS = {
    "embeddings": [_VECTOR, _OTHER_VECTOR],
    "chunks": [asdict(Chunk(0, 0, 1210, 256)), asdict(Chunk(0, 1211, 1304, 24))],
    "model_name": MODEL_NAME,
    "dimension": 384,
    "count": 1,
    "tokens": [278],
    "truncated": [False],
    "processing_time_ms": 41.77,
}
EMBED: Responses = {
    200: answer(
        EmbedAnswer | ChunksAnswer,
        {
            "embedding": _VECTOR,
            "model_name": MODEL_NAME,
            "dimension": 384,
            "text_length": len(TEXT),
            "tokens": 9,
            "truncated": False,
            "processing_time_ms": 5.127,
        },
        description="The vector; with `long_text=chunks` one per window",
        summary=_SHORTENED,
        further=[("With long_text=chunks", _CHUNKS)],
    ),
    **_WORK_PROBLEMS,
}
EMBED_BATCH: Responses = {
    200: answer(
        EmbedBatchAnswer | ChunksAnswer,
        {
            "embeddings": [_VECTOR, _OTHER_VECTOR],
            "model_name": MODEL_NAME,
            "dimension": 384,
            "count": 2,
            "tokens": [9, 8],
            "truncated": [False, False],
            "processing_time_ms": 7.311,
        },
        description="The vectors, in the order of the texts; with `long_text=chunks` one per window",
        summary=_SHORTENED,
        further=[("With long_text=chunks", _CHUNKS)],
    ),
    **_WORK_PROBLEMS,
}
TOKENIZE: Responses = {
    200: answer(
        TokenizeAnswer,
        TokenizeAnswer(
            model_name=MODEL_NAME,
            max_tokens=256,
            count=1,
            texts=[TextTokens(3, truncated=False, token_list=[Token("hello", 7592, 0, 5)])],
            estimate=WorkEstimate(micro_batches=1, milliseconds=4.123),
            processing_time_ms=0.311,
        ),
        description="The tokens of each text, in the order of the request",
        summary="The two special tokens, which have no characters, are left out",
    ),
    **{status: answers for status, answers in _WORK_PROBLEMS.items() if status not in _STATUSES_OF_RUNS},
}
HEALTH: Responses = {
    200: answer(
        Health,
        Health("healthy", CACHE, 86.4),
        description="The service accepts work",
        further=[
            (
                "With several workers",
                HealthOfWorkers("healthy", CACHE, 86.4, WorkerCounts(number=2, ready=2, restarts=0)),
            )
        ],
    ),
    503: answer(
        Health, Health("starting", CacheInfo([], 0, 5, 3600.0, 60.0), 0.4), description="It starts or shuts down"
    ),
}
LIVE: Responses = {
    200: answer(Probe, Probe("live"), description="The process works"),
    503: answer(
        StuckProbe,
        StuckProbe("stuck", [StuckLane(MODEL_NAME, 184.2)]),
        description="A model run does not end: restart the process",
    ),
}
READY: Responses = {
    200: answer(Probe, Probe("ready"), description="Send requests here"),
    503: answer(Probe, Probe("starting"), description="Send requests elsewhere"),
}
MODELS: Responses = {
    200: answer(ModelList, ModelList([MODEL_NAME], [MODEL_NAME], [MODEL_NAME], [_ENTRY]), description="The models"),
    **problems(*NOT_AUTHENTICATED),
}
MODEL: Responses = {
    200: answer(
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
            memory_bytes=61_000_000,
            memory_measured=True,
            needs_prompt=False,
            prompts=PromptPair("", ""),
            uses_tasks=False,
            normalized=True,
            matryoshka=TrainedSizes([128, 256], any_from=64),
            self_check=SelfCheckFacts(
                batch_drift=1.2e-7, batch_invariant=True, batching="mixed", batching_cost=1.0, canary_cosine=0.999999
            ),
            stamp=FingerprintFacts(
                revision="sha256:53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                onnx_sha256="560054b8e397a997e9bc969386e72b836a979d9ed2a53a3c5705a70b142affca",
                onnxruntime="1.32.0",
                fastembed="0.9.1",
                fingerprint="853622761c0bc2c3",
            ),
            runtime=RuntimeFacts(
                id="4d2c6a1f0b9e8d73",
                onnxruntime="1.32.0",
                fastembed="0.9.1",
                tokenizers="0.23.3",
                cpu="x86_64 avx512_vnni",
            ),
            optimised_copy=OptimisedCopyFacts(used=True, size=109_334_714, reason=None),
            usage=ModelUsage(requests=12, texts=340, tokens=9021),
        ),
        description="The model",
    ),
    **problems(
        *NOT_AUTHENTICATED,
        problem(BadRequestError, "Invalid host header"),
        NOT_ALLOWED,
        problem(
            errors.ModelNotFoundError,
            "No model named 'bge-small' is offered. Did you mean 'BAAI/bge-small-en'?",
            closest=["BAAI/bge-small-en"],
        ),
    ),
}
_NO_METRICS: Responses = problems(
    *NOT_AUTHENTICATED,
    problem(MissingPermissionError, "This needs a key with the permission 'metrics'.", scope="metrics"),
    problem(errors.MetricsDisabledError, "ENABLE_METRICS disables the metrics."),
    problem(NotAcceptableError, "Metrics are available as text/plain. The header Accept names none of them."),
)
METRICS: Responses = {
    200: answer(
        MetricsAnswer,
        METRICS_ANSWER,
        description="The counters. With several workers, they are those of all, and `workers` lists each of them",
        further=[("With several workers", METRICS_OF_WORKERS)],
    ),
    **_NO_METRICS,
}
PROMETHEUS: Responses = {
    200: answer(str, "", description="The counters as text"),
    **_NO_METRICS,
}
