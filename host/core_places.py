"""Which cores each of several processes gets: cores that share a cache stay together, if the kernel reports them."""

import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from host.cgroups import CGROUP, PROC
from host.cores import is_quota_tight

SYS_CPU = Path("/sys/devices/system/cpu")


@dataclass(frozen=True, slots=True)
class CoreTopology:
    """The cores that share things with one core.

    Attributes:
        siblings: hyper-threads of the same physical core, it included.
        cache: cores that share its last-level cache.
        node: the number of its NUMA node.
    """

    siblings: frozenset[int]
    cache: frozenset[int]
    node: int


def read_topology(cores: Collection[int], *, cpus: Path = SYS_CPU) -> Mapping[int, CoreTopology]:
    """Return what the kernel says about *cores*. What it does not say counts as shared by all."""
    everything = frozenset(cores)
    return {
        core: CoreTopology(
            siblings=_cpu_list(cpus / f"cpu{core}/topology/thread_siblings_list") or frozenset({core}),
            cache=_last_level_cache(cpus / f"cpu{core}/cache") or everything,
            node=_node(cpus / f"cpu{core}"),
        )
        for core in cores
    }


def place_processes(count: int, topology: Mapping[int, CoreTopology]) -> list[frozenset[int] | None]:
    """Return for each of *count* processes the cores that it should be restricted to; None: it should not be.

    Each process has a share of its own: shares are cut from the cores in the order of NUMA nodes, caches and physical
    cores. It may use all cores around its share that are as near to its memory: those of the same cache, or else of
    the same nodes. Restricting it to its share alone would let cores idle while a neighbour has more work; without any
    restriction, its threads would move away from their caches and memory. On a machine with one cache and one node,
    there is nothing to win.
    """
    order = sorted(
        topology,
        key=lambda core: (topology[core].node, min(topology[core].cache), min(topology[core].siblings), core),
    )
    places: list[frozenset[int] | None] = []
    begin = 0
    for number in range(1, count + 1):
        end = begin + share_of(len(order), number, count)
        place = _surroundings(order[begin:end] or order, topology)
        places.append(place if place != frozenset(order) else None)
        begin = end
    return places


def share_of(total: int, number: int, count: int) -> int:
    """Return the share of process *number* (from 1) of *count* in *total* things; shares differ by at most one."""
    return total // count + (number <= total % count)


def usable_places(
    count: int, *, cpus: Path = SYS_CPU, proc: Path = PROC, cgroup: Path = CGROUP
) -> list[frozenset[int] | None]:
    """Return the places of *count* processes on the cores of this one.

    A CPU quota below the number of cores is time, not cores: then the kernel must be free to choose idle cores.
    """
    if not hasattr(os, "sched_getaffinity") or is_quota_tight(proc=proc, cgroup=cgroup):
        return [None] * count
    return place_processes(count, read_topology(os.sched_getaffinity(0), cpus=cpus))


def restrict_process(cores: frozenset[int] | None) -> None:
    """Restrict this process, and the threads that it starts from now on, to *cores*; None: do nothing."""
    if cores is not None and hasattr(os, "sched_setaffinity"):
        with suppress(OSError):  # a cpuset has changed meanwhile; the kernel then chooses
            os.sched_setaffinity(0, cores)


def format_cores(cores: Collection[int]) -> str:
    """Return *cores* as the kernel and `taskset` write them, such as `0-3,8`."""
    runs: list[list[int]] = []
    for core in sorted(cores):
        if runs and core == runs[-1][-1] + 1:
            runs[-1].append(core)
        else:
            runs.append([core])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _surroundings(share: Collection[int], topology: Mapping[int, CoreTopology]) -> frozenset[int]:
    caches = {topology[core].cache for core in share}
    if len(caches) == 1:
        return caches.pop() & topology.keys()
    nodes = {topology[core].node for core in share}
    return frozenset(core for core, place in topology.items() if place.node in nodes)


def _last_level_cache(folder: Path) -> frozenset[int]:
    """Return the cores that share the cache of the highest level."""
    with suppress(OSError):
        indexes = sorted(folder.glob("index[0-9]*"), key=lambda index: int(index.name[5:]))
        if indexes:
            return _cpu_list(indexes[-1] / "shared_cpu_list")
    return frozenset()


def _node(folder: Path) -> int:
    with suppress(OSError):
        for link in folder.glob("node[0-9]*"):
            return int(link.name[4:])
    return 0


def _cpu_list(path: Path) -> frozenset[int]:
    """Read a list such as `0-3,8`; empty: unknown."""
    with suppress(OSError, ValueError):
        return frozenset(_parsed(path.read_text()))
    return frozenset()


def _parsed(text: str) -> Iterator[int]:
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
        yield from range(int(first), int(last or first) + 1)
