"""What memory this process may have, and whether models fit into it."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from engine.catalog import Model
from host.cores import CGROUP

PROC = Path("/proc")
PROCESS_BYTES = 135_000_000
"""What the service takes with a tiny model, as resident memory: 132 MB, see `tests/assembly/test_start_checks.py`."""
LEAST_PROCESS_BYTES = 75_000_000
"""The part of it that is no file's, so that the kernel cannot take it back."""


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """What the process may have.

    Attributes:
        bytes: None: nobody tells.
        swap_bytes: what the machine could put elsewhere, for whoever may use it.
        is_containers: a cgroup sets it, of a container or a unit; else it is the machine's memory.
    """

    bytes: int | None
    swap_bytes: int = 0
    is_containers: bool = False


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
    return MemoryNeed(PROCESS_BYTES + kept + largest, LEAST_PROCESS_BYTES + sum(model.size_bytes for model in models))


def memory_limit(*, proc: Path = PROC, cgroup: Path = CGROUP) -> MemoryLimit:
    """The least of the machine's memory and the limits of the process's cgroups, v1 or v2."""
    total = _of_meminfo(proc, "MemTotal")
    limit = min(_limits(proc, cgroup), default=None)
    swap = _of_meminfo(proc, "SwapTotal") or 0
    if limit is None or (total is not None and total <= limit):
        return MemoryLimit(total, swap)
    return MemoryLimit(limit, swap, is_containers=True)


def _limits(proc: Path, cgroup: Path) -> Iterator[int]:
    """Those of the own cgroup and all above it; in a container its own is the root of what it sees."""
    own = [""]
    with suppress(OSError):
        own += [line.split(":", 2)[-1] for line in (proc / "self/cgroup").read_text().splitlines()]
    for root, name in ((cgroup, "memory.max"), (cgroup / "memory", "memory.limit_in_bytes")):
        for path in own:
            place = root / path.strip("/")
            for folder in (place, *place.parents):
                if not folder.is_relative_to(root):
                    break
                with suppress(OSError, ValueError):  # "max" is no number: no limit is set
                    yield int((folder / name).read_text())


def _of_meminfo(proc: Path, name: str) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        [line] = [line for line in (proc / "meminfo").read_text().splitlines() if line.startswith(f"{name}:")]
        return 1024 * int(line.split()[1])
    return None


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
