"""Cores of several processes: hyper-threads, caches and NUMA nodes stay together, as the kernel shows them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from host.core_places import format_cores, place_processes, read_topology, share_of, usable_places
from tests.support.servers import ROOT


def write_machine(folder: Path, *, nodes: int, caches_per_node: int, cores_per_cache: int, threads: int = 1) -> Path:
    """Write what the kernel shows of a machine; as most do, it counts second threads after all first ones."""
    physical = nodes * caches_per_node * cores_per_cache
    for core in range(physical * threads):
        first = core % physical
        in_cache = first // cores_per_cache
        siblings = [first + physical * thread for thread in range(threads)]
        sharing = [one for one in range(physical * threads) if one % physical // cores_per_cache == in_cache]
        cpu = folder / f"cpu{core}"
        for level in (0, 3):
            (cpu / f"cache/index{level}").mkdir(parents=True)
        (cpu / "cache/index0/shared_cpu_list").write_text(format_cores(siblings))
        (cpu / "cache/index3/shared_cpu_list").write_text(format_cores(sharing))
        (cpu / "topology").mkdir()
        (cpu / "topology/thread_siblings_list").write_text(f"{format_cores(siblings)}\n")
        (cpu / f"node{in_cache // caches_per_node}").mkdir()
    return folder


def places(folder: Path, count: int, cores: range) -> list[str | None]:
    found = place_processes(count, read_topology(cores, cpus=folder))
    return [None if place is None else format_cores(place) for place in found]


def test_one_cache_restricts_nobody(tmp_path: Path) -> None:
    write_machine(tmp_path, nodes=1, caches_per_node=1, cores_per_cache=4)
    assert places(tmp_path, 2, range(4)) == [None, None]


def test_process_whose_share_is_within_a_cache_may_use_the_cores_of_that_cache(tmp_path: Path) -> None:
    write_machine(tmp_path, nodes=1, caches_per_node=2, cores_per_cache=8)
    assert places(tmp_path, 2, range(16)) == ["0-7", "8-15"]
    assert places(tmp_path, 4, range(16)) == ["0-7", "0-7", "8-15", "8-15"]


def test_process_whose_share_exceeds_a_cache_may_use_its_nodes(tmp_path: Path) -> None:
    write_machine(tmp_path, nodes=2, caches_per_node=2, cores_per_cache=4)
    assert places(tmp_path, 2, range(16)) == ["0-7", "8-15"]


def test_hyper_threads_of_a_core_stay_together(tmp_path: Path) -> None:
    write_machine(tmp_path, nodes=2, caches_per_node=1, cores_per_cache=4, threads=2)
    assert places(tmp_path, 2, range(16)) == ["0-3,8-11", "4-7,12-15"]


def test_share_across_two_nodes_may_use_both(tmp_path: Path) -> None:
    write_machine(tmp_path, nodes=2, caches_per_node=1, cores_per_cache=4)
    assert places(tmp_path, 3, range(8)) == ["0-3", None, "4-7"]


def test_only_usable_cores_are_used(tmp_path: Path) -> None:
    write_machine(tmp_path, nodes=2, caches_per_node=1, cores_per_cache=4)
    assert places(tmp_path, 2, range(2, 6)) == ["2-3", "4-5"]


def test_machine_that_shows_nothing_restricts_nobody(tmp_path: Path) -> None:
    assert places(tmp_path, 2, range(4)) == [None, None]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux has an affinity per process")
def test_quota_below_the_cores_restricts_nobody(tmp_path: Path) -> None:
    cores = os.sched_getaffinity(0)
    for core in cores:  # each with a cache of its own
        (tmp_path / f"cpu{core}/cache/index0").mkdir(parents=True)
        (tmp_path / f"cpu{core}/cache/index0/shared_cpu_list").write_text(str(core))
    free = [frozenset({core}) if len(cores) > 1 else None for core in sorted(cores)]
    nowhere = tmp_path / "none"
    assert usable_places(len(cores), cpus=tmp_path, proc=nowhere, cgroup=nowhere) == free
    (tmp_path / "cpu.max").write_text("50000 100000")
    assert usable_places(len(cores), cpus=tmp_path, proc=nowhere, cgroup=tmp_path) == [None] * len(cores)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux has an affinity per process")
def test_restriction_holds_for_threads_that_start_later() -> None:
    core = min(os.sched_getaffinity(0))
    code = (
        "import os, threading; from host.core_places import restrict_process;"
        f"restrict_process(None); restrict_process(frozenset({{{core}}}));"
        "thread = threading.Thread(target=lambda: print(os.sched_getaffinity(0))); thread.start(); thread.join()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout == f"{{{core}}}\n"


@pytest.mark.parametrize(("total", "count", "shares"), [(8, 2, [4, 4]), (7, 3, [3, 2, 2]), (2, 3, [1, 1, 0])])
def test_shares_differ_by_at_most_one_and_add_up(total: int, count: int, shares: list[int]) -> None:
    assert [share_of(total, number, count) for number in range(1, count + 1)] == shares


@pytest.mark.parametrize(("cores", "text"), [((0,), "0"), ((3, 1, 2, 0, 8), "0-3,8"), ((), "")])
def test_cores_are_written_as_the_kernel_does(cores: tuple[int, ...], text: str) -> None:
    assert format_cores(cores) == text
