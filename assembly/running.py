"""The running service: opens its parts with the app, loads the required models, drains, and closes the parts."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

import structlog
from litestar import Litestar

from access.quotas import QuotaStore
from assembly.lane_plan import LanePlan
from assembly.lifecycle import Lifecycle
from assembly.model_reload import ModelReload
from assembly.optimised import copy_folder
from assembly.result_cache import ProcessCache
from assembly.start_checks import (
    log_open_catalog,
    log_settings_without_effect,
    log_unusable_folders,
    why_not_here,
)
from config import Settings
from engine.catalog import Catalog, Model
from engine.copy_upkeep import CopyUpkeep
from engine.download_queue import SLOTS, DownloadQueue
from engine.downloads import Downloads
from engine.embedder import Embedder
from engine.encoder import Encoder
from engine.errors import ServiceError
from engine.hub import fetch, is_cached
from engine.hub_space import HubSpace
from engine.lane import Lane, open_lanes
from engine.ledger import Account
from engine.scheduler import Scheduler
from engine.tokenizer_queue import TokenizerQueue
from host.memory import fix_mmap_threshold, private_bytes
from model_manager import ModelManager
from telemetry.uvicorn_lines import adopt_uvicorn_lines, uvicorn_address
from web.overload_guard import RouteQueue

LOAD_THREADS = 8
"""Threads that load, optimise and evict models. More models at a time would only share the same cores."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ServiceParts:
    """The parts of a running service."""

    models: ModelManager
    scheduler: Scheduler
    tokenizing: TokenizerQueue
    embedder: Embedder


class RunningService:
    """Owns the parts of one app between its start and its end."""

    def __init__(
        self,
        settings: Settings,
        *,
        catalog: Catalog,
        plan: LanePlan,
        quotas: QuotaStore,
        results: ProcessCache,
        load: Callable[..., Encoder],
        stop: Callable[[], None],
        workers: int = 1,
    ) -> None:
        """Open nothing before `lifespan`.

        Args:
            settings: without API keys.
            catalog: the models that exist.
            plan: lanes and copies of sessions.
            quotas: connected for as long as the service runs.
            results: the same.
            load: loads a model of the catalogue.
            stop: called if the start fails; ends the process.
            workers: processes like this one; if there are several, the service is ready when all are.
        """
        self.lifecycle = Lifecycle()
        self.required_models = tuple(catalog.get(name).name for name in settings.required_models)
        self._settings = settings
        self._catalog = catalog
        self._plan = plan
        self._quotas = quotas
        self.results = results
        """What this process keeps of texts."""
        self.web_accounts: list[Account] = []
        """What requests hold before the engine knows of them, for `/metrics`."""
        self._load = load
        self._stop = stop
        self._copies = copy_folder(settings).open()
        self._workers = workers
        self._parts: ServiceParts | None = None
        self._reload = ModelReload(
            settings,
            catalog,
            load=partial(load, hub_cache_dir=settings.hub_cache_dir),
            on_adopted=results.clear_answers,
        )

    @property
    def parts(self) -> ServiceParts:
        """The parts; only while the app runs."""
        if self._parts is None:
            message = "the service is not running"
            raise RuntimeError(message)
        return self._parts

    @property
    def queues(self) -> dict[str, RouteQueue]:
        """The queues for the kinds of work that a route states in its option `work`."""

        def queue_of(
            find: Callable[[ServiceParts], Scheduler | TokenizerQueue], has_results: Callable[[], bool]
        ) -> RouteQueue:
            return RouteQueue(
                has_results=has_results,
                is_tight=lambda: self._parts is not None and find(self._parts).is_tight(),
                overload=lambda caller: None if self._parts is None else find(self._parts).overload(caller),
            )

        def has_results() -> bool:
            return self._parts is not None and self._parts.embedder.has_results

        return {
            "queued": queue_of(lambda parts: parts.scheduler, has_results),
            "unqueued": queue_of(lambda parts: parts.tokenizing, lambda: False),
        }

    async def reload(self) -> None:
        """Read the model folders again, and serve what has changed. Without effect while the app does not run.

        Running requests end with the model that they have. Never raises: what cannot be used is logged.
        """
        if self._parts is not None and self.lifecycle.phase != "draining":
            await self._reload.run(self._parts.models)

    @asynccontextmanager
    async def lifespan(self, _: Litestar) -> AsyncIterator[None]:
        """Open the parts, load the required models while `/health` already answers, and close everything at the end."""
        # A program may have set up uvicorn after the app.
        adopt_uvicorn_lines(has_access_lines=self._settings.lowest_level == "DEBUG")
        try:
            async with self._open_parts() as self._parts:
                starting = asyncio.create_task(self._start(self._parts))
                cleaning = asyncio.create_task(self._parts.models.evict_idle_forever(self._settings.cleanup_interval))
                try:
                    yield
                finally:
                    self.lifecycle.start_draining()
                    for task in (starting, cleaning):
                        task.cancel()
                        with suppress(asyncio.CancelledError):
                            await task
        finally:
            self._parts = None

    async def _start(self, parts: ServiceParts) -> None:
        """Load the required models and accept work; or log why that is impossible, and stop the process."""
        bug: Exception | None = None
        try:
            reason = await self._load_required(parts)
        except ServiceError as error:
            reason = error.detail
        except Exception as error:  # noqa: BLE001 - logged below
            reason, bug = "an unexpected error; the log's event start_failed has the details", error
        if reason is None:
            if self.lifecycle.finish_start():
                self._log_ready()
            return
        log.critical("start_failed", reason=reason, exc_info=bug)
        if self.lifecycle.phase == "starting":  # if it drains already, a second signal would end it at once
            self.lifecycle.fail_start(reason)
            self._stop()

    def _log_ready(self) -> None:
        """Log that requests are served, and where, if that is known: other servers may open their socket later."""
        facts = {"seconds": self.lifecycle.uptime_s, "models": list(self.required_models)}
        if self._workers > 1:
            log.info("models_ready", **facts)
        elif (address := self.lifecycle.address or uvicorn_address()) is None:
            log.info("service_ready", **facts)
        else:
            log.info("service_ready", **facts, address=address)

    async def _load_required(self, parts: ServiceParts) -> str | None:
        """Load the required models; return why that is impossible on this machine.

        Raises:
            ServiceError: a model is not allowed, or cannot be loaded.
        """
        settings = self._settings
        await asyncio.to_thread(log_settings_without_effect, settings)
        log_open_catalog(settings)
        await asyncio.to_thread(log_unusable_folders, self._catalog.models)
        required = [parts.embedder.resolve_model(name) for name in self.required_models]
        reason = await asyncio.to_thread(why_not_here, settings, required, self._plan, workers=self._workers)
        if reason is None:
            await parts.models.load_all(required)
        return reason

    @asynccontextmanager
    async def _open_parts(self) -> AsyncIterator[ServiceParts]:
        """Construct the parts in the order of their dependencies, and close them in reverse order."""
        fix_mmap_threshold()
        settings, catalog, plan = self._settings, self._catalog, self._plan
        log.info("threads_planned", lanes=plan.lanes, usable_cores=plan.cores, wanted=settings.thread_pool_workers)
        if (advice := plan.advice()) is not None:
            log.warning("cores_unused", unused=plan.unused_cores, usable_cores=plan.cores, advice=advice)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._quotas.running())
            await stack.enter_async_context(self.results.running())
            loading = ThreadPoolExecutor(min(LOAD_THREADS, settings.max_cached_models + 1), thread_name_prefix="load")
            # Threads of their own: a slow download never delays a load.
            downloading = ThreadPoolExecutor(SLOTS, thread_name_prefix="download")
            tokenizing = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="tokenize"))
            express, lanes = Lane("express"), open_lanes(plan.lanes)
            for lane in (express, *lanes):
                stack.callback(lane.close)
            for executor in (loading, downloading):
                stack.callback(executor.shutdown, wait=False, cancel_futures=True)
            loop = asyncio.get_running_loop()
            upkeep = CopyUpkeep(
                self._copies,
                reload=lambda name: _call_soon(loop, partial(self._load_anew, name)),
                adopting=lambda name: self.parts.models.changing_memory(name, loop),
            )
            stack.callback(upkeep.close)
            models = self._model_manager(loading, downloading, upkeep)
            stack.push_async_callback(models.aclose)
            scheduler = Scheduler(
                lanes=lanes,
                express=express,
                micro_batch_tokens=settings.micro_batch_tokens,
                max_queue_s=settings.max_queue_seconds,
                max_bulk_queue_s=settings.max_bulk_queue_seconds,
                stuck_s=settings.lane_stuck_seconds,
            )
            stack.push_async_callback(scheduler.aclose)
            queue = TokenizerQueue(tokenizing, max_queue_s=settings.max_queue_seconds)
            embedder = Embedder(
                catalog=catalog,
                allowed=frozenset(settings.allowed_models),
                default_model=self.required_models[0],
                models=models,
                scheduler=scheduler,
                tokenizing=queue,
                timeout_s=settings.request_timeout,
                results=self.results.store,
                keys=self.results.keys,
            )
            yield ServiceParts(models, scheduler, queue, embedder)

    async def _load_anew(self, name: str) -> None:
        """Drop a model whose files or optimised copy have changed under it, and load it again if it is required."""
        if (parts := self._parts) is None or self.lifecycle.phase == "draining":
            return
        await parts.models.forget(name)
        if name in parts.models.required:
            with suppress(ServiceError):  # the manager has logged it
                await parts.models.load_all([self._catalog.get(name)])

    def _model_manager(
        self, loading: ThreadPoolExecutor, downloading: ThreadPoolExecutor, upkeep: CopyUpkeep
    ) -> ModelManager:
        settings, plan, cache_dir = self._settings, self._plan, self._settings.hub_cache_dir
        required = [self._catalog.get(name) for name in self.required_models]
        space = HubSpace(cache_dir, max_bytes=settings.hub_cache_max_size)
        return ModelManager(
            downloads=Downloads(
                fetch=lambda model: fetch(
                    self._current(model), cache_dir, space=space, may_fill_disk=model.name in self.required_models
                ),
                needs_download=lambda model: not is_cached(self._current(model), cache_dir),
                executor=loading,
                download_executor=downloading,
                queue=DownloadQueue(),
            ),
            load=lambda model: self._load(
                self._current(model), hub_cache_dir=settings.hub_cache_dir, copies=self._copies
            ),
            optimise=lambda encoder: _optimise(encoder, plan, upkeep),
            memory_bytes=lambda model: model.memory_bytes * plan.sessions_of(model),
            executor=loading,
            capacity=settings.max_cached_models,
            ttl_s=settings.model_cache_ttl,
            retry_pause_s=settings.model_retry_pause,
            memory_budget_bytes=settings.model_memory_budget,
            required=required,
            private_bytes=private_bytes,
        )

    def _current(self, model: Model) -> Model:
        """Return *model* as it is now: a reload may have replaced it since the caller looked it up."""
        current = self._catalog.find(model.name) or model
        is_preloaded = model.folder is not None or model.preloaded is not None  # not if that cache is corrupt
        return current if is_preloaded else replace(current, preloaded=None)


def _optimise(encoder: Encoder, plan: LanePlan, upkeep: CopyUpkeep) -> None:
    """Open the session for lone texts, and have an optimised copy verified or written; blocks for the former."""
    try:
        if plan.has_lone_text_session(encoder.model, is_mapped=encoder.copy is not None):
            encoder.open_lone_text_session(plan.lone_text_threads)
    finally:
        upkeep.tend(encoder)


def _call_soon(loop: asyncio.AbstractEventLoop, work: Callable[[], Coroutine[None, None, None]]) -> None:
    """Start *work* on the event loop, from another thread; without effect if the loop has ended."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(lambda: asyncio.ensure_future(work()))
