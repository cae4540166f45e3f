"""The service's own wire format: bodies, answers, and the rules that a text must keep."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import orjson
from litestar import Response
from litestar.openapi.spec import OpenAPIType, Schema
from litestar.plugins import OpenAPISchemaPlugin
from litestar.typing import FieldDefinition
from msgspec import Meta
from numpy.typing import NDArray

from engine.errors import InvalidInputError

Vectors = NDArray[np.float32]
"""Float32 of shape ``(dim,)`` or ``(texts, dim)``: written as JSON numbers no longer than float32 needs."""


class EmbedRequest(msgspec.Struct, forbid_unknown_fields=True):
    """One text to embed."""

    text: Annotated[str, Meta(description="Not blank; at most MAX_TEXT_LENGTH characters.")]
    model_name: Annotated[str | None, Meta(description="Default: the first of REQUIRED_MODELS.")] = None


class EmbedBatchRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Several texts to embed."""

    texts: Annotated[list[str], Meta(description="1 to MAX_BATCH_SIZE texts, none of them blank.")]
    model_name: Annotated[str | None, Meta(description="Default: the first of REQUIRED_MODELS.")] = None


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
class ModelDetails:
    """One model; `load_time` (seconds), `loaded_at` and `last_used` are null while it is not in memory."""

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
    usage: ModelUsage


@dataclass(frozen=True, slots=True)
class EndpointMetrics:
    """One endpoint: answers since the start, percentiles of its latest 2,048 latencies in milliseconds."""

    requests: int
    latency_ms: dict[str, float]


@dataclass(frozen=True, slots=True)
class QueueMetrics:
    """What waits and runs now. `waiting_seconds`: until the lanes have done it, at the measured pace."""

    waiting_requests: int
    waiting_texts: int
    waiting_seconds: float
    running: int
    lanes: int


@dataclass(frozen=True, slots=True)
class MicroBatchMetrics:
    """Model runs since the start: how many, their texts, their tokens with padding, texts dropped before a run."""

    runs: int
    texts: int
    padded_tokens: int
    dropped_texts: int


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


class FastResponse(Response[Any]):
    """JSON by orjson, which writes numpy's float32 directly and with no more digits than float32 has."""

    def render(self, content: Any, media_type: str, enc_hook: Any = None) -> bytes:  # noqa: ARG002 - Litestar's signature
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_UTC_Z)


class VectorsSchema(OpenAPISchemaPlugin):
    """Tells OpenAPI what `Vectors` are: numbers, or lists of them."""

    def is_plugin_supported_field(self, field_definition: FieldDefinition) -> bool:
        return bool(field_definition.annotation == Vectors)

    def to_openapi_schema(self, field_definition: FieldDefinition, schema_creator: Any) -> Schema:  # noqa: ARG002
        numbers = Schema(type=OpenAPIType.ARRAY, items=Schema(type=OpenAPIType.NUMBER))
        if field_definition.name == "embedding":
            return numbers
        return Schema(type=OpenAPIType.ARRAY, items=numbers)


@dataclass(frozen=True, slots=True)
class TextRules:
    """What a request's texts must keep."""

    max_characters: int
    max_texts: int

    def check_text(self, text: str) -> None:
        """Check the only text of a request.

        Raises:
            InvalidInputError: blank or too long; it names field and limit.
        """
        self._check(text, "text", {"field": "text"})

    def check_texts(self, texts: Sequence[str]) -> None:
        """Check all texts of a request.

        Raises:
            InvalidInputError: none, too many, or one blank or too long; it names field, index and limit.
        """
        if not texts:
            raise InvalidInputError(
                "texts: the list is empty; send 1 text or more.", facts={"field": "texts", "limit": 1}
            )
        if len(texts) > self.max_texts:
            raise InvalidInputError(
                f"texts: {len(texts)} texts are more than the {self.max_texts} that one request may hold.",
                facts={"field": "texts", "limit": self.max_texts},
            )
        for index, text in enumerate(texts):
            self._check(text, f"texts[{index}]", {"field": "texts", "index": index})

    def _check(self, text: str, place: str, facts: dict[str, object]) -> None:
        if not text or text.isspace():
            raise InvalidInputError(f"{place}: the text is {'blank' if text else 'empty'}.", facts=facts)
        if len(text) > self.max_characters:
            raise InvalidInputError(
                f"{place}: {len(text)} characters are more than the {self.max_characters} that a text may have.",
                facts={**facts, "limit": self.max_characters},
            )
