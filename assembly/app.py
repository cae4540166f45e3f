"""Builds the app: routes, middleware, error handlers and the service behind them."""

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from litestar import Litestar
from litestar.config.cors import CORSConfig
from litestar.di import Provide

from access.api_keys import KeyRing
from access.quotas import QuotaStore
from api import openapi
from api.answer_formats import EMBEDDING_HEADERS, FINGERPRINT_HEADER
from api.answer_types import VectorsSchema
from api.cache_headers import CACHE_HEADERS
from api.docs import ApiDocs
from api.model_names import ModelNames
from api.openai import OpenAIParts
from api.openai_token_ids import TokenVocabulary
from api.page import PageFiles
from api.request_types import TextLimits
from assembly.access import Access, quota_store, read_access
from assembly.catalog import open_catalog
from assembly.client_addresses import client_addresses
from assembly.lane_plan import plan_lanes
from assembly.model_aliases import check_model_names
from assembly.outer_middleware import OuterMiddleware, add_outer_middleware
from assembly.paths import Paths, read_paths
from assembly.peers import Lifespan, Peers, find_peers
from assembly.process_reporter import ProcessReporter
from assembly.result_cache import open_result_cache
from assembly.running import RunningService
from assembly.tracing import Tracing, read_tracing
from assembly.worker_channel import WorkerChannel
from config import Settings
from engine.catalog import Catalog
from engine.embedder import Embedder
from engine.encoder import Encoder
from engine.request_terms import RequestTerms
from engine.single_hit import SingleHit
from serving.worker_process import WorkerLink
from telemetry.log_setup import configure_logging
from telemetry.metrics import Metrics
from web.answer_reuse import AnswerReuse
from web.authentication import AuthenticationMiddleware
from web.cors import cors_config
from web.direct_calls import DirectCalls
from web.json_bodies import StrictRequest
from web.litestar_adapter import LeanLitestar, options_routes
from web.problems import problem_handlers
from web.rate_limits import LIMIT_HEADERS, RateLimitMiddleware

EXPOSED_HEADERS = [
    "X-Request-ID",
    "Retry-After",
    "retry-after-ms",
    "x-should-retry",
    "WWW-Authenticate",
    FINGERPRINT_HEADER,
    *EMBEDDING_HEADERS,
    *CACHE_HEADERS,
    *LIMIT_HEADERS,
    "Server-Timing",
]
"""The headers that pages of other origins may read."""


@dataclass(frozen=True, slots=True)
class AppParts:
    """The parts of an app that the server process and Ray Serve use, in `app.state.parts`.

    Attributes:
        settings: those of the app, without API keys.
        metrics: counts answers, and errors of connections that end before there is a request.
        outer: what is around the routes.
        paths: what the paths of requests mean.
        keys: the API keys.
        service: the service behind the routes; the app's lifespan opens it.
        tracing: records spans of requests.
    """

    settings: Settings
    metrics: Metrics
    outer: OuterMiddleware
    paths: Paths
    keys: KeyRing
    service: RunningService
    tracing: Tracing


@dataclass(frozen=True, slots=True)
class EmbeddingParts:
    """The parts that the routes for embedding and tokenising use.

    They are one dependency, because Litestar resolves several dependencies of a request in a task group.
    """

    embedder: Embedder
    limits: TextLimits
    names: ModelNames


def parts_of(app: Litestar) -> AppParts:
    """Return the parts that `build_app` has stored in *app*."""
    parts: AppParts = app.state.parts
    return parts


def build_app(
    settings: Settings,
    *,
    route_handlers: Sequence[Any],
    version: str,
    load: Callable[..., Encoder],
    stop: Callable[[], None] | None,
    cores: int | None,
    worker: WorkerLink | None = None,
) -> Litestar:
    """Build the app of *route_handlers*; the other arguments, and the errors, are those of `main.create_app`."""
    _set_up_log(settings, worker)
    catalog, tracing = _checked_catalog(settings), read_tracing(settings, version=version)
    access, results, settings = read_access(settings), open_result_cache(settings), settings.without_api_keys()
    channel, metrics = (None if worker is None else WorkerChannel(worker)), Metrics()
    quotas = quota_store(settings, supervisor=None if channel is None else channel.channel)
    service = RunningService(
        settings,
        catalog=catalog,
        plan=plan_lanes(settings, cores=cores),
        quotas=quotas,
        results=results,
        load=load,
        stop=stop or partial(signal.raise_signal, signal.SIGTERM),
        workers=1 if worker is None else worker.workers,
    )
    reporter = ProcessReporter(service, settings, metrics=metrics, quotas=quotas)
    peers = find_peers(reporter, service, settings, metrics=metrics, channel=channel, version=version)
    providers = _providers(service, settings, catalog, version=version) | peers.providers
    authentication, reuse = _authentication(access, settings), _reuse(service)
    app = LeanLitestar(
        route_handlers=[*options_routes(route_handlers), *route_handlers],
        lifespan=_lifespans(tracing, peers, metrics, access, service),
        dependencies={name: Provide(provide, sync_to_thread=False) for name, provide in providers.items()},
        middleware=[authentication, *_rate_limits(settings, quotas, metrics), DirectCalls(providers, reuse=reuse)],
        request_class=StrictRequest,
        request_max_body_size=int(settings.max_request_size),
        exception_handlers=problem_handlers(has_docs=settings.enable_docs),
        cors_config=_cors(settings),
        openapi_config=openapi.openapi_config(version, root_path=settings.root_path),
        plugins=[VectorsSchema(), openapi.StrictBodies(), openapi.Summaries()],
        logging_config=None,
    )
    paths = read_paths(app, root_path=settings.root_path)
    outer = add_outer_middleware(
        app,
        service,
        paths=paths,
        metrics=metrics,
        authentication=authentication,
        reuse=reuse,
        settings=settings,
        tracing=tracing,
    )
    app.state.parts = AppParts(settings, metrics, outer, paths, access.keys, service, tracing)
    return app


def _lifespans(
    tracing: Tracing, peers: Peers, metrics: Metrics, access: Access, service: RunningService
) -> list[Lifespan]:
    """Return what runs with the app, in the order of the starts; the last one ends first."""
    return [
        tracing.lifespan,
        *peers.first,
        lambda _: metrics.loop_lag.running(),
        access.lifespan,
        service.lifespan,
        *peers.last,
    ]


def _checked_catalog(settings: Settings) -> Catalog:
    catalog = open_catalog(settings)
    check_model_names(settings, catalog)
    return catalog


def _set_up_log(settings: Settings, worker: WorkerLink | None) -> None:
    configure_logging(
        level=settings.lowest_level,
        is_json=None if settings.log_format == "auto" else settings.log_format == "json",
        context=None if worker is None else {"worker": worker.number, "pid": os.getpid()},
    )


def _cors(settings: Settings) -> CORSConfig | None:
    return cors_config(settings.cors_origins, exposed_headers=EXPOSED_HEADERS) if settings.enable_cors else None


def _rate_limits(settings: Settings, quotas: QuotaStore, metrics: Metrics) -> list[RateLimitMiddleware]:
    return [RateLimitMiddleware(quotas, count=metrics.count_rate_limited)] if settings.enable_rate_limit else []


def _reuse(service: RunningService) -> AnswerReuse | None:
    """Return what sends answers again; None: nothing is kept."""

    def repeat(hit: SingleHit, terms: RequestTerms) -> bool:
        return service.parts.embedder.repeat(hit, terms)

    results = service.results
    return None if results.answers is None else AnswerReuse(results.answers, results.keys.answer_key, repeat)


def _authentication(access: Access, settings: Settings) -> AuthenticationMiddleware:
    addresses = client_addresses(settings)
    return AuthenticationMiddleware(
        protected=access.protected,
        find_key=access.keys.find,
        verify_token=access.tokens.verify,
        principal_at=addresses.principal_of,
        is_local=addresses.is_local,
    )


def _providers(
    service: RunningService,
    settings: Settings,
    catalog: Catalog,
    *,
    version: str,
) -> dict[str, Callable[[], Any]]:
    """Return what provides the dependencies of handlers, by name: each receives exactly the parts it uses."""
    text_limits = TextLimits(settings.max_text_length, settings.max_batch_size)
    vocabulary = TokenVocabulary()
    page_files = PageFiles(is_on=settings.enable_page, has_docs=settings.enable_docs)
    api_docs = ApiDocs(is_on=settings.enable_docs)
    names = ModelNames(
        catalog,
        lambda: service.parts.embedder,
        default_model=settings.required_models[0],
        aliases=dict(settings.model_aliases),
    )
    return {
        "embedding": lambda: EmbeddingParts(service.parts.embedder, text_limits, names),
        "limits": lambda: text_limits,
        "embedder": lambda: service.parts.embedder,
        "models": lambda: service.parts.models,
        "names": lambda: names,
        "openai": lambda: OpenAIParts(service.parts.embedder, names, vocabulary),
        "scheduler": lambda: service.parts.scheduler,
        "lifecycle": lambda: service.lifecycle,
        "version": lambda: version,
        "page_files": lambda: page_files,
        "api_docs": lambda: api_docs,
        "required_models": lambda: service.required_models,
    }
