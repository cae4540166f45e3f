"""Estimates whether the required models fit into the memory that this process may use."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from engine.catalog import Model
from host.memory import MemoryLimit

PROCESS_BYTES = 116_000_000
"""Resident memory of the service with a tiny model: 116 MB, measured by `tests/assembly/test_start_checks.py`."""
MIN_PROCESS_BYTES = 65_000_000
"""The part of PROCESS_BYTES that no file backs, so the kernel cannot reclaim it."""
SHARED_PROCESS_BYTES = PROCESS_BYTES - MIN_PROCESS_BYTES
"""The part of PROCESS_BYTES that is in memory once for all worker processes: the files of the libraries."""
SUPERVISOR_BYTES = 46_000_000
"""Resident memory of the supervisor of workers: 46 MB, measured on Linux with Python 3.11."""


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """The memory that the service needs with some models.

    Attributes:
        bytes: estimated peak, while the largest model is loaded beside the others.
        min_bytes: lower bound: what the kernel cannot reclaim, and each model's weights once.
    """

    bytes: int
    min_bytes: int

    def is_impossible(self, limit: MemoryLimit) -> bool:
        """Whether even the lower bound exceeds memory and swap together."""
        return limit.bytes is not None and self.min_bytes > limit.bytes + limit.swap_bytes

    def is_tight(self, limit: MemoryLimit) -> bool:
        """Whether the peak may exceed the memory."""
        return limit.bytes is not None and self.bytes > limit.bytes


def estimate_memory(
    models: Iterable[Model], sessions_of: Callable[[Model], int], *, cache_bytes: int = 0
) -> MemoryNeed:
    """Estimate the memory of the service with *models*.

    ONNX Runtime holds float32 weights twice while it reads their file, so the largest model counts once more: loading
    one of 800 MB took up to 1,555 MB, and 780 MB afterwards.

    Args:
        models: the models in memory.
        sessions_of: returns how many sessions a model has; each holds the model's weights.
        cache_bytes: memory of cached results. They are part of the peak only: there are none at the start.
    """
    models = tuple(models)
    largest = max((model.size_bytes for model in models), default=0)
    loaded = sum(model.memory_bytes * sessions_of(model) for model in models)
    need = PROCESS_BYTES + loaded + largest + cache_bytes
    return MemoryNeed(need, MIN_PROCESS_BYTES + sum(model.size_bytes for model in models))


def memory_of_workers(needs: Sequence[MemoryNeed]) -> MemoryNeed:
    """Return what worker processes with these *needs* and their supervisor need together; one process has none.

    The lower bound has the weights once: workers share those of an optimised copy.
    """
    if len(needs) == 1:
        return needs[0]
    weights = max(need.min_bytes for need in needs) - MIN_PROCESS_BYTES
    return MemoryNeed(
        SUPERVISOR_BYTES + SHARED_PROCESS_BYTES + sum(need.bytes - SHARED_PROCESS_BYTES for need in needs),
        SUPERVISOR_BYTES + len(needs) * MIN_PROCESS_BYTES + weights,
    )


def why_impossible(need: MemoryNeed, limit: MemoryLimit) -> str | None:
    """Return why the service cannot start with this need, or None if it can."""
    if limit.bytes is None or not need.is_impossible(limit):
        return None
    source = "the limit of its container or systemd unit" if limit.is_from_cgroup else "all memory of this machine"
    return (
        f"The models of REQUIRED_MODELS need at least {need.min_bytes / 1e6:,.0f} MB of memory, but the service may "
        f"use only {limit.bytes / 1e6:,.0f} MB ({source}). Require fewer or smaller models, or raise the limit."
    )


def tight_memory_fields(need: MemoryNeed, limit: MemoryLimit) -> dict[str, object]:
    """Return the log fields for a start during which the kernel may kill the process (exit code 137)."""
    return {
        "needed_mb": round(need.bytes / 1e6),
        "limit_mb": round((limit.bytes or 0) / 1e6),
        "is_containers": limit.is_from_cgroup,
        "advice": "the kernel may kill the process (exit code 137): raise the limit, or set LONE_TEXT_MEMORY=0, a "
        "MODEL_MEMORY_BUDGET, a smaller RESULT_CACHE_MB, or fewer REQUIRED_MODELS",
    }
