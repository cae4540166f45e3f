"""Which models are in memory: load once, warm, lease, and drop by age, by crowding or by memory budget."""

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
from host.memory import give_memory_back

PATIENCE_S = 1.0
"""So long a model waits for an idle one; then the least recently used one takes no new callers until it gave way."""

log = structlog.get_logger()


def utc_now() -> datetime:
    """The time of day, for people who read it; ages are measured with a monotonic clock."""
    return datetime.now(UTC)


@dataclass(slots=True)
class LoadedModel:
    """A model in memory.

    Attributes:
        load_s: seconds that loading and warming it took.
        loaded_at: the time of day at which it was loaded.
        loaded_s: the same on the manager's clock.
        used_s: when it was last leased or given back, on the manager's clock.
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
    until: float


class _AbandonedError(Exception):
    """All who wanted a model left before it had a place."""


class ModelManager:
    """Owns the models in memory. Callers `lease` them; a leased model is never dropped."""

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
            executor: where *load* runs, apart from inference.
            capacity: models in memory at most.
            ttl_s: seconds without a lease after which `drop_idle` drops a model.
            retry_pause_s: seconds in which a failed load is not tried again.
            memory_budget_bytes: for all models together; None: no bound.
            clock: seconds, monotonic.
            now: the time of day.
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
        self._claims: dict[str, int] = {}  # memory of loads that have a place, by name
        self._leases: Counter[str] = Counter()  # asked for or held: who waits for a model keeps it, too
        self._failures: dict[str, _Failure] = {}
        self._yielding: str | None = None  # in use without a pause: takes no new lease until it has given way
        self._changed = asyncio.Event()

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the models in memory, least recently used first."""
        return tuple(self._loaded)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of the models in memory, by name."""
        return {
            name: model.encoder.fingerprint.digest for name, model in self._loaded.items() if model.encoder.fingerprint
        }

    def find(self, name: str) -> LoadedModel | None:
        """The model of this name if it is in memory; asking does not use it."""
        return self._loaded.get(name)

    @asynccontextmanager
    async def lease(self, model: Model) -> AsyncIterator[Encoder]:
        """Keep *model* in memory for the length of the block, loading it if need be.

        Twenty callers cause one load, and a caller who leaves does not stop it.

        Raises:
            ModelUnavailableError: it cannot be loaded; the next try comes after a pause.
        """
        name = model.name
        while name == self._yielding:  # before it counts as wanted, or it would never fall idle
            await self._changed.wait()
        self._leases[name] += 1
        try:
            while (loaded := self._loaded.get(name)) is None:
                await self._wait_for(model)
            self._touch(loaded)
            try:
                yield loaded.encoder
            finally:
                self._touch(loaded)
        finally:
            self._leases[name] -= 1
            if not self._leases[name]:
                del self._leases[name]
            self._tell()

    async def load_all(self, models: Iterable[Model]) -> None:
        """Load models beside each other.

        Raises:
            ModelUnavailableError: the first one that cannot be loaded; the others are loaded all the same.
        """
        results = await asyncio.gather(*(self._load_and_leave(model) for model in models), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def drop_idle(self) -> None:
        """Drop the models that nobody has used for the time to live."""
        oldest = self._clock() - self._ttl_s
        names = [name for name in self._idle() if self._loaded[name].used_s <= oldest]
        await self._drop(names, reason="idle")

    async def drop_idle_forever(self, interval_s: float) -> None:
        """Look for idle models every *interval_s* seconds, until cancelled."""
        while True:
            await asyncio.sleep(interval_s)
            try:
                await self.drop_idle()
            except Exception:
                log.exception("idle_models_not_dropped")  # and look again next time

    async def aclose(self) -> None:
        """Stop waiting for loads and drop all models; a load that runs in its thread ends by itself."""
        for task in tuple(self._loading.values()):
            task.cancel()
        await asyncio.gather(*self._loading.values(), return_exceptions=True)
        await self._drop(list(self._loaded), reason="shutdown")

    async def _load_and_leave(self, model: Model) -> None:
        async with self.lease(model):
            pass

    async def _wait_for(self, model: Model) -> None:
        """Wait for the load of *model*; each of those who wait gets a failure of his own."""
        task = self._loading_of(model)
        try:
            await asyncio.shield(task)
        except ModelUnavailableError as error:
            raise ModelUnavailableError(model.name, error.cause, retry_after_s=self._retry_pause_s) from error.__cause__
        except _AbandonedError:
            await asyncio.sleep(0)  # it was given up in the moment in which this caller came: begin again
        except asyncio.CancelledError:
            if task.cancelled():
                raise DrainingError from None
            raise

    def _touch(self, loaded: LoadedModel) -> None:
        """Make this model the most recently used one."""
        loaded.used_s = self._clock()
        if (name := loaded.encoder.name) in self._loaded:
            self._loaded[name] = self._loaded.pop(name)

    def _tell(self) -> None:
        """Wake those who wait for a place."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _loading_of(self, model: Model) -> asyncio.Task[None]:
        """The one load of *model*, begun now unless it has begun or has just failed."""
        name = model.name
        if (task := self._loading.get(name)) is None:
            if (failure := self._failures.get(name)) and (pause_s := failure.until - self._clock()) > 0:
                raise ModelUnavailableError(name, failure.cause, retry_after_s=pause_s)
            task = self._loading[name] = asyncio.create_task(self._load_one(model))
            task.add_done_callback(lambda task: self._loaded_or_failed(name, task))
        return task

    def _loaded_or_failed(self, name: str, task: asyncio.Task[None]) -> None:
        del self._loading[name]
        self._claims.pop(name, None)
        self._tell()
        if not task.cancelled() and task.exception():  # those who wait have it; when all have left, nobody needs it
            self._executor.submit(give_memory_back)

    async def _load_one(self, model: Model) -> None:
        """Get the files first: a model that cannot be had must not push another one out."""
        name = model.name
        run = partial(asyncio.get_running_loop().run_in_executor, self._executor)
        try:
            await run(self._fetch, model)
            await self._make_room(model)
            started = self._clock()
            encoder = await run(_without_leftovers, self._load, model)
        except ModelUnavailableError as error:
            self._note_failure(error, log.warning)
            raise
        except _AbandonedError:
            raise
        except Exception as error:
            unforeseen = ModelUnavailableError(name, _cause_of(error))
            self._note_failure(unforeseen, log.error, exc_info=error)
            raise unforeseen from error
        self._failures.pop(name, None)
        now_s = self._clock()
        self._loaded[name] = LoadedModel(
            encoder, self._claims.pop(name), now_s - started, self._now(), loaded_s=now_s, used_s=now_s
        )
        log.info("model_loaded", model=name, seconds=round(now_s - started, 3), loaded=len(self._loaded))
        self._executor.submit(_optimise, self._optimise, encoder)

    def _note_failure(self, failure: ModelUnavailableError, tell: Callable[..., object], **more: object) -> None:
        """Let the next try come after a pause."""
        pause_s = self._retry_pause_s
        self._failures[failure.name] = _Failure(failure.cause, self._clock() + pause_s)
        tell("model_load_failed", model=failure.name, cause=failure.cause, retry_after_s=pause_s, **more)

    async def _make_room(self, model: Model) -> None:
        """Claim a place and memory for *model*; idle models give way, least recently used first.

        If all are in use it waits for one, as long as anybody still wants *model*.
        """
        name, needed = model.name, self._memory_bytes(model)
        if self._memory_budget_bytes is not None and needed > self._memory_budget_bytes:
            raise ModelUnavailableError(
                name, f"it needs {needed / 1e6:.0f} MB, more than MODEL_MEMORY_BUDGET allows for all models"
            )
        patience_ends, has_stopped_one = self._clock() + PATIENCE_S, False
        try:
            while not self._fits(needed):
                if idle := self._idle():
                    await self._drop(idle[:1], reason="crowded_out")
                    continue
                if not self._leases[name]:
                    raise _AbandonedError
                if self._yielding is None and self._loaded and self._clock() >= patience_ends:
                    self._yielding, has_stopped_one = next(iter(self._loaded)), True
                await self._changed.wait()
            self._claims[name] = needed
        finally:
            if has_stopped_one:
                self._yielding = None
                self._tell()

    def _fits(self, needed_bytes: int) -> bool:
        taken = [model.memory_bytes for model in self._loaded.values()] + list(self._claims.values())
        budget = self._memory_budget_bytes
        return len(taken) < self._capacity and (budget is None or sum(taken) + needed_bytes <= budget)

    def _idle(self) -> list[str]:
        return [name for name in self._loaded if not self._leases[name]]

    async def _drop(self, names: list[str], *, reason: str) -> None:
        """Forget models and give their memory back to the system."""
        dropped = [self._loaded.pop(name) for name in names]
        for name in names:
            log.info("model_dropped", model=name, reason=reason, loaded=len(self._loaded))
        if dropped:
            self._tell()
            await asyncio.get_running_loop().run_in_executor(self._executor, _free, dropped)


def _cause_of(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return NO_MEMORY
    return f"an unexpected failure ({type(error).__name__}), which the service's log has in full"


def _without_leftovers(load: Callable[[Model], Encoder], model: Model) -> Encoder:
    """Blocking: load *model*; if that fails, the failure's traceback does not keep what was loaded so far."""
    try:
        return load(model)
    except Exception as error:
        failure: BaseException | None = error
        while failure is not None:
            traceback.clear_frames(failure.__traceback__)
            failure = failure.__cause__ or failure.__context__
        raise


def _optimise(optimise: Callable[[Encoder], None], encoder: Encoder) -> None:
    """Blocking: a model that cannot be made faster serves all the same."""
    try:
        optimise(encoder)
    except Exception as error:
        log.warning("model_not_finished", model=encoder.name, exc_info=error)


def _free(models: list[LoadedModel]) -> None:
    """Blocking: end the sessions, whose last references *models* holds, and give their memory back."""
    models.clear()
    give_memory_back()
