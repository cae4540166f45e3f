"""Fast Embedding API: the native routes, `create_app`, and `python main.py`."""

import asyncio
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from litestar import Litestar, Request, Response, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import HeaderParameter, PathParameter

from access.client_addresses import ClientAddresses
from api import build_answers, openapi, openapi_examples
from api.answer_formats import check_format, wanted_format, wanted_text
from api.answer_types import (
    Health,
    ModelDetails,
    ModelList,
    Probe,
    TokenizeAnswer,
    VectorsSchema,
)
from assembly.access import Access, allowances_of, read_access
from assembly.catalog import open_catalog
from assembly.running import RunningService, lifespan, open_service
from config import Settings, SettingsError, load_settings
from engine.catalog import Catalog
from engine.encoder import Encoder, load_encoder
from engine.errors import MetricsDisabledError, ModelNotFoundError, ServiceError, UnknownModelError
from serving.connection_limits import ConnectionLimits
from serving.server import serve
from telemetry.log_setup import configure_logging
from telemetry.metrics import Metrics
from web.authentication import AuthenticationMiddleware
from web.cors import cross_origin, permission
from web.json_bodies import StrictRequest
from web.large_body_queue import LargeBodyQueue
from web.overload_guard import OverloadGuard
from web.problems import problem_handlers
from web.rate_limits import RateLimitMiddleware, charge_of
from web.request_log import RequestLog
from web.responses import JsonResponse

VERSION = "2.0.0"
BODIES_AT_ONCE = 16
"""So many of the largest bodies may be in memory at a time, while they come in and until they are answered."""

Timeout = Annotated[
    float | None,
    HeaderParameter(
        name="X-Request-Timeout",
        gt=0,
        description="Seconds to wait, up to REQUEST_TIMEOUT.",
        schema_extra={"exclusiveMinimum": 0},  # OpenAPI is not told `gt` of what may be null
    ),
]


@post(
    "/embed",
    status_code=200,
    opt={"scope": "embed"},
    security=openapi.KEY,
    responses=openapi_examples.EMBED,
    operation_class=openapi.VectorsOperation,
)
async def embed(
    data: openapi_examples.EmbedBody,
    service: NamedDependency[RunningService],
    request: Request[Any, Any, Any],
    request_timeout: Timeout = None,
) -> Response[Any]:
    """Embed one text."""
    started = time.perf_counter()
    service.rules.check_text(data.text)
    wanted = wanted_format(request.headers.get("accept"))
    check_format(wanted, is_base64=data.encoding == "base64", has_chunks=data.long_text == "chunks")
    answer = await service.embeddings.embed(
        service.model_or_default(data.model_name),
        [data.text],
        data.options,
        timeout_s=request_timeout,
        on_tokens=charge_of(request.scope),
    )
    return await build_answers.embed_answer(
        answer, text_length=len(data.text), encoding=data.encoding, wanted=wanted, started=started
    )


@post(
    "/embed/batch",
    status_code=200,
    opt={"scope": "embed"},
    security=openapi.KEY,
    responses=openapi_examples.EMBED_BATCH,
    operation_class=openapi.VectorsOperation,
)
async def embed_batch(
    data: openapi_examples.EmbedBatchBody,
    service: NamedDependency[RunningService],
    request: Request[Any, Any, Any],
    request_timeout: Timeout = None,
) -> Response[Any]:
    """Embed several texts; the vectors come in the order asked."""
    started = time.perf_counter()
    service.rules.check_texts(data.texts)
    wanted = wanted_format(request.headers.get("accept"))
    check_format(wanted, is_base64=data.encoding == "base64", has_chunks=data.long_text == "chunks")
    answer = await service.embeddings.embed(
        service.model_or_default(data.model_name),
        data.texts,
        data.options,
        timeout_s=request_timeout,
        on_tokens=charge_of(request.scope),
    )
    return await build_answers.batch_answer(answer, encoding=data.encoding, wanted=wanted, started=started)


@post(
    "/tokenize",
    status_code=200,
    responses=openapi_examples.TOKENIZE,
    operation_class=openapi.LimitedOperation,
    opt={"scope": "embed"},
    security=openapi.KEY,
)
async def tokenize(
    data: openapi_examples.TokenizeBody, service: NamedDependency[RunningService], request_timeout: Timeout = None
) -> Response[TokenizeAnswer]:
    """Count the tokens of texts, and estimate the work of embedding them; no model is run."""
    started = time.perf_counter()
    service.rules.check_texts(data.texts)
    count = await service.embeddings.tokenize(
        service.model_or_default(data.model_name),
        data.texts,
        data.input_type,
        with_pieces=data.return_tokens,
        timeout_s=request_timeout,
    )
    return await build_answers.tokenize_answer(count, started=started)


@get("/health", responses=openapi_examples.HEALTH)
async def health(service: NamedDependency[RunningService]) -> Response[Health]:
    """Whether the service takes work: 200 `healthy`, or 503 `starting` or `draining`."""
    content = Health(service.phase, service.cache_info, service.uptime_s)
    return JsonResponse(content, status_code=200 if service.phase == "healthy" else 503)


@get("/health/live", responses=openapi_examples.LIVE)
async def live(service: NamedDependency[RunningService]) -> Response[Any]:
    """Whether the process works at all; an orchestrator restarts one that does not, or that does not answer."""
    return build_answers.live_answer(service.scheduler.stuck)


@get("/health/ready", responses=openapi_examples.READY)
async def ready(service: NamedDependency[RunningService]) -> Response[Probe]:
    """Whether requests should be sent here."""
    if service.phase == "healthy":
        return JsonResponse(Probe("ready"))
    return JsonResponse(Probe(service.phase), status_code=503)


@get("/models", opt={"scope": "models"}, security=openapi.KEY, responses=openapi_examples.MODELS)
async def list_models(service: NamedDependency[RunningService]) -> Response[ModelList]:
    """All models that may be used, those that need no download first."""
    return JsonResponse(
        ModelList(
            required_models=[service.catalog.get(name).name for name in service.settings.required_models],
            cached_models=list(service.models.loaded),
            allowed_models=service.embeddings.allowed,
            available_models=[
                build_answers.model_entry(model, service.models.find(model.name)) for model in service.embeddings.models
            ],
        )
    )


@get("/models/{name:path}", opt={"scope": "models"}, security=openapi.KEY, responses=openapi_examples.MODEL)
async def show_model(
    name: Annotated[str, PathParameter(description="May hold slashes, plain or percent-encoded.")],
    service: NamedDependency[RunningService],
) -> Response[ModelDetails]:
    """What is known of one model, and what it has done."""
    try:
        model = service.embeddings.offered(name.strip("/"))
    except UnknownModelError as error:  # in an address an unknown model is a 404, in a body a 400
        raise ModelNotFoundError(error.name, error.closest) from None
    loaded, usage = service.models.find(model.name), service.embeddings.usage(model.name)
    return JsonResponse(build_answers.model_details(model, loaded, usage))


@get(
    "/metrics",
    opt={"scope": "metrics"},
    security=openapi.KEY,
    responses=openapi_examples.METRICS,
    operation_class=openapi.MetricsOperation,
)
async def show_metrics(service: NamedDependency[RunningService], request: Request[Any, Any, Any]) -> Response[Any]:
    """What the service has done since it started, as JSON or as text for Prometheus; 403 without ENABLE_METRICS."""
    if not service.settings.enable_metrics:
        raise MetricsDisabledError
    answer = build_answers.metrics_answer(
        service.metrics,
        service.scheduler.state(),
        service.embeddings.used,
        cache_info=service.cache_info,
        uptime_s=service.uptime_s,
        limits=service.limits_state,
    )
    if (wanted := wanted_text(request.headers.get("accept"))) is None:
        return JsonResponse(answer)
    return await asyncio.to_thread(
        build_answers.metrics_text,
        wanted,
        answer=answer,
        latencies=service.metrics.latencies(),
        fingerprints=service.models.fingerprints,
        max_queue_s=service.settings.max_queue_seconds,
        version=VERSION,
        is_ready=service.phase == "healthy",
    )


def create_app(
    settings: Settings | None = None,
    *,
    load: Callable[..., Encoder] = load_encoder,
    stop: Callable[[], None] | None = None,
    cores: int | None = None,
) -> Litestar:
    """Build the service. No model is loaded and no socket is opened before the app's lifespan begins.

    Args:
        settings: default: from the environment and `.env`.
        load: loads a model of the catalogue; tests pass their own.
        stop: called when a required model cannot be loaded; default: ends the process as SIGTERM does.
        cores: how many it may use, where its share of the machine is not the process's; default: all that the process
            may use.

    Raises:
        SettingsError: a setting has a value that is not allowed, or names a model that does not exist.
    """
    settings = settings or load_settings()
    level = "DEBUG" if settings.debug else settings.log_level
    is_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stdout.isatty())
    configure_logging(level=level, is_json=is_json)
    catalog, metrics = open_catalog(settings), Metrics()
    _check_names(settings, catalog)
    access, settings = read_access(settings), settings.without_api_keys()
    allowances = allowances_of(settings)
    limits = RateLimitMiddleware(allowances, address_of=ClientAddresses(trusted=settings.trusted_proxies).caller_of)
    open_parts = partial(open_service, settings, catalog, metrics, allowances, load, cores=cores)
    cors = cross_origin(settings.cors_origins) if settings.enable_cors else None
    app = Litestar(
        route_handlers=[embed, embed_batch, tokenize, health, live, ready, list_models, show_model, show_metrics],
        lifespan=[access.lifespan, partial(lifespan, open_parts=open_parts, stop=stop or _end_process)],
        dependencies={"service": Provide(_service, sync_to_thread=False)},
        middleware=[_auth(access), *([limits] if settings.enable_rate_limit else [])],
        request_class=StrictRequest,
        request_max_body_size=int(settings.max_request_size),
        exception_handlers=problem_handlers(),
        cors_config=cors,
        openapi_config=openapi.openapi_config(VERSION),
        plugins=[VectorsSchema(), openapi.StrictBodies()],
        logging_config=None,
    )
    door = OverloadGuard(app.asgi_handler, refusal=partial(_refusal, app.state), count=metrics.count)
    app.asgi_handler = RequestLog(door, count=metrics.count, permission=partial(permission, cors))
    app.state.settings, app.state.metrics, app.state.turns, app.state.door = settings, metrics, LargeBodyQueue(), door
    return app


def connection_rules(settings: Settings) -> ConnectionLimits:
    return ConnectionLimits(
        header_timeout_s=settings.header_timeout,
        body_timeout_s=settings.body_timeout,
        keep_alive_timeout_s=settings.keep_alive_timeout,
        max_header_bytes=int(settings.max_header_size),
        max_bodies_bytes=BODIES_AT_ONCE * int(settings.max_request_size),
        max_connections=settings.max_connections,
    )


def _end_process() -> None:
    signal.raise_signal(signal.SIGTERM)


def _service(state: State) -> RunningService:
    service: RunningService = state.service
    return service


def _refusal(state: State) -> ServiceError | None:
    """Why the service takes no work now, if that needs no look at the work."""
    service: RunningService | None = state.get("service")
    return service.scheduler.refusal() if service is not None else None


def _auth(access: Access) -> AuthenticationMiddleware:
    return AuthenticationMiddleware(closed=access.closed, find_key=access.keys.find, read_token=access.tokens.read)


def _check_names(settings: Settings, catalog: Catalog) -> None:
    for setting in ("required_models", "allowed_models"):
        for name in getattr(settings, setting):
            try:
                catalog.get(name)
            except UnknownModelError as error:
                message = f"{setting.upper()}: {error.detail.rstrip('.')}"
                raise SettingsError(message) from None


def _app() -> Litestar:
    try:
        return create_app()
    except SettingsError as error:
        sys.exit(f"Bad settings: {error}.")


def serve_forever() -> int:
    served = _app()
    chosen: Settings = served.state.settings
    counted: Metrics = served.state.metrics
    door: OverloadGuard = served.state.door
    return serve(
        served,
        host=chosen.host,
        port=chosen.port,
        drain_s=chosen.shutdown_timeout,
        rules=connection_rules(chosen),
        note=counted.note_failure,
        turn_away=door.turn_away,
    )


if __name__ == "__main__":
    if sys.argv[1:]:
        from cli.commands import run  # the service needs none of it, and starts sooner without

        sys.exit(run(sys.argv[1:]))
    sys.exit(serve_forever())
elif __name__ != "__mp_main__":  # a process that a command has started needs no app
    app = _app()
