"""Fast Embedding API: the routes, `create_app`, and the command `python main.py`."""

import sys

if __name__ == "__main__":  # before the other imports, which take a second: a signal may arrive meanwhile
    from serving.process_start import prepare_command, prepare_process

    if sys.argv[1:] in ([], ["serve"]):
        prepare_process()
        from assembly.workers import begin

        start = begin()
    else:
        prepare_command()

import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from litestar import Litestar, Request, delete, get, post
from litestar.di import NamedDependency
from litestar.params import SkipValidationMarker
from litestar.response.base import ASGIResponse

from api import (
    build_answers,
    cohere,
    docs,
    ollama,
    openai,
    openapi,
    openapi_examples,
    page,
    tei,
    tei_answers,
    tei_examples,
)
from api.answer_formats import METRIC_FORMATS, PROMETHEUS_FORMATS, Format, accepted_format, check_format
from api.answer_types import ModelList, Probe
from api.request_terms import terms_of
from api.request_types import EmbedOptionsBody, EmbedRequest, Timeout, TokenizeRequest
from api.result_cache_admin import CLEAR, ResultCacheAdmin
from api.tei_answers import Call
from api.tei_errors import TEI_SHARED
from api.tei_types import TeiEmbedRequest, TeiTokenizeRequest
from assembly.app import EmbeddingParts, build_app
from assembly.reports import MetricsReport, ServiceReport
from assembly.serve import serve_app
from assembly.workers import Start, end_start
from config import Settings, SettingsError, load_settings
from engine.embed_results import EmbedResult
from engine.embedder import Embedder
from engine.encoder import Encoder, load_cached_encoder
from engine.errors import ModelNotFoundError, UnknownModelError
from engine.loaded_facts import ModelsInMemory
from serving.worker_process import WorkerLink
from web.request_context import context_of, header_values
from web.responses import json_answer

VERSION = "2.0.0"

EMBED_BODY = tei_examples.either_body(openapi_examples.EmbedBody, tei_examples.EmbedBody)
TOKENIZE_BODY = tei_examples.either_body(openapi_examples.TokenizeBody, tei_examples.TokenizeBody)


@post(
    "/embed",
    status_code=200,
    opt={"dialect": TEI_SHARED, "permission": "embed", "work": "queued"},
    security=openapi.CREDENTIALS,
    responses=tei_examples.either_responses(openapi_examples.EMBED, tei_examples.EMBED),
    operation_class=tei_examples.EmbedOperation,
    tags=["Embedding"],
)
async def embed(
    data: Annotated[EmbedRequest | TeiEmbedRequest, SkipValidationMarker(), EMBED_BODY],
    embedding: NamedDependency[EmbeddingParts],
    request: Request[Any, Any, Any],
    request_timeout: Timeout = None,
) -> ASGIResponse:
    """Embed one text; or with the key `inputs`, one or several as TEI does."""
    started_s = time.perf_counter()
    if isinstance(data, TeiEmbedRequest):
        call = Call(request, embedding.embedder, embedding.names, request_timeout)
        return await tei_answers.embed_answer(data.inputs, data, call)
    embedding.limits.check_text(data.text)
    result, answer_format = await _embed([data.text], data, embedding.embedder, request, request_timeout)
    return await build_answers.embed_answer(
        result,
        context_of(request.scope),
        text_length=len(data.text),
        encoding=data.encoding,
        answer_format=answer_format,
        started_s=started_s,
    )


@post(
    "/embed/batch",
    status_code=200,
    opt={"permission": "embed", "work": "queued"},
    security=openapi.CREDENTIALS,
    responses=openapi_examples.EMBED_BATCH,
    operation_class=openapi.VectorsOperation,
    tags=["Embedding"],
)
async def embed_batch(
    data: openapi_examples.EmbedBatchBody,
    embedding: NamedDependency[EmbeddingParts],
    request: Request[Any, Any, Any],
    request_timeout: Timeout = None,
) -> ASGIResponse:
    """Embed several texts; the vectors are in the order of the texts."""
    started_s = time.perf_counter()
    embedding.limits.check_texts(data.texts)
    result, answer_format = await _embed(data.texts, data, embedding.embedder, request, request_timeout)
    return await build_answers.batch_answer(
        result,
        context_of(request.scope),
        encoding=data.encoding,
        answer_format=answer_format,
        started_s=started_s,
    )


async def _embed(
    texts: Sequence[str],
    body: EmbedOptionsBody,
    embedder: Embedder,
    request: Request[Any, Any, Any],
    timeout_s: float | None,
) -> tuple[EmbedResult, Format]:
    """Embed *texts* with the options of *body*, and return the format of the answer. Headers are checked first."""
    terms = terms_of(request, timeout_s)
    answer_format = accepted_format(", ".join(header_values(request.scope, b"accept")))
    check_format(answer_format, is_base64=body.encoding == "base64", has_chunks=body.long_text == "chunks")
    formats = (body.dtype, "base64") if body.encoding == "base64" else (body.dtype,)
    context_of(request.scope).encoding_formats = formats
    return await embedder.embed(body.model_name, texts, body.options, terms), answer_format


@post(
    "/tokenize",
    status_code=200,
    opt={"dialect": TEI_SHARED, "permission": "embed", "work": "unqueued"},
    security=openapi.CREDENTIALS,
    responses=tei_examples.either_responses(openapi_examples.TOKENIZE, tei_examples.TOKENIZE),
    operation_class=tei_examples.TokenizeOperation,
    tags=["Embedding"],
)
async def tokenize(
    data: Annotated[TokenizeRequest | TeiTokenizeRequest, SkipValidationMarker(), TOKENIZE_BODY],
    embedding: NamedDependency[EmbeddingParts],
    request: Request[Any, Any, Any],
    request_timeout: Timeout = None,
) -> ASGIResponse:
    """Count the tokens of texts and estimate the work of embedding them; no model is run.

    With the key `inputs`, return the tokens as TEI does.
    """
    started_s = time.perf_counter()
    if isinstance(data, TeiTokenizeRequest):
        call = Call(request, embedding.embedder, embedding.names, request_timeout)
        return await tei_answers.tokenize_answer(data, call, embedding.limits)
    embedding.limits.check_texts(data.texts)
    terms = terms_of(request, request_timeout)
    count = await embedding.embedder.tokenize(
        data.model_name, data.texts, data.input_type, terms, with_pieces=data.return_tokens
    )
    return await build_answers.tokenize_answer(count, started_s=started_s)


@get("/health", opt={"polled": True, "any_host": True}, responses=openapi_examples.HEALTH, tags=["Operation"])
async def health(service_report: NamedDependency[ServiceReport]) -> ASGIResponse:
    """Whether the service accepts work: 200 `healthy`, or 503 `starting` or `draining`."""
    content = service_report.health()
    return json_answer(content, status=200 if content.status == "healthy" else 503)


tei_health = get("/tei/health", opt={"polled": True, "any_host": True}, include_in_schema=False)(health.fn)


@get("/health/live", opt={"polled": True, "any_host": True}, responses=openapi_examples.LIVE, tags=["Operation"])
async def live(service_report: NamedDependency[ServiceReport]) -> ASGIResponse:
    """Whether the process works at all. An orchestrator restarts one that answers 503, or that does not answer."""
    return build_answers.live_answer(service_report.stuck)


@get("/health/ready", opt={"polled": True, "any_host": True}, responses=openapi_examples.READY, tags=["Operation"])
async def ready(service_report: NamedDependency[ServiceReport]) -> ASGIResponse:
    """Whether requests should be sent to this service."""
    if (phase := service_report.phase) == "healthy":
        return json_answer(Probe("ready"))
    return json_answer(Probe(phase), status=503)


@get(
    "/models",
    opt={"permission": "models"},
    security=openapi.CREDENTIALS,
    responses=openapi_examples.MODELS,
    tags=["Models"],
)
async def list_models(
    embedder: NamedDependency[Embedder],
    in_memory: NamedDependency[ModelsInMemory],
    required_models: NamedDependency[tuple[str, ...]],
) -> ASGIResponse:
    """All models that may be used, those that need no download first."""
    loaded = await in_memory.read()
    return json_answer(
        ModelList(
            required_models=list(required_models),
            cached_models=list(loaded),
            allowed_models=embedder.allowed_models,
            available_models=[build_answers.model_entry(model, loaded.get(model.name)) for model in embedder.models],
        )
    )


@get(
    "/models/{name:path}",
    opt={"permission": "models"},
    security=openapi.CREDENTIALS,
    responses=openapi_examples.MODEL,
    tags=["Models"],
)
async def show_model(
    name: Annotated[
        str, openapi.model_in_path("May contain slashes, plain or percent-encoded.", openapi_examples.MODEL_NAME)
    ],
    embedder: NamedDependency[Embedder],
    service_report: NamedDependency[ServiceReport],
) -> ASGIResponse:
    """What is known of one model, and what it has done."""
    try:
        model = embedder.resolve_model(name.strip("/"))
    except UnknownModelError as error:  # an unknown model in the URL is a 404, in a body a 400
        raise ModelNotFoundError(error.name, error.closest) from None
    return json_answer(await service_report.model(model))


@get(
    "/metrics",
    opt={"permission": "metrics", "polled": True},
    security=openapi.CREDENTIALS,
    responses=openapi_examples.METRICS,
    operation_class=openapi.MetricsOperation,
    tags=["Operation"],
)
async def show_metrics(metrics_report: NamedDependency[MetricsReport], request: Request[Any, Any, Any]) -> ASGIResponse:
    """What the service has done since it started, as JSON or as text for Prometheus; 403 without ENABLE_METRICS."""
    return await metrics_report.answer(_accept_of(request), METRIC_FORMATS)


@get(
    "/metrics/prometheus",
    opt={"permission": "metrics", "polled": True},
    security=openapi.CREDENTIALS,
    responses=openapi_examples.PROMETHEUS,
    operation_class=openapi.PrometheusOperation,
    tags=["Operation"],
)
async def show_prometheus_metrics(
    metrics_report: NamedDependency[MetricsReport], request: Request[Any, Any, Any]
) -> ASGIResponse:
    """The metrics as text, for scrapers that send no `Accept`: Prometheus' format 0.0.4, or OpenMetrics by `Accept`."""
    return await metrics_report.answer(_accept_of(request), PROMETHEUS_FORMATS)


@delete(
    "/cache",
    status_code=200,
    opt={"permission": "admin"},
    security=openapi.CREDENTIALS,
    responses=CLEAR,
    tags=["Operation"],
)
async def clear_cache(result_cache: NamedDependency[ResultCacheAdmin]) -> ASGIResponse:
    """Delete all results of the result cache. Without keys, only programs on this machine may."""
    return json_answer(await result_cache.clear())


def _accept_of(request: Request[Any, Any, Any]) -> str:
    """Return the header `Accept`, which may be sent in several lines; empty: there is none."""
    return ",".join(header_values(request.scope, b"accept"))


NATIVE_ROUTES = (
    *(embed, embed_batch, tokenize, health, live, ready, list_models, show_model, show_metrics),
    *(show_prometheus_metrics, clear_cache),
)
DIALECT_ROUTES = (*openai.ROUTES, *ollama.ROUTES, *cohere.ROUTES, tei_health, *tei.ROUTES)
ROUTES = (*NATIVE_ROUTES, *page.ROUTES, *docs.ROUTES, *DIALECT_ROUTES)


def create_app(
    settings: Settings | None = None,
    *,
    load: Callable[..., Encoder] = load_cached_encoder,
    stop: Callable[[], None] | None = None,
    cores: int | None = None,
    worker: WorkerLink | None = None,
) -> Litestar:
    """Build the service. No model is loaded and no socket is opened before the app's lifespan begins.

    Args:
        settings: default: from the environment and `.env`.
        load: loads a model of the catalogue; tests pass their own.
        stop: called when a required model cannot be loaded; default: ends the process as SIGTERM does.
        cores: cores the app may use if it owns only a share of the process; default: all that the process may use.
        worker: what this process has inherited from the supervisor, if it is one of several workers.

    Raises:
        SettingsError: a setting has a value that is not allowed, or names a model that does not exist.
    """
    settings = settings or load_settings()
    return build_app(settings, route_handlers=ROUTES, version=VERSION, load=load, stop=stop, cores=cores, worker=worker)


def _app_or_exit() -> Litestar:
    try:
        return create_app()
    except SettingsError as error:
        sys.exit(f"Bad settings: {error}")


def serve_forever(start: Start | None = None) -> int:
    """Serve until a signal stops the process, and return the exit code.

    Args:
        start: how this process serves; default: it is the only one, with the settings of the environment and `.env`.
    """
    if start is None:
        return serve_app(_app_or_exit())
    try:
        app = create_app(start.settings, cores=start.cores, worker=start.worker)
    except SettingsError as error:
        end_start(start.worker, f"Bad settings: {error}")
    return serve_app(app, worker=start.worker)


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["serve"]):
        from cli.commands import run  # serving starts faster without the commands

        sys.exit(run(sys.argv[1:], version=VERSION))
    sys.exit(serve_forever(start))
elif __name__ != "__mp_main__":  # a process that a command starts needs no app
    app = _app_or_exit()
