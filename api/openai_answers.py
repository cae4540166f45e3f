"""The answers of OpenAI's routes: their types, and how vectors are written."""

from dataclasses import dataclass
from typing import Any, Literal

import orjson
from numpy.typing import NDArray

from engine.catalog import Model
from engine.embed_run import EmbedRun
from engine.loaded_facts import LoadedFacts
from engine.vectors import little_endian, to_base64

DEFAULT_OWNER = "fast-embedding"
"""The owner of a model whose name states none."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """The vector of one text: a list of numbers, or their bytes in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens that the model ran, special tokens included; both numbers are the same."""

    prompt_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class EmbeddingsAnswer:
    """The vectors, in the order of the texts."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


@dataclass(frozen=True, slots=True)
class OpenAIModel:
    """One model.

    `created`: when it was loaded, in seconds since 1970; 0: it is not in memory. `size`: bytes of its files.
    `dimension`: numbers per vector. `max_tokens`: its longest input; null: known once it is loaded. `fingerprint`: as
    in `X-Model-Fingerprint`; null: it is not in memory.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    dimension: int
    max_tokens: int | None
    size: int
    fingerprint: str | None


@dataclass(frozen=True, slots=True)
class CohereModel:
    """One model, as Cohere's clients read it."""

    name: str
    endpoints: list[str]
    context_length: int | None


@dataclass(frozen=True, slots=True)
class OpenAIModelList:
    """The models that may be used, those that need no download first. `models`: the same for Cohere's clients."""

    object: Literal["list"]
    data: list[OpenAIModel]
    models: list[CohereModel]


def model_list(entries: list[OpenAIModel]) -> OpenAIModelList:
    """List *entries* for clients of both APIs, which ask at the same address."""
    return OpenAIModelList("list", entries, [CohereModel(entry.id, ["embed"], entry.max_tokens) for entry in entries])


@dataclass(frozen=True, slots=True)
class EmbeddingsWriter:
    """Writes `EmbeddingsAnswer` piece by piece."""

    is_base64: bool

    def head(self, run: EmbedRun) -> bytes:
        del run
        return b'{"object":"list","data":['

    def rows(self, vectors: NDArray[Any], first: int, run: EmbedRun) -> bytes:
        del run
        encoded = to_base64(vectors) if self.is_base64 else little_endian(vectors)
        rows = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(encoded, first)]
        return orjson.dumps(rows, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]

    def tail(self, run: EmbedRun) -> bytes:
        usage = {"prompt_tokens": run.used_tokens, "total_tokens": run.used_tokens}
        return b"]," + orjson.dumps({"model": run.model.name, "usage": usage})[1:]


def model_entry(model: Model, loaded: LoadedFacts | None) -> OpenAIModel:
    """Describe *model*; *loaded*: it, if it is in memory."""
    fingerprint = loaded.fingerprint if loaded else None
    owner, slash, _ = model.name.partition("/")
    return OpenAIModel(
        id=model.name,
        object="model",
        created=int(loaded.loaded_at.timestamp()) if loaded else 0,
        owned_by=owner if slash else DEFAULT_OWNER,
        dimension=model.dim,
        max_tokens=loaded.max_tokens if loaded else model.max_tokens,
        size=model.size_bytes,
        fingerprint=fingerprint.digest if fingerprint else None,
    )
