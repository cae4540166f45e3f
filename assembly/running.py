"""The parts of a running service: put together, loaded, drained and taken apart."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

import structlog
from litestar import Litestar

from access.quotas import QuotaStore
from api.answer_types import CacheInfo, LimitMetrics
from api.request_types import TextLimits
from assembly.lane_plan import LanePlan, plan_lanes
from config import HERE, Settings
from engine.catalog import Catalog, Model
from engine.embedder import Embedder
from engine.encoder import Encoder
from engine.errors import ServiceError
from engine.hub import fetch, is_cached
from engine.lane import Lane, open_lanes
from engine.memory_estimate import advice, need_of, why_impossible
from engine.scheduler import Scheduler
from env_file import mistyped
from host.folder_permissions import why_not_writable
from host.memory import memory_limit, return_large_blocks
from model_manager import ModelManager
from telemetry.metrics import Metrics

log = structlog.get_logger()


@dataclass(slots=True)
class RunningService:
    """The parts of a running service, put together by `open_service`.

    Attributes:
        failure: why the required models could not be loaded.
        settled: set once it is known whether they could.
    """

    settings: Settings
    plan: LanePlan
    catalog: Catalog
    models: ModelManager
    scheduler: Scheduler
    embeddings: Embedder
    metrics: Metrics
    rules: TextLimits
    allowances: QuotaStore
    phase: Literal["starting", "healthy", "draining"] = "starting"
    failure: str | None = None
    settled: asyncio.Event = field(default_factory=asyncio.Event)
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

    @property
    def limits_state(self) -> LimitMetrics:
        return LimitMetrics(self.allowances.store, self.allowances.fallbacks)


@asynccontextmanager
async def lifespan(
    app: Litestar, *, open_parts: Callable[[], AbstractAsyncContextManager[RunningService]], stop: Callable[[], None]
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


async def _load_required(service: RunningService, stop: Callable[[], None]) -> None:
    try:
        await asyncio.to_thread(_tell_what_does_nothing, service.settings)
        required = [service.embeddings.offered(name) for name in service.settings.required_models]
        if (reason := await asyncio.to_thread(_why_not_here, service, required)) is not None:
            service.failure = reason
            log.critical("start_failed", reason=reason)
            stop()
            return
        await service.models.load_all(required)
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
        log.info("service_ready", seconds=service.uptime_s, models=[model.name for model in required])
    finally:
        service.settled.set()


def _tell_what_does_nothing(settings: Settings) -> None:
    """Log what was set and has no effect, as a name that was mistyped or a folder that is not there; blocks."""
    for name, meant in mistyped(HERE / ".env", [name.upper() for name in Settings.model_fields]).items():
        log.warning("setting_unknown", name=name, meant=meant, advice="it is in .env, and does nothing")
    if not settings.models_dir.is_dir():
        log.info("models_dir_missing", folder=settings.models_dir.name)


def _why_not_here(service: RunningService, required: Sequence[Model]) -> str | None:
    """Why *required* cannot be had here, whatever the hub says; blocks. What may go wrong later is logged."""
    settings = service.settings
    need, limit = need_of(required, service.plan.sessions_of), memory_limit()
    if (reason := why_impossible(need, limit)) is not None:
        return reason
    if need.is_tight(limit):
        log.warning("memory_tight", **advice(need, limit))
    if (trouble := why_not_writable(settings.hub_cache_dir)) is None:
        return None
    if missing := [model.name for model in required if not is_cached(model, settings.hub_cache_dir)]:
        return (
            f"The model {missing[0]!r} has to be downloaded, and HUB_CACHE_DIR cannot be written: {trouble}. "
            "Or fill it before, by `python main.py download`."
        )
    log.warning("hub_cache_not_writable", reason=trouble, advice="no other model can be downloaded")
    return None


@asynccontextmanager
async def open_service(
    settings: Settings,
    catalog: Catalog,
    metrics: Metrics,
    allowances: QuotaStore,
    load: Callable[..., Encoder],
    *,
    cores: int | None = None,
) -> AsyncIterator[RunningService]:
    """Put the parts together, and take them apart in reverse order; *cores* are as in `main.create_app`."""
    return_large_blocks()
    plan = plan_lanes(settings, cores=cores)
    log.info("threads_planned", lanes=plan.lanes, usable_cores=plan.cores, wanted=settings.thread_pool_workers)

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(allowances.running())
        # As many threads as models: a slow download never keeps another model from being loaded.
        loading = ThreadPoolExecutor(len(catalog.models), thread_name_prefix="load")
        tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenize")
        stack.enter_context(tokenizing)
        express, workers = Lane("express"), open_lanes(plan.lanes)
        for lane in (express, *workers):
            stack.callback(lane.close)
        stack.callback(loading.shutdown, wait=False, cancel_futures=True)
        models = ModelManager(
            fetch=lambda model: fetch(model, settings.hub_cache_dir),
            load=lambda model: load(model, hub_cache_dir=settings.hub_cache_dir),
            optimise=lambda encoder: (
                encoder.open_lone_text_session(plan.cores) if plan.sessions_of(encoder.model) > 1 else None
            ),
            memory_bytes=lambda model: model.memory_bytes * plan.sessions_of(model),
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
            stuck_s=settings.lane_stuck_seconds,
        )
        stack.push_async_callback(scheduler.aclose)
        embeddings = Embedder(
            catalog=catalog,
            allowed=frozenset(settings.allowed_models),
            models=models,
            scheduler=scheduler,
            tokenizing=tokenizing,
            timeout_s=settings.request_timeout,
        )
        rules = TextLimits(settings.max_text_length, settings.max_batch_size)
        yield RunningService(settings, plan, catalog, models, scheduler, embeddings, metrics, rules, allowances)
