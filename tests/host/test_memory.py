import gc
import weakref
from pathlib import Path

import pytest

from host.memory import MemoryLimit, available_bytes, memory_limit, trim_memory

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
        pytest.param("memory.max", "max", MACHINE, False, id="v2-unlimited"),
        pytest.param("memory/memory.limit_in_bytes", "500000000", 500_000_000, True, id="v1"),
        pytest.param("memory/memory.limit_in_bytes", V1_UNLIMITED, MACHINE, False, id="v1-unlimited"),
        pytest.param("memory.max", "", MACHINE, False, id="nothing"),
        pytest.param("cpu.max", "max 100000", MACHINE, False, id="no-memory-controller"),
    ],
)
def test_limit_is_the_containers_or_the_machines(
    proc: Path, tmp_path: Path, *, file: str, content: str, limit: int, is_from_cgroup: bool
) -> None:
    write(tmp_path / "cgroup" / file, content)
    found = memory_limit(proc=proc, cgroup=tmp_path / "cgroup")
    assert found == MemoryLimit(limit, 1_024_000, is_from_cgroup=is_from_cgroup)


def test_least_limit_on_the_way_up_counts(proc: Path, tmp_path: Path) -> None:
    """A unit of systemd sees the whole tree, and its own place in it."""
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


def test_limit_is_unknown_where_the_system_does_not_report_one(tmp_path: Path) -> None:
    assert memory_limit(proc=tmp_path, cgroup=tmp_path) == MemoryLimit(None)


def used_cgroup(parent: Path, limit: str, current: str = "1000") -> Path:
    (parent / "memory.max").write_text(f"{limit}\n")
    (parent / "memory.current").write_text(f"{current}\n")
    return parent


@pytest.mark.parametrize(
    ("limit", "expected"), [("max", 5120), ("3000", 2000), ("100000", 5120), ("500", 0), ("", 5120)]
)
def test_memory_is_what_machine_and_container_leave(limit: str, expected: int, tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  9 kB\nMemAvailable:      5 kB\nBuffers:  1 kB\n")
    assert available_bytes(proc=tmp_path, cgroup=used_cgroup(tmp_path, limit)) == expected


@pytest.mark.parametrize("content", ["", "MemAvailable:\n", "MemAvailable: many kB\n"])
def test_memory_that_nobody_tells_is_unknown(content: str, tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(content)
    assert available_bytes(proc=tmp_path, cgroup=tmp_path) is None
    assert available_bytes(proc=tmp_path / "nowhere", cgroup=tmp_path) is None


def test_memory_is_given_back_as_often_as_asked() -> None:
    trim_memory()
    trim_memory()


class Ring:
    """Holds itself, so that only the garbage collector ends it."""

    def __init__(self) -> None:
        self.me = self


def test_rings_are_collected_before_memory_is_given_back() -> None:
    gc.disable()
    try:
        ring = weakref.ref(Ring())
        assert ring() is not None
        trim_memory()
        assert ring() is None
    finally:
        gc.enable()
