"""Whether models fit into the memory that this process may have."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from engine.catalog import Model
from host.memory import MemoryLimit

PROCESS_BYTES = 135_000_000
"""What the service takes with a tiny model, as resident memory: 132 MB, see `tests/assembly/test_start_checks.py`."""
MIN_PROCESS_BYTES = 75_000_000
"""The part of it that is no file's, so that the kernel cannot take it back."""


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """What the service needs with some models.

    Attributes:
        bytes: estimated, while the largest model is loaded beside the others.
        least_bytes: no less than that, by any means: what cannot be given back, and the weights once.
    """

    bytes: int
    least_bytes: int

    def is_impossible(self, limit: MemoryLimit) -> bool:
        return limit.bytes is not None and self.least_bytes > limit.bytes + limit.swap_bytes

    def is_tight(self, limit: MemoryLimit) -> bool:
        return limit.bytes is not None and self.bytes > limit.bytes


def need_of(models: Iterable[Model], copies: Callable[[Model], int]) -> MemoryNeed:
    """What the service needs with *models*, each in so many *copies*.

    ONNX Runtime holds float32 weights twice while it reads their file, so the largest model counts once more: one of
    800 MB took 1,555 MB at most, and 780 MB after that.
    """
    models = tuple(models)
    largest = max((model.size_bytes for model in models), default=0)
    kept = sum(model.memory_bytes * copies(model) for model in models)
    return MemoryNeed(PROCESS_BYTES + kept + largest, MIN_PROCESS_BYTES + sum(model.size_bytes for model in models))


def why_impossible(need: MemoryNeed, limit: MemoryLimit) -> str | None:
    """Why the service cannot start with what it needs; None: it may."""
    if limit.bytes is None or not need.is_impossible(limit):
        return None
    whose = "the limit of its container or unit" if limit.is_containers else "all of this machine's"
    return (
        f"The models of REQUIRED_MODELS need {need.least_bytes / 1e6:,.0f} MB of memory at the very least, but the "
        f"service may have {limit.bytes / 1e6:,.0f} MB ({whose}). Require fewer or smaller models, or give it more."
    )


def advice(need: MemoryNeed, limit: MemoryLimit) -> dict[str, object]:
    """What to tell of a start that may end by the kernel's hand (exit code 137)."""
    return {
        "needed_mb": round(need.bytes / 1e6),
        "limit_mb": round((limit.bytes or 0) / 1e6),
        "is_containers": limit.is_containers,
        "advice": "the kernel may end the process (exit code 137): raise the limit, or set LONE_TEXT_MEMORY=0, a "
        "MODEL_MEMORY_BUDGET, or fewer REQUIRED_MODELS",
    }
