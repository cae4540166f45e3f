"""The answers of OpenAI's routes: their types, and how vectors and errors are written."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal

import orjson
from numpy.typing import NDArray

from engine.catalog import Model
from engine.embed_run import EmbedRun
from engine.model_places import LoadedModel
from engine.vectors import little_endian, to_base64
from web.dialects import Dialect, not_found_for_unknown_model, unknown_model_advice

DEFAULT_OWNER = "fast-embedding"
"""The owner of a model whose name states none."""
MODEL_CODES = {"unknown-model", "model-not-allowed", "model-unavailable"}
"""Problem codes about the field `model`."""
CODES = {
    "unauthenticated": "invalid_api_key",
    "unknown-model": "model_not_found",
    "rate-limited": "rate_limit_exceeded",
}
"""OpenAI's codes by ours; the others are ours with underscores."""
TYPES: Mapping[int, str] = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_exceeded",
}


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


def model_entry(model: Model, loaded: LoadedModel | None) -> OpenAIModel:
    """Describe *model*; *loaded*: it, if it is in memory."""
    fingerprint = loaded.encoder.fingerprint if loaded else None
    owner, slash, _ = model.name.partition("/")
    return OpenAIModel(
        id=model.name,
        object="model",
        created=int(loaded.loaded_at.timestamp()) if loaded else 0,
        owned_by=owner if slash else DEFAULT_OWNER,
        dimension=model.dim,
        max_tokens=loaded.encoder.max_tokens if loaded else model.max_tokens,
        size=model.size_bytes,
        fingerprint=fingerprint.digest if fingerprint else None,
    )


def _error_members(problem: Mapping[str, object]) -> Mapping[str, object]:
    """Return the member `error` that OpenAI's clients read, for a *problem* document."""
    code = str(problem["code"])
    return {
        "error": {
            "message": _message_of(problem),
            "type": _type_of(int(str(problem["status"]))),
            "param": _param_of(problem),
            "code": CODES.get(code, code.replace("-", "_")),
        }
    }


def _message_of(problem: Mapping[str, object]) -> object:
    if (advice := unknown_model_advice(problem, "GET /v1/models")) is None:
        return problem["detail"]
    return f"The model {problem['model']!r} does not exist. {advice}"


def _param_of(problem: Mapping[str, object]) -> object:
    """Return the field that the problem is about; None: it is about none."""
    if problem["code"] in MODEL_CODES:
        return "model"
    if "field" in problem:
        return problem["field"]
    # A place such as `input[3][1]` is too deep for the member `field`.
    place = re.match(r"([a-z_]+)[\[\d\]]*: ", str(problem["detail"]))
    return place[1] if place else "input" if "index" in problem else None


def _type_of(status: int) -> str:
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return "server_error"
    return TYPES.get(status, "invalid_request_error")


OPENAI = Dialect(
    name="openai",
    members=_error_members,
    status=not_found_for_unknown_model,
    fields={
        "text": "input",
        "texts": "input",
        "model_name": "model",
        "dtype": "output_dtype",
        "normalize": "normalized",
    },
    prefixes=("/v1/", "/embeddings/", "/openai/"),
)
