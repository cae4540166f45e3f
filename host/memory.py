"""How much memory this process may use, how much is available, and how freed memory goes back to the kernel."""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from host.cgroups import CGROUP, PROC, folders_v1, folders_v2

M_MMAP_THRESHOLD = -3
"""Number of this mallopt parameter in glibc's malloc.h."""
LARGE_BLOCK_BYTES = 1 << 20
"""Blocks from this size on are mapped one by one. A model's weights are larger; most other blocks are smaller."""

PRIVATE = ("Private_Clean:", "Private_Dirty:", "Swap:")
"""Entries of smaps_rollup that add up to the memory of one process alone."""


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """How much memory the process may use.

    Attributes:
        bytes: None: unknown on this system.
        swap_bytes: size of the machine's swap.
        is_from_cgroup: the limit comes from the cgroup of a container or systemd unit, not from the machine's memory.
    """

    bytes: int | None
    swap_bytes: int = 0
    is_from_cgroup: bool = False


def memory_limit(*, proc: Path = PROC, cgroup: Path = CGROUP) -> MemoryLimit:
    """Return the lowest of the machine's memory and the limits of the process's cgroups, v1 or v2."""
    total = _meminfo(proc, "MemTotal")
    limit = min(_limits(proc, cgroup), default=None)
    swap = _meminfo(proc, "SwapTotal") or 0
    if limit is None or (total is not None and total <= limit):
        return MemoryLimit(total, swap)
    return MemoryLimit(limit, swap, is_from_cgroup=True)


def _limits(proc: Path, cgroup: Path) -> Iterator[int]:
    """Yield the limits of the process's cgroups and all their parents."""
    yield from (limit for limit, _ in _limits_and_usages(proc, cgroup))


def _limits_and_usages(proc: Path, cgroup: Path) -> Iterator[tuple[int, Path]]:
    """Yield each limit of the process's cgroups and their parents, and the file that states what is used of it."""
    v2 = ((folder, "memory.max", "memory.current") for folder in folders_v2(proc=proc, cgroup=cgroup))
    v1 = (
        (folder, "memory.limit_in_bytes", "memory.usage_in_bytes")
        for folder in folders_v1("memory", proc=proc, cgroup=cgroup)
    )
    for folder, limit, usage in (*v2, *v1):
        with suppress(OSError, ValueError):  # "max" instead of a number means no limit
            yield int((folder / limit).read_text()), folder / usage


def _meminfo(proc: Path, name: str) -> int | None:
    """Return one entry of /proc/meminfo in bytes; None if it cannot be read."""
    with suppress(OSError, ValueError, IndexError):
        [line] = [line for line in (proc / "meminfo").read_text().splitlines() if line.startswith(f"{name}:")]
        return 1024 * int(line.split()[1])
    return None


def private_bytes(*, proc: Path = PROC) -> int | None:
    """Return the memory that belongs to this process alone, what is swapped out included; None: unknown.

    It contains the pages of mapped files that no other process maps. Takes milliseconds: the kernel counts pages.
    """
    with suppress(OSError, ValueError, IndexError):
        lines = (proc / "self" / "smaps_rollup").read_text().splitlines()
        found = [1024 * int(line.split()[1]) for line in lines if line.startswith(PRIVATE)]
        return sum(found) if found else None
    return None


def available_bytes(*, proc: Path = PROC, cgroup: Path = CGROUP) -> int | None:
    """Return the memory that is still available, to the machine or the container, whichever is less; None: unknown.

    Pages of files that were read and are not in use, as after a download, are available: the kernel takes them back.
    """
    found = []
    if (of_machine := _meminfo(proc, "MemAvailable")) is not None:
        found.append(of_machine)
    for limit, usage in _limits_and_usages(proc, cgroup):
        with suppress(OSError, ValueError):
            found.append(max(0, limit - max(0, int(usage.read_text()) - _unused_files(usage.parent))))
    return min(found, default=None)


def _unused_files(folder: Path) -> int:
    """Return the bytes of files that a cgroup, with those below it, holds in memory and does not use."""
    with suppress(OSError, ValueError, KeyError):
        stated = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return int(stated.get("total_inactive_file") or stated["inactive_file"])  # the first: version 1, with children
    return 0


def fix_mmap_threshold() -> None:
    """Make the memory of freed models go back to the kernel at once, for the rest of the process's life.

    glibc maps blocks from M_MMAP_THRESHOLD on one by one and unmaps them when they are freed. By default, it raises
    the threshold to the largest block freed so far, up to 32 MiB. After the first evicted model, the weights of the
    next ones would be in heaps that other blocks keep alive. A threshold set explicitly stays (see `man mallopt`).
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)


def trim_memory() -> None:
    """Return freed memory to the kernel. Blocks for some milliseconds.

    glibc keeps freed memory for later use; `malloc_trim` returns it. Other C libraries have no such function.
    """
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
