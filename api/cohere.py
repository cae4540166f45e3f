"""Cohere's API: embeddings, version 2 and version 1."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal
from uuid import uuid4

import orjson
from litestar import Request, post
from litestar.di import NamedDependency
from litestar.response.base import ASGIResponse
from numpy.typing import NDArray

from api import cohere_examples, openapi
from api.cohere_errors import COHERE
from api.cohere_types import CohereEmbedRequest, EmbeddingType
from api.model_names import ModelNames
from api.request_types import Timeout
from api.vector_answers import vectors_answer, without_prompt
from engine.embed_run import EmbedRun
from engine.embedder import Embedder
from engine.vectors import Dtype, convert, to_base64
from web.request_context import context_of

DTYPES: dict[EmbeddingType, Dtype] = {
    "int8": "int8",
    "uint8": "uint8",
    "binary": "binary",
    "ubinary": "ubinary",
}
"""Types of numbers; `float` and `base64` are float32."""


class CohereWriter:
    """Writes Cohere's answer. Vectors of the first type are written at once, those of the others kept until the end."""

    def __init__(
        self, texts: Sequence[str], kinds: Sequence[EmbeddingType], version: Literal["1", "2"], *, is_bare: bool
    ) -> None:
        """Answer for *texts* with vectors of these *kinds*; *is_bare*: with floats that are not below a key."""
        self._texts = texts
        self._kind, *others = kinds
        self._kept: dict[EmbeddingType, list[bytes]] = {kind: [] for kind in others}
        self._version = version
        self._is_bare = is_bare

    def head(self, run: EmbedRun) -> bytes:  # noqa: ARG002 - the signature of `VectorsWriter`
        """Begin the answer."""
        start = b"[" if self._is_bare else b'{"%s":[' % self._kind.encode()
        return b'{"id":"%s","embeddings":%s' % (str(uuid4()).encode(), start)

    def rows(self, vectors: NDArray[Any], first: int, run: EmbedRun) -> bytes:  # noqa: ARG002 - as above
        """Return the next vectors of the first type, and keep those of the others."""
        for kind, kept in self._kept.items():
            kept.append(_rows(vectors, kind))
        return _rows(vectors, self._kind)

    def tail(self, run: EmbedRun) -> bytes:
        """Return the vectors of the other types, and what follows them."""
        pieces = [b"]"]
        for kind, kept in self._kept.items():
            pieces += [b',"%s":[' % kind.encode(), b",".join(kept), b"]"]
        facts = {
            "texts": self._texts,
            "meta": {"api_version": {"version": self._version}, "billed_units": {"input_tokens": run.used_tokens}},
            "response_type": "embeddings_floats" if self._is_bare else "embeddings_by_type",
        }
        return b"".join([*pieces, b"," if self._is_bare else b"},", orjson.dumps(facts)[1:]])


def _rows(vectors: NDArray[Any], kind: EmbeddingType) -> bytes:
    """Return *vectors*, float32 of length 1, as JSON without the brackets around all of them."""
    if kind == "base64":
        return orjson.dumps(to_base64(vectors))[1:-1]
    return orjson.dumps(convert(vectors, DTYPES.get(kind, "float32")), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]


_embed_route = partial(
    post,
    status_code=200,
    opt={"permission": "embed", "work": "queued", "dialect": COHERE},
    tags=["Cohere"],
    security=openapi.CREDENTIALS,
    operation_class=openapi.DialectVectorsOperation,
)


@_embed_route("/v2/embed", responses=cohere_examples.embed_responses(has_floats=False))
async def embed_v2(
    data: cohere_examples.EmbedBody,
    embedder: NamedDependency[Embedder],
    names: NamedDependency[ModelNames],
    request: Request[Any, Any, Any],
    request_timeout: Timeout = None,
) -> ASGIResponse:
    """Embed texts as Cohere's API does, version 2: vectors of each requested type."""
    return await _embed(data, embedder, names, request, request_timeout, version="2")


@_embed_route("/v1/embed", responses=cohere_examples.embed_responses(has_floats=True))
async def embed_v1(
    data: cohere_examples.EmbedBody,
    embedder: NamedDependency[Embedder],
    names: NamedDependency[ModelNames],
    request: Request[Any, Any, Any],
    request_timeout: Timeout = None,
) -> ASGIResponse:
    """Embed texts as Cohere's API does, version 1: bare lists of numbers, or vectors of each requested type."""
    return await _embed(data, embedder, names, request, request_timeout, version="1")


async def _embed(
    body: CohereEmbedRequest,
    embedder: Embedder,
    names: ModelNames,
    request: Request[Any, Any, Any],
    timeout_s: float | None,
    *,
    version: Literal["1", "2"],
) -> ASGIResponse:
    texts = body.all_texts()
    context_of(request.scope).encoding_formats = tuple(body.embedding_types or ())
    model = names.resolve(body.model)
    is_bare = version == "1" and not body.embedding_types
    return await vectors_answer(
        embedder,
        request,
        CohereWriter(texts, body.kinds, version, is_bare=is_bare),
        model_name=model.name,
        texts=without_prompt(texts, model, body.native_input_type),
        options=body.options,
        timeout_s=timeout_s,
        is_repeatable=False,  # it contains an id and the texts
    )


ROUTES = (embed_v2, embed_v1)
