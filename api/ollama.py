"""Ollama's API: embeddings, and what its clients ask about models."""

import time
from functools import partial
from typing import Any, Final

import orjson
from litestar import Request, get, post
from litestar.di import NamedDependency
from litestar.response.base import ASGIResponse
from numpy.typing import NDArray

from api import ollama_examples, ollama_models, openapi
from api.answer_formats import FINGERPRINT_HEADER
from api.cache_headers import CACHE_HEADER, cache_state
from api.fingerprint_header import fingerprint_required_by
from api.model_names import ModelNames
from api.ollama_errors import OLLAMA
from api.ollama_types import OllamaProcesses, OllamaStatus, OllamaTags, OllamaVersion
from api.request_types import Timeout
from api.vector_answers import vectors_answer
from engine.catalog import Model
from engine.embed_run import EmbedRun
from engine.embedder import Embedder
from engine.errors import DeadlineError
from engine.loaded_facts import ModelsInMemory
from engine.options import EmbedOptions
from engine.request_terms import RequestTerms
from engine.result_store import CacheCounts
from model_manager import ModelManager
from web.request_context import context_of
from web.responses import Duration, PlainAnswer, json_answer

MANY_TEXTS = 20_000
"""Requests with more texts are rejected before they are tokenised if they cannot be answered in time."""
SAMPLE = [""] * 256
"""The shortest texts, whose work is estimated for that."""


TOTAL_DURATION = Duration("total_duration", units_per_s=1e9, digits=None)

_OPTIONS: Final = {"permission": "models", "dialect": OLLAMA}
_embed_route = partial(
    post,
    status_code=200,
    opt={"permission": "embed", "work": "queued", "dialect": OLLAMA},
    tags=["Ollama"],
    security=openapi.CREDENTIALS,
    operation_class=openapi.DialectVectorsOperation,
)


class EmbedWriter:
    """Writes the answer of `/api/embed`."""

    def __init__(self, name: str, clock: "LoadClock") -> None:
        """Answer with *name*, as it was sent, and the durations of *clock*."""
        self._name = name
        self._clock = clock

    def head(self, run: EmbedRun) -> bytes:  # noqa: ARG002 - the signature of `VectorsWriter`
        """Begin the answer."""
        return b'{"model":%s,"embeddings":[' % orjson.dumps(self._name)

    def rows(self, vectors: NDArray[Any], first: int, run: EmbedRun) -> bytes:  # noqa: ARG002 - as above
        """Return the next vectors."""
        return orjson.dumps(vectors, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]

    def tail(self, run: EmbedRun) -> bytes:
        """Return what follows the vectors."""
        return b"]," + orjson.dumps(self._clock.facts(run.used_tokens))[1:]


class EmbeddingWriter:
    """Writes the answer of `/api/embeddings`: the only vector."""

    def head(self, run: EmbedRun) -> bytes:  # noqa: ARG002 - the signature of `VectorsWriter`
        """Begin the answer."""
        return b'{"embedding":'

    def rows(self, vectors: NDArray[Any], first: int, run: EmbedRun) -> bytes:  # noqa: ARG002 - as above
        """Return the vector."""
        return orjson.dumps(vectors[0], option=orjson.OPT_SERIALIZE_NUMPY)

    def tail(self, run: EmbedRun) -> bytes:  # noqa: ARG002 - as above
        """End the answer."""
        return b"}"


class LoadClock:
    """Measures a request, and how much of it was the load of its model."""

    def __init__(self, model: Model, models: ModelManager) -> None:
        """Start now."""
        self._model = model
        self._models = models
        self._started_ns = time.perf_counter_ns()
        self._was_loaded = models.find(model.name) is not None

    def facts(self, tokens: int) -> dict[str, int]:
        """Return the durations until now, in nanoseconds, with the number of *tokens*."""
        loaded = None if self._was_loaded else self._models.find(self._model.name)
        return {
            "total_duration": time.perf_counter_ns() - self._started_ns,
            "load_duration": round(loaded.load_s * 1e9) if loaded else 0,
            "prompt_eval_count": tokens,
        }


@_embed_route("/api/embed", responses=ollama_examples.embed_responses())
async def embed(
    data: ollama_examples.EmbedBody,
    *,
    embedder: NamedDependency[Embedder],
    models: NamedDependency[ModelManager],
    names: NamedDependency[ModelNames],
    request: Request[Any, Any, Any],
    request_timeout: Timeout = None,
) -> ASGIResponse:
    """Embed one or more texts as Ollama's API does. The vectors have length 1."""
    model = names.resolve(data.model)
    name, clock = data.model or model.name, LoadClock(model, models)
    texts = [data.input] if isinstance(data.input, str) and data.input else data.input or []
    if not texts:
        fingerprint = await _load(model, embedder, models, request, request_timeout)
        content: dict[str, object] = {"model": name, "embeddings": [], **clock.facts(0)}
        return PlainAnswer(orjson.dumps(content), headers=_headers_without_texts(fingerprint))
    dimensions = data.dimensions or 0
    is_cut = data.truncate is not False
    await _check_count(len(texts), model, embedder, request, request_timeout)
    return await vectors_answer(
        embedder,
        request,
        EmbedWriter(name, clock),
        model_name=model.name,
        texts=texts,
        options=EmbedOptions(
            truncate=None if is_cut else "none",
            dimensions=dimensions if 0 < dimensions < model.dim else None,
            normalize=True,
            allow_blank=True,
            clip=True,
        ),
        timeout_s=request_timeout,
        duration=TOTAL_DURATION,
    )


@_embed_route("/api/embeddings", responses=ollama_examples.embeddings_responses())
async def embed_prompt(
    data: ollama_examples.EmbeddingsBody,
    *,
    embedder: NamedDependency[Embedder],
    models: NamedDependency[ModelManager],
    names: NamedDependency[ModelNames],
    request: Request[Any, Any, Any],
    request_timeout: Timeout = None,
) -> ASGIResponse:
    """Embed one text as Ollama's older route does. The vector is not scaled to length 1."""
    model = names.resolve(data.model)
    if not data.prompt:
        fingerprint = await _load(model, embedder, models, request, request_timeout)
        return PlainAnswer(b'{"embedding":[]}', headers=_headers_without_texts(fingerprint))
    return await vectors_answer(
        embedder,
        request,
        EmbeddingWriter(),
        model_name=model.name,
        texts=[data.prompt],
        options=EmbedOptions(normalize=False, allow_blank=True, clip=True),
        timeout_s=request_timeout,
    )


def _headers_without_texts(fingerprint: str) -> dict[str, str]:
    return {FINGERPRINT_HEADER: fingerprint, CACHE_HEADER: cache_state(CacheCounts())}


async def _load(
    model: Model,
    embedder: Embedder,
    models: ModelManager,
    request: Request[Any, Any, Any],
    timeout_s: float | None,
) -> str:
    """Load *model* if it is not in memory, and return its fingerprint."""
    context = context_of(request.scope)
    terms = RequestTerms(
        caller=context.caller,
        timeout_s=timeout_s,
        if_fingerprint=fingerprint_required_by(request),
        miss_error=context.miss_error,
    )
    terms.check_may_compute()
    await embedder.tokenize(model.name, [""], terms=terms)
    return models.fingerprints.get(model.name, "")


async def _check_count(
    count: int, model: Model, embedder: Embedder, request: Request[Any, Any, Any], timeout_s: float | None
) -> None:
    """Reject a request with so many texts that even the shortest ones could not be embedded in time.

    Ollama limits the body's size only, and 10 MB may contain millions of texts: to tokenise them before they are
    rejected would take seconds.

    Raises:
        DeadlineError: they could not.
    """
    if count <= MANY_TEXTS:
        return
    context = context_of(request.scope)
    terms = RequestTerms(caller=context.caller, timeout_s=timeout_s, miss_error=context.miss_error)
    terms.check_may_compute()
    sample = await embedder.tokenize(model.name, SAMPLE, terms=terms)
    seconds = sample.estimate.seconds * count / len(SAMPLE)
    allowed_s = min(timeout_s or embedder.timeout_s, embedder.timeout_s)
    if seconds > allowed_s:
        raise DeadlineError(
            f"input: {count} texts would take {seconds:.0f} s even if all were empty and nothing else were queued, and "
            f"the deadline is in {allowed_s:.0f} s, so no part of them was computed. Send fewer texts at once."
        )


@post(
    "/api/show",
    status_code=200,
    opt=_OPTIONS,
    tags=["Ollama"],
    security=openapi.CREDENTIALS,
    responses=ollama_examples.show_responses(),
)
async def show(
    data: ollama_examples.ModelBody, in_memory: NamedDependency[ModelsInMemory], names: NamedDependency[ModelNames]
) -> ASGIResponse:
    """What Ollama's clients ask about one model: its longest input and its dimension."""
    model = names.resolve(data.model or data.name)
    return json_answer(ollama_models.show_answer(model, (await in_memory.read()).get(model.name)))


@post(
    "/api/pull",
    status_code=200,
    opt={"permission": "embed", "dialect": OLLAMA},
    tags=["Ollama"],
    security=openapi.CREDENTIALS,
    responses=ollama_examples.pull_responses(),
    operation_class=ollama_examples.PullOperation,
)
async def pull(
    data: ollama_examples.PullBody, models: NamedDependency[ModelManager], names: NamedDependency[ModelNames]
) -> ASGIResponse:
    """Answer `success` for a model that may be used. The first request that uses it downloads it."""
    model = names.resolve(data.model or data.name)
    if data.stream is False:
        return json_answer(OllamaStatus("success"))
    is_here = model.source != "hub" or models.find(model.name) is not None
    steps = [] if is_here else ["the first request that uses the model downloads it unless it is in the cache"]
    lines = [orjson.dumps(OllamaStatus(status)) for status in ("pulling manifest", *steps, "success")]
    return PlainAnswer(b"\n".join([*lines, b""]), media_type=ollama_examples.NDJSON)


@get(
    "/api/tags",
    opt=_OPTIONS,
    tags=["Ollama"],
    security=openapi.CREDENTIALS,
    responses=ollama_examples.tags_responses(),
)
async def list_tags(
    embedder: NamedDependency[Embedder],
    in_memory: NamedDependency[ModelsInMemory],
    names: NamedDependency[ModelNames],
) -> ASGIResponse:
    """All models that may be used, under their real names, aliases and names in Ollama's library."""
    return json_answer(OllamaTags(ollama_models.tags_of(embedder.models, await in_memory.read(), names)))


@get(
    "/api/ps",
    opt=_OPTIONS,
    tags=["Ollama"],
    security=openapi.CREDENTIALS,
    responses=ollama_examples.ps_responses(),
)
async def list_running(embedder: NamedDependency[Embedder], in_memory: NamedDependency[ModelsInMemory]) -> ASGIResponse:
    """The models in memory, and when each is evicted if nothing uses it."""
    return json_answer(OllamaProcesses(ollama_models.running_models(embedder.models, await in_memory.read())))


@get("/api/version", opt={"dialect": OLLAMA, "polled": True}, tags=["Ollama"], responses=ollama_examples.VERSION)
async def show_version(version: NamedDependency[str]) -> ASGIResponse:
    """The version of this service."""
    return json_answer(OllamaVersion(version))


ROUTES = (embed, embed_prompt, show, pull, list_tags, list_running, show_version)
