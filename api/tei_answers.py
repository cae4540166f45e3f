"""Answers of the TEI routes: vectors, similarities, tokens."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson
from litestar import Request
from litestar.response.base import ASGIResponse
from numpy.typing import NDArray

from api.answer_formats import FINGERPRINT_HEADER
from api.model_names import ModelNames
from api.request_terms import terms_of
from api.request_types import TextLimits
from api.tei_types import (
    TeiBody,
    TeiInfo,
    TeiModelType,
    TeiOptions,
    TeiPooling,
    TeiSentences,
    TeiToken,
    TeiTokenizeRequest,
    texts_of,
)
from api.vector_answers import vectors_answer, without_prompt
from engine.catalog import Model
from engine.embed_results import TokenCount
from engine.embed_run import EmbedRun
from engine.embedder import Embedder
from engine.errors import InvalidInputError
from engine.loaded_facts import LoadedFacts
from engine.model_cards import InputType
from engine.options import EmbedOptions, Truncate
from engine.tokenizer import Token
from web.input_errors import MAX_QUOTED
from web.responses import json_answer

PROMPTS: Mapping[str, InputType] = {
    "query": "query",
    "search_query": "query",
    "s2p_query": "query",
    "web_search_query": "query",
    "document": "document",
    "passage": "document",
    "search_document": "document",
}
"""Names of prompts in the configurations of models on Hugging Face, with our types of text."""
SIDES: Mapping[str, Truncate] = {"left": "start", "right": "end"}
UNSTATED_TOKENS = 8192
"""The longest input that `/info` states for a model that states none: static models accept any length."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request without its body, and the parts that answer it."""

    request: Request[Any, Any, Any]
    embedder: Embedder
    names: ModelNames
    timeout_s: float | None = None

    def model(self, body: TeiBody) -> Model:
        """Return the model named in the URL, else the one named in *body*, else the default one."""
        return self.names.resolve(model_in_url(self.request) or body.model)


def model_in_url(request: Request[Any, Any, Any]) -> str:
    """Return the name of the model in the URL; empty: it names none."""
    found = request.path_params
    return "/".join(str(found[part]) for part in ("owner", "name") if part in found)


async def embed_answer(inputs: str | list[str], body: TeiBody, call: Call) -> ASGIResponse:
    """Answer a request for vectors."""
    return await _vectors(_Rows(), texts_of(inputs), _embed_options(body.options), body, call)


async def similarity_answer(inputs: TeiSentences, body: TeiBody, call: Call) -> ASGIResponse:
    """Answer a request for similarities. All of its sentences are one request of the engine."""
    texts = [inputs.source_sentence, *texts_of(inputs.sentences, "inputs.sentences")]
    options = replace(_embed_options(body.options), normalize=True)  # a cosine, whatever the request says
    return await _vectors(_Scores(), texts, options, body, call)


async def _vectors(
    writer: "_Rows | _Scores", texts: Sequence[str], options: EmbedOptions, body: TeiBody, call: Call
) -> ASGIResponse:
    model = call.model(body)
    return await vectors_answer(
        call.embedder,
        call.request,
        writer,
        model_name=model.name,
        texts=without_prompt(texts, model, options.input_type),
        options=options,
        timeout_s=call.timeout_s,
    )


class _Rows:
    """Writes vectors as a list of lists."""

    def head(self, run: EmbedRun) -> bytes:  # noqa: ARG002 - as VectorsWriter
        return b"["

    def rows(self, vectors: NDArray[Any], first: int, run: EmbedRun) -> bytes:  # noqa: ARG002 - as VectorsWriter
        return orjson.dumps(vectors, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]

    def tail(self, run: EmbedRun) -> bytes:  # noqa: ARG002 - as VectorsWriter
        return b"]"


class _Scores(_Rows):
    """Writes the cosine similarities of vectors of length 1 with the first of them, which is left out itself."""

    def __init__(self) -> None:
        self._source: NDArray[Any] | None = None

    def rows(self, vectors: NDArray[Any], first: int, run: EmbedRun) -> bytes:
        if self._source is None:
            self._source, vectors = vectors[0], vectors[1:]
        return super().rows(vectors @ self._source, first, run)


def _embed_options(options: TeiOptions) -> EmbedOptions:
    """Return the engine's options. TEI cuts long texts and normalises vectors, unless the request forbids it."""
    is_cut = options.truncate is not False
    return EmbedOptions(
        input_type=_input_type(options.prompt_name),
        truncate=SIDES.get((options.truncation_direction or "").lower()) if is_cut else "none",
        dimensions=options.dimensions,
        normalize=options.normalize is not False,
        allow_blank=True,
        clip=True,
    )


def _input_type(prompt_name: str | None) -> InputType | None:
    """Return the type of text for which the model has a prompt.

    Raises:
        InvalidInputError: there is no prompt of this name; the error lists the names.
    """
    if not prompt_name:
        return None
    if (found := PROMPTS.get(prompt_name.lower())) is None:
        raise InvalidInputError(
            f"prompt_name: {prompt_name[:MAX_QUOTED]!r} is not known. Choose one of {', '.join(PROMPTS)}.",
            extensions={"field": "prompt_name", "choices": list(PROMPTS)},
        )
    return found


async def tokenize_answer(body: TeiTokenizeRequest, call: Call, limits: TextLimits) -> ASGIResponse:
    """Answer a request for tokens."""
    texts = texts_of(body.inputs)
    _check_characters(texts, limits.max_texts * limits.max_characters)
    model, input_type = call.model(body), _input_type(body.options.prompt_name)
    prompt = model.card.prompt_for(input_type)
    # As in TEI, characters are counted from the beginning of the prompt.
    whole = [prompt + text for text in without_prompt(texts, model, input_type)]
    terms = terms_of(call.request, call.timeout_s)
    count = await call.embedder.tokenize(model.name, whole, terms=terms, with_pieces=True)
    content = await asyncio.to_thread(_tokens, count, whole, with_special=body.add_special_tokens is not False)
    return json_answer(content, headers={FINGERPRINT_HEADER: count.fingerprint})


def _check_characters(texts: Sequence[str], limit: int) -> None:
    """Check the size of a request for tokens: its answer is many times as large, and is made in memory.

    Raises:
        InvalidInputError: the texts together are longer than those of the largest native request.
    """
    characters = sum(map(len, texts))
    if characters > limit:
        raise InvalidInputError(
            f"inputs: {characters} characters are more than the {limit} allowed in one request for tokens.",
            extensions={"field": "inputs", "limit": limit},
        )


def _tokens(count: TokenCount, texts: Sequence[str], *, with_special: bool) -> list[orjson.Fragment]:
    """Serialise the tokens of the texts one by one. Blocks for long texts."""
    return [
        orjson.Fragment(orjson.dumps([_token(piece, text) for piece in pieces if with_special or not piece.special]))
        for text, pieces in zip(texts, count.pieces or [], strict=True)
    ]


def _token(piece: Token, text: str) -> TeiToken:
    if piece.start is None or piece.end is None:
        return TeiToken(piece.id, piece.token, piece.special, None, None)
    return TeiToken(piece.id, text[piece.start : piece.end], piece.special, piece.start, piece.end)


def info_answer(model: Model, loaded: LoadedFacts | None, version: str) -> ASGIResponse:
    """Describe *model*, which may be in memory."""
    fingerprint = loaded.fingerprint if loaded else None
    content = TeiInfo(
        model_id=model.name,
        model_sha=(fingerprint.revision if fingerprint else model.card.revision) or None,
        model_type=TeiModelType(TeiPooling(model.card.pooling)),
        max_input_length=(loaded.max_tokens if loaded else model.max_tokens) or UNSTATED_TOKENS,
        version=version,
    )
    return json_answer(content, headers={FINGERPRINT_HEADER: fingerprint.digest} if fingerprint else {})
