"""Memory: the limit, what is available, and what goes back to the kernel."""

import gc
import weakref
from pathlib import Path

import pytest

from host.memory import MemoryLimit, available_bytes, memory_limit, private_bytes, trim_memory

MACHINE = 8_000_000 * 1024
V1_UNLIMITED = "9223372036854771712"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    folder = tmp_path / "proc"
    (folder / "self").mkdir(parents=True)
    (folder / "meminfo").write_text("MemTotal:  8000000 kB\nMemFree: 1 kB\nSwapTotal:  1000 kB\n")
    (folder / "self/cgroup").write_text("0::/\n")
    return folder


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{content}\n")


@pytest.mark.parametrize(
    ("file", "content", "limit", "is_from_cgroup"),
    [
        pytest.param("memory.max", "500000000", 500_000_000, True, id="v2"),
        pytest.param("memory.max", "max", MACHINE, False, id="v2, unlimited"),
        pytest.param("memory/memory.limit_in_bytes", "500000000", 500_000_000, True, id="v1"),
        pytest.param("memory/memory.limit_in_bytes", V1_UNLIMITED, MACHINE, False, id="v1, unlimited"),
        pytest.param("memory.max", "", MACHINE, False, id="empty file"),
        pytest.param("cpu.max", "max 100000", MACHINE, False, id="no memory controller"),
    ],
)
def test_limit_is_the_lower_one_of_container_and_machine(
    proc: Path, tmp_path: Path, *, file: str, content: str, limit: int, is_from_cgroup: bool
) -> None:
    write(tmp_path / "cgroup" / file, content)
    found = memory_limit(proc=proc, cgroup=tmp_path / "cgroup")
    assert found == MemoryLimit(limit, 1_024_000, is_from_cgroup=is_from_cgroup)


def test_lowest_limit_of_a_cgroup_and_its_parents_counts(proc: Path, tmp_path: Path) -> None:
    """A systemd unit sees the whole cgroup tree, and its own path in it."""
    write(proc / "self/cgroup", "0::/system.slice/embedding.service")
    cgroup = tmp_path / "cgroup"
    write(cgroup / "system.slice/embedding.service/memory.max", "700000000")
    write(cgroup / "system.slice/memory.max", "600000000")
    assert memory_limit(proc=proc, cgroup=cgroup).bytes == 600_000_000


def test_limits_of_other_cgroups_do_not_count(proc: Path, tmp_path: Path) -> None:
    write(proc / "self/cgroup", "0::/mine")
    write(tmp_path / "cgroup/other/memory.max", "1000")
    write(tmp_path / "memory.max", "1000")
    assert memory_limit(proc=proc, cgroup=tmp_path / "cgroup").bytes == MACHINE


def test_limit_is_unknown_if_the_system_does_not_report_it(tmp_path: Path) -> None:
    assert memory_limit(proc=tmp_path, cgroup=tmp_path) == MemoryLimit(None)


def test_available_memory_is_the_lower_one_of_container_and_machine(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  9 kB\nMemAvailable:      5 kB\nBuffers:  1 kB\n")
    (tmp_path / "memory.current").write_text("1000\n")
    expected = {"max": 5120, "3000": 2000, "100000": 5120, "500": 0, "": 5120}
    found = {}
    for limit in expected:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        found[limit] = available_bytes(proc=tmp_path, cgroup=tmp_path)
    assert found == expected


@pytest.mark.parametrize(
    ("own", "limit", "usage"),
    [
        pytest.param("0::/a/b", "a/memory.max", "a/memory.current", id="v2"),
        pytest.param("4:memory:/a/b", "memory/a/memory.limit_in_bytes", "memory/a/memory.usage_in_bytes", id="v1"),
    ],
)
def test_available_memory_follows_the_limit_of_a_parent(
    own: str, limit: str, usage: str, proc: Path, tmp_path: Path
) -> None:
    (proc / "meminfo").write_text("MemAvailable:      5 kB\n")
    write(proc / "self/cgroup", own)
    write(tmp_path / limit, "3000")
    write(tmp_path / usage, "1000")
    assert available_bytes(proc=proc, cgroup=tmp_path) == 2000


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        pytest.param("anon 500\ninactive_file 300\nactive_file 200\n", 2300, id="v2"),
        pytest.param("inactive_file 1\ntotal_inactive_file 300\n", 2300, id="v1: with those of children"),
        pytest.param("inactive_file 5000\n", 3000, id="more than is used"),
        pytest.param("anon 500\n", 2000, id="not stated"),
        pytest.param("inactive_file\n", 2000, id="no number"),
    ],
)
def test_memory_with_files_that_nobody_uses_is_available(stated: str, expected: int, tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemAvailable:      5 kB\n")
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.stat").write_text(stated)
    assert available_bytes(proc=tmp_path, cgroup=tmp_path) == expected


def test_available_memory_is_unknown_if_the_system_does_not_report_it(tmp_path: Path) -> None:
    for content in ("", "MemAvailable:\n", "MemAvailable: many kB\n"):
        (tmp_path / "meminfo").write_text(content)
        assert available_bytes(proc=tmp_path, cgroup=tmp_path) is None
    assert available_bytes(proc=tmp_path / "nowhere", cgroup=tmp_path) is None


def test_private_memory_is_that_of_this_process_alone(tmp_path: Path) -> None:
    lines = ["Rss: 900 kB", "Shared_Clean: 100 kB", "Private_Clean: 10 kB", "Private_Dirty: 5 kB", "Swap: 2 kB"]
    write(tmp_path / "self/smaps_rollup", "\n".join(lines))
    assert private_bytes(proc=tmp_path) == 17 * 1024


def test_private_memory_is_unknown_if_the_system_does_not_report_it(tmp_path: Path) -> None:
    assert private_bytes(proc=tmp_path) is None
    for content in ("", "Private_Dirty:", "Private_Dirty: many kB"):
        write(tmp_path / "self/smaps_rollup", content)
        assert private_bytes(proc=tmp_path) is None


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="private memory is read from /proc")
def test_private_memory_grows_with_what_is_allocated() -> None:
    before = private_bytes() or 0
    block = bytearray(b"x") * 50_000_000
    assert 45_000_000 < (private_bytes() or 0) - before < 60_000_000
    assert block


class Cycle:
    """Refers to itself, so only the garbage collector frees it."""

    def __init__(self) -> None:
        self.me = self


def test_trimming_collects_reference_cycles_first() -> None:
    gc.disable()
    try:
        cycle = weakref.ref(Cycle())
        assert cycle() is not None
        trim_memory()
        assert cycle() is None
        trim_memory()
    finally:
        gc.enable()
