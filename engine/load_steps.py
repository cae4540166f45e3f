"""Blocking steps of loading and evicting a model, and the causes of failed loads."""

import traceback
from collections.abc import Callable

import structlog

from engine.catalog import Model
from engine.encoder import Encoder
from engine.errors import NO_MEMORY
from engine.model_places import LoadedModel
from host.memory import trim_memory

log = structlog.get_logger()


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
