"""Types of the native API's answers: every JSON key of an answer is a field here.

Engine types are never serialised: `api.build_answers` converts them, so renaming a field in the engine never changes an
answer. A test checks it.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
from litestar.openapi.spec import OpenAPIType, Schema
from litestar.plugins import OpenAPISchemaPlugin
from litestar.typing import FieldDefinition
from numpy.typing import NDArray

from api.metric_types import CacheInfo, ModelUsage

Vectors = NDArray[np.float32]
"""Shape ``(dim,)`` or ``(texts, dim)``. In JSON as numbers with no more digits than float32 needs, or as base64."""


@dataclass(frozen=True, slots=True)
class EmbedAnswer:
    """The vector of one text.

    `tokens` counts the whole text before any cut, special tokens included. `truncated`: whether the model got less.
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
    """The vectors of several texts, in the order of the request; `tokens` and `truncated` hold one entry per text."""

    embeddings: Vectors
    model_name: str
    dimension: int
    count: int
    tokens: list[int]
    truncated: list[bool]
    processing_time_ms: float


@dataclass(frozen=True, slots=True)
class Chunk:
    """One window of a text: the text's index, its characters from `start` up to `end`, and the tokens of the window."""

    index: int
    start: int
    end: int
    tokens: int


@dataclass(frozen=True, slots=True)
class ChunksAnswer:
    """One vector per window of a text; `chunks` states for each vector the text and the characters it represents.

    `count`, `tokens` and `truncated` describe the texts, as in `EmbedBatchAnswer`.
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
class Token:
    """One token. `start` and `end` are its characters in the text; null for special tokens and those of a prompt."""

    token: str
    id: int
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True, slots=True)
class TextTokens:
    """The tokens of one text: their number, prompt and special tokens included, and whether the model would cut it.

    `token_list` is null unless `return_tokens` is true.
    """

    tokens: int
    truncated: bool
    token_list: list[Token] | None


@dataclass(frozen=True, slots=True)
class WorkEstimate:
    """The work of embedding the texts on an idle service: model runs, and milliseconds at the speed measured so far."""

    micro_batches: int
    milliseconds: float


@dataclass(frozen=True, slots=True)
class TokenizeAnswer:
    """The tokens of several texts, in the order of the request."""

    model_name: str
    max_tokens: int | None
    count: int
    texts: list[TextTokens]
    estimate: WorkEstimate
    processing_time_ms: float


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the service accepts work."""

    status: Literal["healthy", "starting", "draining"]
    cache_info: CacheInfo
    uptime_seconds: float


@dataclass(frozen=True, slots=True)
class WorkerCounts:
    """The workers: how many there are, how many of them accept work, and how often one was replaced."""

    number: int
    ready: int
    restarts: int


@dataclass(frozen=True, slots=True)
class HealthOfWorkers(Health):
    """Whether the service accepts work, with several workers: all of them."""

    workers: WorkerCounts


@dataclass(frozen=True, slots=True)
class Probe:
    """The answer to an orchestrator's probe."""

    status: Literal["live", "ready", "starting", "draining"]


@dataclass(frozen=True, slots=True)
class StuckLane:
    """A model run that has taken longer than LANE_STUCK_SECONDS: its model, and the seconds since it began."""

    model_name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class StuckProbe:
    """The answer to a liveness probe when the process should be restarted."""

    status: Literal["stuck"]
    stuck: list[StuckLane]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What is known of a model before it is loaded. `size` is that of its files in bytes."""

    dimension: int
    max_tokens: int | None
    size: int
    description: str
    license: str
    source: Literal["bundled", "local", "hub"]
    is_cached: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry(ModelFacts):
    """One model in the list of models. `size` is that of its files in bytes."""

    name: str


@dataclass(frozen=True, slots=True)
class ModelList:
    """The models of the service; `allowed_models` is null if the whole catalogue may be used."""

    required_models: list[str]
    cached_models: list[str]
    allowed_models: list[str] | None
    available_models: list[ModelEntry]


@dataclass(frozen=True, slots=True)
class PromptPair:
    """The prompts that are put before a text with an `input_type`; empty: none."""

    query: str
    document: str


@dataclass(frozen=True, slots=True)
class TrainedSizes:
    """The `dimensions` that the model was trained for: those in `sizes`, and from `any_from` (if not null) on all."""

    sizes: list[int]
    any_from: int | None


@dataclass(frozen=True, slots=True)
class SelfCheckFacts:
    """The results of the checks that a model passed when it was loaded.

    `batch_drift` is the largest difference in any component between the vector of a text embedded alone and embedded
    among others, both of length 1; null: the model cannot run several texts. `batch_invariant`: whether it is at most
    1e-5. `batching`: which texts may therefore share a run: of any length (`mixed`), of `equal` length, or none
    (`single`). `batching_cost`: how many times as long mixed texts take because of that. `canary_cosine`: the lowest
    cosine to the model's reference vectors; null: it has none.
    """

    batch_drift: float | None
    batch_invariant: bool
    batching: Literal["mixed", "equal", "single"]
    batching_cost: float
    canary_cosine: float | None


@dataclass(frozen=True, slots=True)
class FingerprintFacts:
    """What makes the vectors: `fingerprint` is a hash over it, without revision and versions; a header of answers."""

    revision: str
    onnx_sha256: str
    onnxruntime: str
    fastembed: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class RuntimeFacts:
    """What runs the model; `id` is a hash over it. Another runtime returns the same vectors up to the last digits."""

    id: str
    onnxruntime: str
    fastembed: str
    tokenizers: str
    cpu: str


@dataclass(frozen=True, slots=True)
class OptimisedCopyFacts:
    """Whether the model runs from its optimised copy, whose files have `size` bytes; `reason`: why it does not."""

    used: bool
    size: int
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDetails(ModelFacts):
    """One model.

    `load_time` (seconds), `loaded_at`, `last_used`, `self_check`, `stamp`, `runtime`, `optimised_copy`: null while it
    is not in memory.
    `memory_bytes`: measured when it was loaded if `memory_measured`, else estimated; 0 while it is not in memory.
    `normalized`: whether vectors have length 1 when a request omits `normalize`; null: unknown before it is loaded.
    """

    model_name: str
    load_time: float | None
    loaded_at: datetime | None
    last_used: datetime | None
    memory_bytes: int
    memory_measured: bool
    needs_prompt: bool
    prompts: PromptPair
    uses_tasks: bool
    normalized: bool | None
    matryoshka: TrainedSizes | None
    self_check: SelfCheckFacts | None
    stamp: FingerprintFacts | None
    runtime: RuntimeFacts | None
    optimised_copy: OptimisedCopyFacts | None
    usage: ModelUsage


@dataclass(frozen=True, slots=True)
class ModelWorkers:
    """How many workers there are, and how many of them have the model in memory."""

    number: int
    loaded: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDetailsOfWorkers(ModelDetails):
    """One model, with several workers.

    `usage` and `memory_bytes` are those of all. `loaded_at` is the earliest one, and all else from the worker that used
    it last.
    """

    workers: ModelWorkers


class VectorsSchema(OpenAPISchemaPlugin):
    """Describes `Vectors` in OpenAPI: numbers, or base64 of them, or lists of either."""

    def is_plugin_supported_field(self, field_definition: FieldDefinition) -> bool:
        return bool(field_definition.annotation == Vectors)

    def to_openapi_schema(self, field_definition: FieldDefinition, schema_creator: Any) -> Schema:  # noqa: ARG002
        numbers = Schema(type=OpenAPIType.ARRAY, items=Schema(type=OpenAPIType.NUMBER))
        vector = Schema(one_of=[numbers, Schema(type=OpenAPIType.STRING, content_encoding="base64")])
        if field_definition.name == "embedding":
            return vector
        return Schema(type=OpenAPIType.ARRAY, items=vector)
