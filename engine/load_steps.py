"""Blocking steps of loading and evicting a model; the causes of failed loads, and the pauses after them."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from engine.catalog import Model
from engine.encoder import Encoder
from engine.errors import NO_MEMORY, ModelUnavailableError
from engine.load_counters import LoadCounters
from engine.model_places import LoadedModel
from host.memory import trim_memory

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Failure:
    cause: str
    retry_at_s: float


class LoadFailures:
    """The models whose last load failed: it is not repeated before a pause ends.

    Attributes:
        pause_s: length of the pause.
    """

    def __init__(self, *, pause_s: float, counters: LoadCounters, clock: Callable[[], float]) -> None:
        self.pause_s = pause_s
        self._counters = counters
        self._clock = clock
        self._failures: dict[str, _Failure] = {}

    def check(self, name: str) -> None:
        """Refuse to load a model that has just failed.

        Raises:
            ModelUnavailableError: its pause has not ended.
        """
        if (failure := self._failures.get(name)) and (pause_s := failure.retry_at_s - self._clock()) > 0:
            raise ModelUnavailableError(name, failure.cause, retry_after_s=pause_s)

    def record(self, failure: ModelUnavailableError, write: Callable[..., object], **fields: object) -> None:
        """Count a failed load, log it with *write*, and delay the next attempt."""
        self._counters.count_failure(failure.name)
        self._failures[failure.name] = _Failure(failure.cause, self._clock() + self.pause_s)
        write("model_load_failed", model=failure.name, cause=failure.cause, retry_after_s=self.pause_s, **fields)

    def forget(self, name: str) -> None:
        self._failures.pop(name, None)


def cause_of(error: Exception) -> str:
    """Return the cause of a load that failed unexpectedly, for callers."""
    if isinstance(error, MemoryError):
        return NO_MEMORY
    return f"an unexpected failure ({type(error).__name__}), which the service's log contains in full"


def load_or_free(load: Callable[[Model], Encoder], model: Model) -> Encoder:
    """Load *model*; blocks. If that fails, keep the traceback from holding what was loaded so far."""
    try:
        return load(model)
    except Exception as error:
        failure: BaseException | None = error
        while failure is not None:
            traceback.clear_frames(failure.__traceback__)
            failure = failure.__cause__ or failure.__context__
        raise


def optimise_or_log(optimise: Callable[[Encoder], None], encoder: Encoder) -> None:
    """Run *optimise*; blocks. If it fails, the model still serves."""
    try:
        optimise(encoder)
    except Exception as error:
        log.warning("model_not_optimised", model=encoder.name, exc_info=error)


def free(models: list[LoadedModel]) -> None:
    """Drop the last references to the models, which *models* holds, and return their memory; blocks."""
    models.clear()
    trim_memory()
