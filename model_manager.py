"""Keeps models in memory: loads each once, warms it, leases it, and evicts by age, capacity or memory budget."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from functools import partial

import structlog

from engine.catalog import Model
from engine.download_queue import DownloadRefusedError, LoadAbandonedError
from engine.downloads import Downloads, LoadState
from engine.encoder import Encoder
from engine.errors import DrainingError, ModelUnavailableError, OverloadedError
from engine.hub import NotCachedError
from engine.load_counters import EvictionReason, LoadCounters
from engine.load_steps import LoadFailures, cause_of, free, load_or_free, optimise_or_log
from engine.memory_meter import MemoryMeter
from engine.model_leases import Lease, LeaseCounts
from engine.model_places import LoadedModel, ModelPlaces
from host.memory import trim_memory

MAX_IDLE_WAIT_S = 1.0
"""How long a load waits for an idle model. After that, the least recently used model accepts no new leases until it is
evicted."""
DOWNLOAD_RETRY_S = 30.0
"""Seconds after which a caller may ask again for a model whose download was refused: about the time of a download."""

utc_now = partial(datetime.now, UTC)
log = structlog.get_logger()


class ModelManager:
    """Owns the models in memory. Callers `lease` them; a leased or required model is never evicted."""

    def __init__(
        self,
        *,
        downloads: Downloads,
        load: Callable[[Model], Encoder],
        optimise: Callable[[Encoder], None],
        memory_bytes: Callable[[Model], int],
        executor: Executor,
        capacity: int,
        ttl_s: float,
        retry_pause_s: float,
        memory_budget_bytes: int | None = None,
        required: Sequence[Model] = (),
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = utc_now,
        private_bytes: Callable[[], int | None] = lambda: None,
    ) -> None:
        """Start with no model in memory.

        Args:
            downloads: gets a model's files.
            load: loads and warms a model; blocks; raises `ModelUnavailableError`, or `NotCachedError` if its files must
                be fetched again, which is done once.
            optimise: makes a loaded model faster; its first callers do not wait for it; blocks.
            memory_bytes: estimates the memory that a model takes once it is loaded; counts until it was measured.
            executor: runs the blocking functions, apart from inference and downloads.
            capacity: maximum number of models in memory, required ones included.
            ttl_s: seconds without a lease after which `evict_idle` evicts a model.
            retry_pause_s: seconds during which a failed load is not repeated.
            memory_budget_bytes: maximum for all models together; None: no maximum.
            required: models that are never evicted; their places and memory are kept before they are loaded, too.
            clock: monotonic, in seconds.
            now: the time of day, for people to read.
            private_bytes: returns the private memory of this process; None: unknown, so estimates count.
        """
        self._downloads = downloads
        self._load = load
        self._optimise = optimise
        self._meter = MemoryMeter(memory_bytes, read=private_bytes)
        self._memory_bytes = self._meter.memory_bytes
        self._executor, self._ttl_s, self._clock, self._now = executor, ttl_s, clock, now
        self._places = ModelPlaces(
            capacity=capacity,
            budget_bytes=memory_budget_bytes,
            required={model.name: memory_bytes(model) for model in required},
        )
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._leases = LeaseCounts()
        self._counters = LoadCounters()
        self._failures = LoadFailures(pause_s=retry_pause_s, counters=self._counters, clock=clock)
        self._closed_to_leases: str | None = None  # in constant use; accepts no new lease until it is evicted
        self._changed = asyncio.Event()

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the models in memory, least recently used first."""
        return tuple(self._places.loaded)

    @property
    def required(self) -> frozenset[str]:
        """Names of the models that are never evicted."""
        return frozenset(self._places.required)

    @property
    def load_state(self) -> LoadState:
        """The downloads and loads of this moment, and what happened to each model."""
        queue, models = self._downloads.queue, self._counters.read(self._places.loaded_bytes)
        return LoadState(queue.running, queue.waiting, queue.refused, len(self._loading), models)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the models in memory, by name."""
        loaded = self._places.loaded.items()
        return {name: found.digest for name, model in loaded if (found := model.encoder.fingerprint)}

    def find(self, name: str) -> LoadedModel | None:
        """Return the model with this name if it is in memory. This does not count as use."""
        return self._places.loaded.get(name)

    def expires_at(self, name: str) -> datetime | None:
        """Return when a model in memory is evicted if it is not used until then; None: never, or it is not loaded."""
        loaded = self._places.loaded.get(name)
        return None if loaded is None or name in self.required else loaded.last_used + timedelta(seconds=self._ttl_s)

    def lease(self, model: Model, *, caller: str = "") -> Lease:
        """Keep *model* in memory for the length of an ``async with`` block, loading it if necessary.

        Twenty callers cause one load, and a caller that leaves does not stop it. If all leave before its download has
        started, it is dropped.

        Args:
            model: a model of the catalogue.
            caller: the first of `Principal.share_keys`; downloads are shared fairly between callers, and a model that
                many callers use is evicted later.

        Raises:
            ModelUnavailableError: it cannot be loaded; the next attempt comes after a pause.
            OverloadedError: it has to be downloaded, and too many downloads wait.
            DrainingError: the manager was closed while this caller waited.
        """
        return Lease(self, model, caller)

    async def acquire(self, model: Model, caller: str) -> Encoder:
        """Begin a lease; see `lease`."""
        name = model.name
        while name == self._closed_to_leases:  # before this lease counts, or the model would never become idle
            await self._changed.wait()
        self._leases.add(name, caller)
        self._downloads.queue.join(name, caller)
        try:
            while (loaded := self._places.loaded.get(name)) is None:
                await self._wait_for_load(model, caller)
        except BaseException:
            self._end_lease(name, caller)
            raise
        return loaded.encoder

    def release(self, model: Model, caller: str) -> None:
        """End a lease."""
        self._places.mark_used(model.name, caller, self._clock())
        self._end_lease(model.name, caller)

    def _end_lease(self, name: str, caller: str) -> None:
        if self._leases.remove(name, caller):
            self._downloads.queue.abandon(name)
        if self._loading:  # nothing else waits for the end of a lease
            self._notify()

    def peek(self, model: Model, *, caller: str = "") -> Encoder | None:
        """Return *model* if it is in memory and accepts leases. This counts as use.

        There is no lease: the model may be evicted at the next `await`, so the caller may look at it, but not run it.
        """
        name = model.name
        if name == self._closed_to_leases or (loaded := self._places.loaded.get(name)) is None:
            return None
        self._places.mark_used(name, caller, self._clock())
        return loaded.encoder

    async def load_all(self, models: Iterable[Model]) -> None:
        """Load models in parallel.

        Raises:
            ModelUnavailableError: the first one that cannot be loaded; the others are loaded nevertheless.
        """
        results = await asyncio.gather(*(self._load_and_release(model) for model in models), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def evict_idle(self) -> None:
        """Evict the models that were not used for the time to live, except the required ones."""
        oldest, loaded = self._clock() - self._ttl_s, self._places.loaded
        await self._evict([name for name in self._idle() if loaded[name].used_s <= oldest], reason="ttl")

    async def evict_idle_forever(self, interval_s: float) -> None:
        """Call `evict_idle` every *interval_s* seconds, until cancelled."""
        while True:
            await asyncio.sleep(interval_s)
            try:
                await self.evict_idle()
            except Exception:
                log.exception("idle_models_not_dropped")  # and try again next time

    async def forget(self, name: str) -> None:
        """Load a model anew when it is leased next. Leases that are held, and a running load, end with the old one."""
        if name in self._loading:
            await asyncio.wait([self._loading[name]])
        self._failures.forget(name)
        self._meter.forget(name)
        await self._evict([name] if name in self._places.loaded else [], reason="reload")

    def changing_memory(self, name: str, loop: asyncio.AbstractEventLoop) -> AbstractContextManager[None]:
        """Measure anew what a model takes, because its sessions are exchanged in the block; for any thread."""
        return self._meter.changing(name, lambda taken: loop.call_soon_threadsafe(self._places.adopt_memory, taken))

    async def aclose(self) -> None:
        """Stop waiting for loads and evict all models. A load that runs in its thread finishes there."""
        for task in tuple(self._loading.values()):
            task.cancel()
        await asyncio.gather(*self._loading.values(), return_exceptions=True)
        await self._evict(list(self._places.loaded), reason="shutdown")

    async def _load_and_release(self, model: Model) -> None:
        async with self.lease(model):
            pass

    async def _wait_for_load(self, model: Model, caller: str) -> None:
        """Wait for the load of *model*. Each caller gets its own exception."""
        task = self._loading_of(model, caller)
        try:
            await asyncio.shield(task)
        except ModelUnavailableError as error:
            pause_s = self._failures.pause_s
            raise ModelUnavailableError(model.name, error.cause, retry_after_s=pause_s) from error.__cause__
        except LoadAbandonedError:
            await asyncio.sleep(0)  # the load was given up at the moment this caller arrived: start again
        except DownloadRefusedError as error:
            if error.owner == caller:
                message = "Too many models wait for their download. Models that are loaded are not affected."
                raise OverloadedError(message, retry_after_s=DOWNLOAD_RETRY_S) from None
            await asyncio.sleep(0)  # another caller was refused: start a load of this caller's own
        except asyncio.CancelledError:
            if task.cancelled():
                raise DrainingError from None
            raise

    def _notify(self) -> None:
        """Wake all that wait for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _loading_of(self, model: Model, caller: str) -> asyncio.Task[None]:
        """Return the only load of *model*. Start it unless it is running or has just failed."""
        name = model.name
        if (task := self._loading.get(name)) is None:
            self._failures.check(name)
            task = self._loading[name] = asyncio.create_task(self._load_one(model, caller))
            task.add_done_callback(lambda task: self._finish_load(name, task))
        return task

    def _finish_load(self, name: str, task: asyncio.Task[None]) -> None:
        del self._loading[name]
        self._places.release(name)
        self._notify()
        if not task.cancelled() and task.exception():  # reading the exception marks it as handled
            self._executor.submit(trim_memory)

    async def _load_one(self, model: Model, owner: str) -> None:
        """Load *model*. Fetch its files first: a model that cannot be fetched must not evict another one."""
        name = model.name
        try:
            self._places.check(name, self._memory_bytes(model))  # before it is downloaded
            try:
                encoder, started = await self._fetch_and_load(model, owner)
            except NotCachedError as error:
                self._places.release(name)  # for the time of the download
                encoder, started = await self._fetch_and_load(error.model, owner)
        except ModelUnavailableError as error:
            self._failures.record(error, log.warning)
            raise
        except (LoadAbandonedError, DownloadRefusedError):
            raise
        except Exception as error:
            unforeseen = ModelUnavailableError(name, cause_of(error))
            self._failures.record(unforeseen, log.error, exc_info=error)
            raise unforeseen from error
        self._failures.forget(name)
        now_s, memory_bytes, loaded = self._clock(), self._places.release(name), self._places.loaded
        loaded[name] = LoadedModel(encoder, memory_bytes, now_s - started, self._now(), loaded_s=now_s, used_s=now_s)
        if name in self._places.required:
            self._places.required[name] = memory_bytes  # a reload may have changed its size
        self._counters.count_load(name, now_s - started)
        log.info("model_loaded", model=name, seconds=round(now_s - started, 3), loaded=len(loaded))
        finish, loop = partial(self._meter.finish, partial(optimise_or_log, self._optimise)), asyncio.get_running_loop()
        self._executor.submit(
            finish, encoder, lambda taken: loop.call_soon_threadsafe(self._places.adopt_memory, taken)
        )

    async def _fetch_and_load(self, model: Model, owner: str) -> tuple[Encoder, float]:
        """Get the files of *model*, then a place for it, and load it.

        Returns:
            The model, and when its load began, on the clock.
        """
        name = model.name
        await self._downloads.fetch(
            model, owner, lambda: self._leases.callers(name), is_required=name in self._places.required
        )
        await self._reserve(name, self._memory_bytes(model))
        started_s = self._clock()
        run = asyncio.get_running_loop().run_in_executor
        return await run(self._executor, self._meter.load, partial(load_or_free, self._load), model), started_s

    async def _reserve(self, name: str, needed_bytes: int) -> None:
        """Reserve a place and memory for a model. Evict idle models if necessary, those with the fewest users first.

        If all are in use, wait for one. Evict and wait only as long as any caller waits for the model.
        """
        wait_ends_s, has_closed_one = self._clock() + MAX_IDLE_WAIT_S, False
        try:
            while (missing := self._places.reserve(name, needed_bytes)) is not None:
                if name not in self._leases:
                    raise LoadAbandonedError
                if idle := self._idle():
                    await self._evict(idle[:1], reason=missing)
                    continue
                if self._closed_to_leases is None and self._clock() >= wait_ends_s:
                    self._closed_to_leases = next(iter(self._places.evictable(self._clock())), None)
                    has_closed_one = self._closed_to_leases is not None
                await self._changed.wait()
        finally:
            if has_closed_one:
                self._closed_to_leases = None
                self._notify()

    def _idle(self) -> list[str]:
        """Return the models that may be evicted now, in the order in which they go."""
        return self._places.evictable(self._clock(), self._leases.__contains__)

    async def _evict(self, names: list[str], *, reason: EvictionReason) -> None:
        """Remove models and return their memory to the system."""
        loaded = self._places.loaded
        evicted = [loaded.pop(name) for name in names]
        for name in names:
            self._counters.count_eviction(name, reason)
            log.info("model_dropped", model=name, reason=reason, loaded=len(loaded))
        if evicted:
            self._notify()
            with self._meter.freeing():
                await asyncio.get_running_loop().run_in_executor(self._executor, free, evicted)
