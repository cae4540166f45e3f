"""Fast Embedding API: the native routes, `create_app`, and `python main.py`."""

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Literal

import structlog
from litestar import Litestar, Response, get, post
from litestar.config.cors import CORSConfig
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import HeaderParameter, PathParameter

from api import docs, views
from api.logs import configure_logging
from api.metrics import Metrics
from api.native import (
    CacheInfo,
    EmbedAnswer,
    EmbedBatchAnswer,
    FastResponse,
    Health,
    MetricsAnswer,
    ModelDetails,
    ModelList,
    Probe,
    TextRules,
    VectorsSchema,
)
from api.observer import Observer
from api.problems import StrictRequest, problem_handlers
from config import BUNDLED_MODEL, BUNDLED_MODELS_DIR, Settings, SettingsError, load_settings
from engine.catalog import Catalog, Model, read_catalog
from engine.encoder import Encoder, load_encoder
from engine.errors import MetricsDisabledError, ModelNotFoundError, ServiceError, UnknownModelError
from engine.hub import fetch
from engine.machine import lane_threads, return_large_blocks, usable_cores
from engine.scheduler import Scheduler
from engine.service import EmbeddingService
from model_manager import ModelManager
from server import serve

VERSION = "2.0.0"

log = structlog.get_logger()

Timeout = Annotated[
    float | None, HeaderParameter(name="X-Request-Timeout", gt=0, description="Seconds to wait, up to REQUEST_TIMEOUT.")
]


@dataclass(slots=True)
class Service:
    """The parts of a running service, put together by `open_service`."""

    settings: Settings
    catalog: Catalog
    models: ModelManager
    scheduler: Scheduler
    embeddings: EmbeddingService
    metrics: Metrics
    rules: TextRules
    phase: Literal["starting", "healthy", "draining"] = "starting"
    failure: str | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def uptime_s(self) -> float:
        return round(time.monotonic() - self.started, 3)

    def model_or_default(self, name: str | None) -> str:
        return self.settings.required_models[0] if name is None else name

    @property
    def cache_info(self) -> CacheInfo:
        loaded = list(self.models.loaded)
        settings = self.settings
        return CacheInfo(
            loaded, len(loaded), settings.max_cached_models, settings.model_cache_ttl, settings.cleanup_interval
        )


@post("/embed", status_code=200, responses=docs.EMBED)
async def embed(
    data: docs.EmbedBody, service: NamedDependency[Service], request_timeout: Timeout = None
) -> Response[EmbedAnswer]:
    """Embed one text."""
    started = time.perf_counter()
    service.rules.check_text(data.text)
    answer = await service.embeddings.embed(
        service.model_or_default(data.model_name), [data.text], timeout_s=request_timeout
    )
    return views.embed_answer(answer, text_length=len(data.text), started=started)


@post("/embed/batch", status_code=200, responses=docs.EMBED_BATCH)
async def embed_batch(
    data: docs.EmbedBatchBody, service: NamedDependency[Service], request_timeout: Timeout = None
) -> Response[EmbedBatchAnswer]:
    """Embed several texts; the vectors come in the order asked."""
    started = time.perf_counter()
    service.rules.check_texts(data.texts)
    answer = await service.embeddings.embed(
        service.model_or_default(data.model_name), data.texts, timeout_s=request_timeout
    )
    return views.batch_answer(answer, started=started)


@get("/health", responses=docs.HEALTH)
async def health(service: NamedDependency[Service]) -> Response[Health]:
    """Whether the service takes work: 200 `healthy`, or 503 `starting` or `draining`."""
    content = Health(service.phase, service.cache_info, service.uptime_s)
    return FastResponse(content, status_code=200 if service.phase == "healthy" else 503)


@get("/health/live", responses=docs.LIVE)
async def live() -> Response[Probe]:
    """Whether the process works at all; an orchestrator restarts one that does not answer."""
    return FastResponse(Probe("live"))


@get("/health/ready", responses=docs.READY)
async def ready(service: NamedDependency[Service]) -> Response[Probe]:
    """Whether requests should be sent here."""
    if service.phase == "healthy":
        return FastResponse(Probe("ready"))
    return FastResponse(Probe(service.phase), status_code=503)


@get("/models", responses=docs.MODELS)
async def list_models(service: NamedDependency[Service]) -> Response[ModelList]:
    """All models that may be used, those that need no download first."""
    return FastResponse(
        ModelList(
            required_models=[service.catalog.get(name).name for name in service.settings.required_models],
            cached_models=list(service.models.loaded),
            allowed_models=service.embeddings.allowed,
            available_models=[
                views.model_entry(model, service.models.find(model.name)) for model in service.embeddings.models
            ],
        )
    )


@get("/models/{name:path}", responses=docs.MODEL)
async def show_model(
    name: Annotated[str, PathParameter(description="May hold slashes, plain or percent-encoded.")],
    service: NamedDependency[Service],
) -> Response[ModelDetails]:
    """What is known of one model, and what it has done."""
    model = service.embeddings.offered(name.strip("/"), error=ModelNotFoundError)
    loaded, usage = service.models.find(model.name), service.embeddings.usage(model.name)
    return FastResponse(views.model_details(model, loaded, usage))


@get("/metrics", responses=docs.METRICS)
async def show_metrics(service: NamedDependency[Service]) -> Response[MetricsAnswer]:
    """What the service has done since it started; 403 when ENABLE_METRICS is false."""
    if not service.settings.enable_metrics:
        raise MetricsDisabledError
    return FastResponse(
        views.metrics_answer(
            service.metrics,
            service.scheduler.state(),
            service.embeddings.used,
            cache_info=service.cache_info,
            uptime_s=service.uptime_s,
        )
    )


def create_app(
    settings: Settings | None = None,
    *,
    load: Callable[..., Encoder] = load_encoder,
    stop: Callable[[], None] | None = None,
) -> Litestar:
    """Build the service. No model is loaded and no socket is opened before the app's lifespan begins.

    Args:
        settings: default: from the environment and `.env`.
        load: loads a model of the catalogue; tests pass their own.
        stop: called when a required model cannot be loaded; default: ends the process as SIGTERM does.

    Raises:
        SettingsError: a setting has a value that is not allowed, or names a model that does not exist.
    """
    settings = settings or load_settings()
    level = "DEBUG" if settings.debug else settings.log_level
    is_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stdout.isatty())
    configure_logging(level=level, is_json=is_json)
    catalog, metrics = read_catalog([BUNDLED_MODELS_DIR, settings.models_dir], bundled=BUNDLED_MODEL), Metrics()
    _check_names(settings, catalog)
    open_parts = partial(open_service, settings, catalog, metrics, load)
    app = Litestar(
        route_handlers=[embed, embed_batch, health, live, ready, list_models, show_model, show_metrics],
        lifespan=[partial(_lifespan, open_parts=open_parts, stop=stop or _end_process)],
        dependencies={"service": Provide(_service, sync_to_thread=False)},
        request_class=StrictRequest,
        request_max_body_size=int(settings.max_request_size),
        exception_handlers=problem_handlers(),
        cors_config=_cors(settings),
        openapi_config=docs.openapi_config(VERSION),
        plugins=[VectorsSchema()],
        logging_config=None,
    )
    app.asgi_handler = Observer(app.asgi_handler, count=metrics.count)
    app.state.settings = settings
    return app


def _end_process() -> None:
    signal.raise_signal(signal.SIGTERM)


def _service(state: State) -> Service:
    service: Service = state.service
    return service


def _cors(settings: Settings) -> CORSConfig | None:
    if not settings.enable_cors:
        return None
    return CORSConfig(allow_origins=list(settings.cors_origins), expose_headers=["X-Request-ID", "Retry-After"])


def _check_names(settings: Settings, catalog: Catalog) -> None:
    for setting in ("required_models", "allowed_models"):
        for name in getattr(settings, setting):
            try:
                catalog.get(name)
            except UnknownModelError as error:
                message = f"{setting.upper()}: {error.detail.rstrip('.')}"
                raise SettingsError(message) from None


@asynccontextmanager
async def _lifespan(
    app: Litestar, *, open_parts: Callable[[], AbstractAsyncContextManager[Service]], stop: Callable[[], None]
) -> AsyncIterator[None]:
    """Open the service, load the required models while `/health` already answers, close all at the end."""
    async with open_parts() as opened:
        app.state.service = opened
        starting = asyncio.create_task(_load_required(opened, stop))
        cleaning = asyncio.create_task(opened.models.drop_idle_forever(opened.settings.cleanup_interval))
        try:
            yield
        finally:
            opened.phase = "draining"
            for task in (starting, cleaning):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task


async def _load_required(service: Service, stop: Callable[[], None]) -> None:
    try:
        names = [service.embeddings.offered(name).name for name in service.settings.required_models]
        await service.models.load_all(names)
    except ServiceError as error:
        service.failure = error.detail
        log.critical("start_failed", reason=error.detail)
        stop()
    except Exception:
        service.failure = "an unexpected failure; the log's event start_failed has its record."
        log.critical("start_failed", reason="an unexpected failure", exc_info=True)
        stop()
    else:
        service.phase = "healthy"
        log.info("service_ready", seconds=service.uptime_s, models=names)


@asynccontextmanager
async def open_service(
    settings: Settings, catalog: Catalog, metrics: Metrics, load: Callable[..., Encoder]
) -> AsyncIterator[Service]:
    """Put the parts together, and take them apart in reverse order."""
    return_large_blocks()
    cores = usable_cores()
    lanes = min(settings.thread_pool_workers, cores)
    log.info("threads_planned", lanes=lanes, usable_cores=cores, wanted=settings.thread_pool_workers)

    def copies(model: Model) -> int:
        """Sessions of a model in memory: one for the lanes, and for small models one for lone texts."""
        return 2 if lanes > 1 and model.memory_bytes <= settings.lone_text_memory else 1

    async with AsyncExitStack() as stack:
        # As many threads as models: a slow download never keeps another model from being loaded.
        loading = ThreadPoolExecutor(len(catalog.models), thread_name_prefix="load")
        tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenize")
        express = ThreadPoolExecutor(1, thread_name_prefix="express")
        workers = lane_threads(lanes)
        for executor in (tokenizing, express, *workers):
            stack.enter_context(executor)
        stack.callback(loading.shutdown, wait=False, cancel_futures=True)
        models = ModelManager(
            fetch=lambda name: fetch(catalog.get(name), settings.hub_cache_dir),
            load=lambda name: load(catalog.get(name), hub_cache_dir=settings.hub_cache_dir),
            finish=lambda encoder: encoder.widen(cores) if copies(encoder.model) > 1 else None,
            memory_bytes=lambda name: catalog.get(name).memory_bytes * copies(catalog.get(name)),
            executor=loading,
            capacity=settings.max_cached_models,
            ttl_s=settings.model_cache_ttl,
            retry_pause_s=settings.model_retry_pause,
            memory_budget_bytes=settings.model_memory_budget,
        )
        stack.push_async_callback(models.aclose)
        scheduler = Scheduler(
            lanes=workers,
            express=express,
            micro_batch_tokens=settings.micro_batch_tokens,
            max_queue_s=settings.max_queue_seconds,
        )
        stack.push_async_callback(scheduler.aclose)
        embeddings = EmbeddingService(
            catalog=catalog,
            allowed=frozenset(settings.allowed_models),
            models=models,
            scheduler=scheduler,
            tokenizing=tokenizing,
            timeout_s=settings.request_timeout,
        )
        rules = TextRules(settings.max_text_length, settings.max_batch_size)
        yield Service(settings, catalog, models, scheduler, embeddings, metrics, rules)


try:
    app = create_app()
except SettingsError as error:
    sys.exit(f"Bad settings: {error}.")

if __name__ == "__main__":
    chosen: Settings = app.state.settings
    sys.exit(serve(app, host=chosen.host, port=chosen.port, drain_s=chosen.shutdown_timeout))
