"""Keeps models in memory: loads each once, warms it, leases it, and evicts by age, capacity or memory budget."""

import asyncio
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

import structlog

from engine.catalog import Model
from engine.encoder import Encoder
from engine.errors import NO_MEMORY, DrainingError, ModelUnavailableError
from host.memory import trim_memory

MAX_IDLE_WAIT_S = 1.0
"""How long a load waits for an idle model. After that, the least recently used model accepts no new leases until it is
evicted."""

utc_now = partial(datetime.now, UTC)
log = structlog.get_logger()


@dataclass(slots=True)
class LoadedModel:
    """A model in memory.

    Attributes:
        load_s: seconds that loading and warming took.
        loaded_at: time of day at which it was loaded.
        loaded_s: the same moment on the manager's clock.
        used_s: when it was last leased or released, on the manager's clock.
    """

    encoder: Encoder
    memory_bytes: int
    load_s: float
    loaded_at: datetime
    loaded_s: float
    used_s: float

    @property
    def last_used(self) -> datetime:
        return self.loaded_at + timedelta(seconds=self.used_s - self.loaded_s)


@dataclass(frozen=True, slots=True)
class _Failure:
    cause: str
    retry_at_s: float


class _AbandonedError(Exception):
    """All callers that waited for a model left before there was space for it."""


class ModelManager:
    """Owns the models in memory. Callers `lease` them; a leased model is never evicted."""

    def __init__(
        self,
        *,
        fetch: Callable[[Model], object],
        load: Callable[[Model], Encoder],
        optimise: Callable[[Encoder], None],
        memory_bytes: Callable[[Model], int],
        executor: Executor,
        capacity: int,
        ttl_s: float,
        retry_pause_s: float,
        memory_budget_bytes: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """Start with no model in memory.

        Args:
            fetch: gets a model's files; blocks, perhaps for minutes; raises `ModelUnavailableError`.
            load: loads and warms a model; blocks; raises `ModelUnavailableError`.
            optimise: makes a loaded model faster; its first callers do not wait for it; blocks.
            memory_bytes: estimates the memory that a model takes once it is loaded.
            executor: runs the blocking functions, apart from inference.
            capacity: maximum number of models in memory.
            ttl_s: seconds without a lease after which `evict_idle` evicts a model.
            retry_pause_s: seconds during which a failed load is not repeated.
            memory_budget_bytes: maximum for all models together; None: no maximum.
            clock: monotonic, in seconds.
            now: the time of day, for people to read.
        """
        self._fetch = fetch
        self._load = load
        self._optimise = optimise
        self._memory_bytes = memory_bytes
        self._executor = executor
        self._capacity = capacity
        self._ttl_s = ttl_s
        self._retry_pause_s = retry_pause_s
        self._memory_budget_bytes = memory_budget_bytes
        self._clock = clock
        self._now = now
        self._loaded: dict[str, LoadedModel] = {}  # least recently used first
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._reserved_bytes: dict[str, int] = {}  # of loads that have space, by name
        self._leases: Counter[str] = Counter()  # requested or held: a caller that waits for a model keeps it, too
        self._failures: dict[str, _Failure] = {}
        self._closed_to_leases: str | None = None  # in constant use; accepts no new lease until it is evicted
        self._changed = asyncio.Event()

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the models in memory, least recently used first."""
        return tuple(self._loaded)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the models in memory, by name."""
        return {
            name: model.encoder.fingerprint.digest for name, model in self._loaded.items() if model.encoder.fingerprint
        }

    def find(self, name: str) -> LoadedModel | None:
        """Return the model with this name if it is in memory. This does not count as use."""
        return self._loaded.get(name)

    @asynccontextmanager
    async def lease(self, model: Model) -> AsyncIterator[Encoder]:
        """Keep *model* in memory for the length of the block, loading it if necessary.

        Twenty callers cause one load, and a caller that leaves does not stop it.

        Raises:
            ModelUnavailableError: it cannot be loaded; the next attempt comes after a pause.
            DrainingError: the manager was closed while this caller waited.
        """
        name = model.name
        while name == self._closed_to_leases:  # before this lease counts, or the model would never become idle
            await self._changed.wait()
        self._leases[name] += 1
        try:
            while (loaded := self._loaded.get(name)) is None:
                await self._wait_for_load(model)
            self._mark_used(loaded)
            try:
                yield loaded.encoder
            finally:
                self._mark_used(loaded)
        finally:
            self._leases[name] -= 1
            if not self._leases[name]:
                del self._leases[name]
            self._notify()

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
        """Evict the models that were not used for the time to live."""
        oldest = self._clock() - self._ttl_s
        names = [name for name in self._idle() if self._loaded[name].used_s <= oldest]
        await self._evict(names, reason="idle")

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
        self._failures.pop(name, None)
        await self._evict([name] if name in self._loaded else [], reason="changed")

    async def aclose(self) -> None:
        """Stop waiting for loads and evict all models. A load that runs in its thread finishes there."""
        for task in tuple(self._loading.values()):
            task.cancel()
        await asyncio.gather(*self._loading.values(), return_exceptions=True)
        await self._evict(list(self._loaded), reason="shutdown")

    async def _load_and_release(self, model: Model) -> None:
        async with self.lease(model):
            pass

    async def _wait_for_load(self, model: Model) -> None:
        """Wait for the load of *model*. Each caller gets its own exception."""
        task = self._loading_of(model)
        try:
            await asyncio.shield(task)
        except ModelUnavailableError as error:
            raise ModelUnavailableError(model.name, error.cause, retry_after_s=self._retry_pause_s) from error.__cause__
        except _AbandonedError:
            await asyncio.sleep(0)  # the load was given up at the moment this caller arrived: start again
        except asyncio.CancelledError:
            if task.cancelled():
                raise DrainingError from None
            raise

    def _mark_used(self, loaded: LoadedModel) -> None:
        """Make this model the most recently used one."""
        loaded.used_s = self._clock()
        if (name := loaded.encoder.name) in self._loaded:
            self._loaded[name] = self._loaded.pop(name)

    def _notify(self) -> None:
        """Wake all that wait for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _loading_of(self, model: Model) -> asyncio.Task[None]:
        """Return the only load of *model*. Start it unless it is running or has just failed."""
        name = model.name
        if (task := self._loading.get(name)) is None:
            if (failure := self._failures.get(name)) and (pause_s := failure.retry_at_s - self._clock()) > 0:
                raise ModelUnavailableError(name, failure.cause, retry_after_s=pause_s)
            task = self._loading[name] = asyncio.create_task(self._load_one(model))
            task.add_done_callback(lambda task: self._finish_load(name, task))
        return task

    def _finish_load(self, name: str, task: asyncio.Task[None]) -> None:
        del self._loading[name]
        self._reserved_bytes.pop(name, None)
        self._notify()
        if not task.cancelled() and task.exception():  # reading the exception marks it as handled
            self._executor.submit(trim_memory)

    async def _load_one(self, model: Model) -> None:
        """Load *model*. Fetch its files first: a model that cannot be fetched must not evict another one."""
        name = model.name
        run = partial(asyncio.get_running_loop().run_in_executor, self._executor)
        try:
            await run(self._fetch, model)
            await self._reserve(model)
            started = self._clock()
            encoder = await run(_load_or_free, self._load, model)
        except ModelUnavailableError as error:
            self._record_failure(error, log.warning)
            raise
        except _AbandonedError:
            raise
        except Exception as error:
            unforeseen = ModelUnavailableError(name, _cause_of(error))
            self._record_failure(unforeseen, log.error, exc_info=error)
            raise unforeseen from error
        self._failures.pop(name, None)
        now_s = self._clock()
        self._loaded[name] = LoadedModel(
            encoder, self._reserved_bytes.pop(name), now_s - started, self._now(), loaded_s=now_s, used_s=now_s
        )
        log.info("model_loaded", model=name, seconds=round(now_s - started, 3), loaded=len(self._loaded))
        self._executor.submit(_optimise, self._optimise, encoder)

    def _record_failure(self, failure: ModelUnavailableError, write: Callable[..., object], **fields: object) -> None:
        """Log a failed load, and delay the next attempt."""
        pause_s = self._retry_pause_s
        self._failures[failure.name] = _Failure(failure.cause, self._clock() + pause_s)
        write("model_load_failed", model=failure.name, cause=failure.cause, retry_after_s=pause_s, **fields)

    async def _reserve(self, model: Model) -> None:
        """Reserve space and memory for *model*. Evict idle models if necessary, least recently used first.

        If all are in use, wait for one, as long as any caller waits for *model*.
        """
        name, needed = model.name, self._memory_bytes(model)
        if self._memory_budget_bytes is not None and needed > self._memory_budget_bytes:
            raise ModelUnavailableError(
                name, f"it needs {needed / 1e6:.0f} MB, more than MODEL_MEMORY_BUDGET allows for all models"
            )
        wait_ends_s, has_closed_one = self._clock() + MAX_IDLE_WAIT_S, False
        try:
            while not self._has_space(needed):
                if idle := self._idle():
                    await self._evict(idle[:1], reason="crowded_out")
                    continue
                if not self._leases[name]:
                    raise _AbandonedError
                if self._closed_to_leases is None and self._loaded and self._clock() >= wait_ends_s:
                    self._closed_to_leases, has_closed_one = next(iter(self._loaded)), True
                await self._changed.wait()
            self._reserved_bytes[name] = needed
        finally:
            if has_closed_one:
                self._closed_to_leases = None
                self._notify()

    def _has_space(self, needed_bytes: int) -> bool:
        taken = [model.memory_bytes for model in self._loaded.values()] + list(self._reserved_bytes.values())
        budget = self._memory_budget_bytes
        return len(taken) < self._capacity and (budget is None or sum(taken) + needed_bytes <= budget)

    def _idle(self) -> list[str]:
        return [name for name in self._loaded if not self._leases[name]]

    async def _evict(self, names: list[str], *, reason: str) -> None:
        """Remove models and return their memory to the system."""
        evicted = [self._loaded.pop(name) for name in names]
        for name in names:
            log.info("model_dropped", model=name, reason=reason, loaded=len(self._loaded))
        if evicted:
            self._notify()
            await asyncio.get_running_loop().run_in_executor(self._executor, _free, evicted)


def _cause_of(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return NO_MEMORY
    return f"an unexpected failure ({type(error).__name__}), which the service's log contains in full"


def _load_or_free(load: Callable[[Model], Encoder], model: Model) -> Encoder:
    """Load *model*; blocks. If that fails, keep the traceback from holding what was loaded so far."""
    try:
        return load(model)
    except Exception as error:
        failure: BaseException | None = error
        while failure is not None:
            traceback.clear_frames(failure.__traceback__)
            failure = failure.__cause__ or failure.__context__
        raise


def _optimise(optimise: Callable[[Encoder], None], encoder: Encoder) -> None:
    """Run *optimise*; blocks. If it fails, the model still serves."""
    try:
        optimise(encoder)
    except Exception as error:
        log.warning("model_not_optimised", model=encoder.name, exc_info=error)


def _free(models: list[LoadedModel]) -> None:
    """Drop the last references to the models, which *models* holds, and return their memory; blocks."""
    models.clear()
    trim_memory()
