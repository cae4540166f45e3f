from pathlib import Path

import pytest

from cli.surroundings import available_bytes, free_disk_bytes


def cgroup(parent: Path, limit: str, current: str = "1000") -> Path:
    (parent / "memory.max").write_text(f"{limit}\n")
    (parent / "memory.current").write_text(f"{current}\n")
    return parent


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:  9 kB\nMemAvailable:      5 kB\nBuffers:  1 kB\n")
    return file


@pytest.mark.parametrize(
    ("limit", "expected"), [("max", 5120), ("3000", 2000), ("100000", 5120), ("500", 0), ("", 5120)]
)
def test_memory_is_what_machine_and_container_leave(limit: str, expected: int, meminfo: Path, tmp_path: Path) -> None:
    assert available_bytes(meminfo=meminfo, cgroup=cgroup(tmp_path, limit)) == expected


@pytest.mark.parametrize("content", ["", "MemAvailable:\n", "MemAvailable: many kB\n"])
def test_memory_that_nobody_tells_is_unknown(content: str, tmp_path: Path) -> None:
    file = tmp_path / "meminfo"
    file.write_text(content)
    assert available_bytes(meminfo=file, cgroup=tmp_path) is None
    assert available_bytes(meminfo=tmp_path / "nowhere", cgroup=tmp_path) is None


def test_free_space_is_that_of_where_a_folder_would_be(tmp_path: Path) -> None:
    assert free_disk_bytes(tmp_path / "a" / "b")
