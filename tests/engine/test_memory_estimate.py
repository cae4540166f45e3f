from pathlib import Path

import pytest

from engine.catalog import Model
from engine.memory_estimate import (
    LEAST_PROCESS_BYTES,
    PROCESS_BYTES,
    MemoryLimit,
    MemoryNeed,
    advice,
    memory_limit,
    need_of,
    why_impossible,
)

MACHINE = 8_000_000 * 1024
V1_UNLIMITED = "9223372036854771712"


def model(megabytes: int) -> Model:
    return Model(f"a/{megabytes}", 4, 16, megabytes * 1_000_000, megabytes * 1_100_000, "", "", "hub")


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
    ("file", "content", "limit", "is_containers"),
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
    proc: Path, tmp_path: Path, *, file: str, content: str, limit: int, is_containers: bool
) -> None:
    write(tmp_path / "cgroup" / file, content)
    found = memory_limit(proc=proc, cgroup=tmp_path / "cgroup")
    assert found == MemoryLimit(limit, 1_024_000, is_containers=is_containers)


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


def test_limit_that_nobody_tells_is_unknown_and_stops_nobody(tmp_path: Path) -> None:
    limit = memory_limit(proc=tmp_path, cgroup=tmp_path)
    assert limit == MemoryLimit(None)
    need = need_of([model(10**9)], lambda _: 1)
    assert why_impossible(need, limit) is None
    assert not need.is_tight(limit)


def test_need_is_that_of_all_models_while_the_largest_is_loaded() -> None:
    need = need_of([model(100), model(300)], lambda model: 2 if model.name == "a/100" else 1)
    assert need.bytes == PROCESS_BYTES + 2 * 110_000_000 + 330_000_000 + 300_000_000
    assert need.least_bytes == LEAST_PROCESS_BYTES + 400_000_000


def test_what_cannot_be_is_told_with_both_numbers_and_what_to_do() -> None:
    need, limit = MemoryNeed(3_000_000_000, 2_000_000_000), MemoryLimit(1_000_000_000, is_containers=True)
    reason = why_impossible(need, limit) or ""
    for part in ("REQUIRED_MODELS", "2,000 MB", "1,000 MB", "its container", "fewer or smaller"):
        assert part in reason
    assert "this machine's" in (why_impossible(need, MemoryLimit(1_000_000_000)) or "")


def test_what_swap_might_hold_is_not_refused_but_tight() -> None:
    need, limit = MemoryNeed(3_000, 2_000), MemoryLimit(1_500, swap_bytes=1_000)
    assert why_impossible(need, limit) is None
    assert need.is_tight(limit)
    assert advice(need, limit)["limit_mb"] == 0


def test_what_fits_is_neither() -> None:
    need, limit = MemoryNeed(3_000, 2_000), MemoryLimit(3_000)
    assert why_impossible(need, limit) is None
    assert not need.is_tight(limit)
