"""Memory: what this process may have, what is still available, and how freed memory goes back to the system."""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from host.cores import CGROUP

PROC = Path("/proc")

M_MMAP_THRESHOLD = -3
"""The parameter's number in glibc's malloc.h."""
LARGE_BLOCK_BYTES = 1 << 20


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


def available_bytes(*, proc: Path = PROC, cgroup: Path = CGROUP) -> int | None:
    """Memory that may still be taken, of the machine's or of the container's, whichever is less; None: not told."""
    found = []
    if (of_machine := _of_meminfo(proc, "MemAvailable")) is not None:
        found.append(of_machine)
    with suppress(OSError, ValueError):  # "max" is no number: no limit is set
        limit = int((cgroup / "memory.max").read_text())
        found.append(max(0, limit - int((cgroup / "memory.current").read_text())))
    return min(found, default=None)


def return_large_blocks() -> None:
    """Make freed memory of models go back to the system at once, for the rest of the process's life.

    glibc maps blocks from M_MMAP_THRESHOLD on one by one and unmaps them when they are freed, but raises that
    threshold to the largest block freed so far, up to 32 MiB. After the first model that was dropped, the weights of
    the next ones lie in heaps that other blocks keep alive. A threshold that is set stays (see `man mallopt`).
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)


def give_memory_back() -> None:
    """Return freed memory to the system. Blocks for some milliseconds.

    glibc keeps freed memory for later; `malloc_trim` hands it over. Other C libraries have no such call.
    """
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
