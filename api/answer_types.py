"""The service's own answers."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
from litestar.openapi.spec import OpenAPIType, Schema
from litestar.plugins import OpenAPISchemaPlugin
from litestar.typing import FieldDefinition
from numpy.typing import NDArray

from engine.pipeline import Chunk
from engine.tokenizer import Token

Vectors = NDArray[np.float32]
"""Shape ``(dim,)`` or ``(texts, dim)``: written as JSON numbers no longer than float32 needs, or as base64."""


@dataclass(frozen=True, slots=True)
class EmbedAnswer:
    """The vector of one text.

    `tokens` counts the whole text before any cut, special tokens included; `truncated` says whether the model saw less.
    """

    embedding: Vectors
    model_name: str
    dimension: int
    text_length: int
    tokens: int
    truncated: bool
    processing_time_ms: float


@dataclass(frozen=True, slots=True)
class EmbedBatchAnswer:
    """The vectors of several texts, in the order asked; `tokens` and `truncated` hold one entry per text."""

    embeddings: Vectors
    model_name: str
    dimension: int
    count: int
    tokens: list[int]
    truncated: list[bool]
    processing_time_ms: float


@dataclass(frozen=True, slots=True)
class ChunksAnswer:
    """The vectors of windows of texts: `chunks` tells for each which text and which of its characters it is of.

    `count`, `tokens` and `truncated` are of the texts, as in `EmbedBatchAnswer`.
    """

    embeddings: Vectors
    chunks: list[Chunk]
    model_name: str
    dimension: int
    count: int
    tokens: list[int]
    truncated: list[bool]
    processing_time_ms: float


@dataclass(frozen=True, slots=True)
class TextTokens:
    """One text's tokens: how many (prompt and special tokens included), whether a model sees less, and which.

    `token_list` is null unless `return_tokens` is true.
    """

    tokens: int
    truncated: bool
    token_list: list[Token] | None


@dataclass(frozen=True, slots=True)
class WorkEstimate:
    """What embedding the texts would be for an idle service, at the pace measured so far."""

    micro_batches: int
    milliseconds: float


@dataclass(frozen=True, slots=True)
class TokenizeAnswer:
    """The tokens of several texts, in the order asked."""

    model_name: str
    max_tokens: int | None
    count: int
    texts: list[TextTokens]
    estimate: WorkEstimate
    processing_time_ms: float


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """The models in memory, least recently used first, and the rules by which they leave; times in seconds."""

    cached_models: list[str]
    num_cached: int
    max_cached: int
    cache_ttl: float
    cleanup_interval: float


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the service takes work."""

    status: Literal["healthy", "starting", "draining"]
    cache_info: CacheInfo
    uptime_seconds: float


@dataclass(frozen=True, slots=True)
class Probe:
    """The answer to an orchestrator."""

    status: Literal["live", "ready", "starting", "draining"]


@dataclass(frozen=True, slots=True)
class StuckLane:
    """A lane that is in one run of a model for longer than LANE_STUCK_SECONDS, and for how many seconds."""

    model_name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class StuckProbe:
    """The answer to an orchestrator that should restart the process."""

    status: Literal["stuck"]
    stuck: list[StuckLane]


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """What is known of a model before it is loaded. `size` is that of its files in bytes."""

    name: str
    dimension: int
    max_tokens: int | None
    size: int
    description: str
    license: str
    source: Literal["bundled", "local", "hub"]
    is_cached: bool


@dataclass(frozen=True, slots=True)
class ModelList:
    """Which models there are; `allowed_models` is null where all of the catalogue may be used."""

    required_models: list[str]
    cached_models: list[str]
    allowed_models: list[str] | None
    available_models: list[ModelEntry]


@dataclass(frozen=True, slots=True)
class ModelUsage:
    """What a model has done since the service started."""

    requests: int
    texts: int
    tokens: int


@dataclass(frozen=True, slots=True)
class PromptPair:
    """What is put before a text whose `input_type` is given; empty: nothing."""

    query: str
    document: str


@dataclass(frozen=True, slots=True)
class TrainedSizes:
    """The `dimensions` that the model was trained for: `sizes`, and each from `any_from` on where it is not null."""

    sizes: list[int]
    any_from: int | None


@dataclass(frozen=True, slots=True)
class SelfCheckFacts:
    """What the model has proven when it was loaded.

    `batch_drift` is the largest difference of a number between vectors of one text alone and among others (both at
    length 1; null: texts cannot be run together), `batch_invariant` whether that is up to 1e-5. `batching` says
    which texts share a run because of it: of any length (`mixed`), of `equal` length, or none (`single`), and
    `batching_cost` how many times as long a run of mixed texts takes then. `canary_cosine` is the least cosine to
    the model's reference vectors, null without any.
    """

    batch_drift: float | None
    batch_invariant: bool
    batching: Literal["mixed", "equal", "single"]
    batching_cost: float
    canary_cosine: float | None


@dataclass(frozen=True, slots=True)
class StampFacts:
    """What the vectors depend on; `fingerprint` folds it into 16 digits, and each answer has it as a header."""

    revision: str
    onnx_sha256: str
    onnxruntime: str
    fastembed: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class ModelDetails:
    """One model.

    `load_time` (seconds), `loaded_at`, `last_used`, `self_check` and `stamp` are null while it is not in memory.
    `normalized` says whether vectors are at length 1 when `normalize` is left out; null: not known before it is loaded.
    """

    model_name: str
    is_cached: bool
    load_time: float | None
    loaded_at: datetime | None
    last_used: datetime | None
    dimension: int
    max_tokens: int | None
    size: int
    description: str
    license: str
    source: Literal["bundled", "local", "hub"]
    needs_prompt: bool
    prompts: PromptPair
    uses_tasks: bool
    normalized: bool | None
    matryoshka: TrainedSizes | None
    self_check: SelfCheckFacts | None
    stamp: StampFacts | None
    usage: ModelUsage


@dataclass(frozen=True, slots=True)
class EndpointMetrics:
    """One endpoint: answers since the start, percentiles of its latest 2,048 latencies in milliseconds."""

    requests: int
    latency_ms: dict[str, float]


@dataclass(frozen=True, slots=True)
class QueueMetrics:
    """What waits and runs now. `waiting_seconds`: until the lanes have done it, at the measured pace.

    `lanes_stuck` are in one run for longer than LANE_STUCK_SECONDS; `lanes_died` counts threads since the start.
    """

    waiting_requests: int
    waiting_texts: int
    waiting_seconds: float
    running: int
    lanes: int
    lanes_stuck: int
    lanes_died: int


@dataclass(frozen=True, slots=True)
class MicroBatchMetrics:
    """Model runs since the start: how many, their texts, their tokens with padding, texts dropped before a run."""

    runs: int
    texts: int
    padded_tokens: int
    dropped_texts: int


@dataclass(frozen=True, slots=True)
class LimitMetrics:
    """Where it is counted how much callers ask (`off`: nowhere), and how often memory had to stand in for Redis."""

    store: Literal["off", "memory", "redis"]
    fallbacks: int


@dataclass(frozen=True, slots=True)
class MetricsAnswer:
    """What the service has done since it started."""

    total_requests: int
    total_embeddings: int
    uptime_seconds: float
    cache_info: CacheInfo
    errors: dict[str, int]
    endpoints: dict[str, EndpointMetrics]
    queue: QueueMetrics
    micro_batches: MicroBatchMetrics
    models: dict[str, ModelUsage]
    limits: LimitMetrics


class VectorsSchema(OpenAPISchemaPlugin):
    """Tells OpenAPI what `Vectors` are: numbers, or base64 of them, or lists of either."""

    def is_plugin_supported_field(self, field_definition: FieldDefinition) -> bool:
        return bool(field_definition.annotation == Vectors)

    def to_openapi_schema(self, field_definition: FieldDefinition, schema_creator: Any) -> Schema:  # noqa: ARG002
        numbers = Schema(type=OpenAPIType.ARRAY, items=Schema(type=OpenAPIType.NUMBER))
        vector = Schema(one_of=[numbers, Schema(type=OpenAPIType.STRING, content_encoding="base64")])
        if field_definition.name == "embedding":
            return vector
        return Schema(type=OpenAPIType.ARRAY, items=vector)
