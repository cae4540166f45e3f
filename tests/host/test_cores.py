"""Usable cores from affinity and cgroup quota, and the priority of threads."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from host.cores import is_quota_tight, usable_cores
from tests.support.servers import ROOT

pytestmark = pytest.mark.timeout(60)  # it starts processes, on a machine that may be busy

linux_only = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux has an affinity per process")


def affinity() -> int:
    return len(os.sched_getaffinity(0))


def run(code: str) -> str:
    """Return what *code* prints in a separate process: affinity and niceness cannot be reset."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def cores_with_v2(folder: Path, content: str) -> int:
    (folder / "cpu.max").write_text(content)
    return usable_cores(proc=folder / "none", cgroup=folder)


def cores_with_v1(folder: Path, quota: str, period: str) -> int:
    (folder / "cpu").mkdir(exist_ok=True)
    (folder / "cpu/cpu.cfs_quota_us").write_text(quota)
    (folder / "cpu/cpu.cfs_period_us").write_text(period)
    return usable_cores(proc=folder / "none", cgroup=folder)


def test_quota_of_cgroup_v2_is_rounded_down_to_at_least_one_core(tmp_path: Path) -> None:
    quotas = ("100000 100000\n", "150000 100000\n", "199999 100000\n", "20000 100000\n", "1000 1000000\n")
    assert [cores_with_v2(tmp_path, quota) for quota in quotas] == [1] * len(quotas)


def test_quota_of_cgroup_v1_is_rounded_down_to_at_least_one_core(tmp_path: Path) -> None:
    quotas = (("100000\n", "100000\n"), ("150000", "100000"), ("5000", "100000"))
    assert [cores_with_v1(tmp_path, *quota) for quota in quotas] == [1] * len(quotas)


@linux_only
def test_without_a_lower_quota_the_affinity_counts(tmp_path: Path) -> None:
    for quota in ("max 100000\n", "100000000 100000\n", "", "max", "many few\n"):
        assert cores_with_v2(tmp_path, quota) == affinity(), quota
    (tmp_path / "cpu.max").unlink()
    for quota, period in (("-1\n", "100000\n"), ("0", "100000"), ("x", "y"), ("10000000", "1000")):
        assert cores_with_v1(tmp_path, quota, period) == affinity(), quota
    assert usable_cores(cgroup=tmp_path / "nowhere") == affinity()


@linux_only
def test_quota_of_v2_counts_before_one_of_v1(tmp_path: Path) -> None:
    cores_with_v1(tmp_path, "100000", "100000")
    assert cores_with_v2(tmp_path, "max 100000\n") == affinity()


@linux_only
def test_process_with_an_affinity_to_one_core_has_one() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
    assert run(f"{code}\nfrom host.cores import usable_cores\nprint(usable_cores())") == "1\n"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    folder = tmp_path / "proc"
    (folder / "self").mkdir(parents=True)
    return folder


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


UNLIMITED, ONE_CORE = "max 100000\n", "100000 100000\n"


@linux_only
@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        pytest.param("0::/a/b\n", {"a/b/cpu.max": ONE_CORE}, 1, id="v2, own quota"),
        pytest.param("0::/a/b\n", {"a/b/cpu.max": UNLIMITED, "a/cpu.max": ONE_CORE}, 1, id="v2, quota of a parent"),
        pytest.param(
            "0::/a/b\n", {"a/b/cpu.max": "9000000 100000\n", "a/cpu.max": ONE_CORE}, 1, id="v2, the lowest of two"
        ),
        pytest.param("0::/a/b\n", {"a/b/c/cpu.max": ONE_CORE, "d/cpu.max": ONE_CORE}, None, id="v2, of others"),
        pytest.param("0::/../a\n", {"../a/cpu.max": ONE_CORE}, None, id="v2, outside of the namespace"),
        pytest.param("0::/a:b\n", {"a:b/cpu.max": ONE_CORE}, 1, id="v2, name with a colon"),
        pytest.param("0::/gone\n", {"cpu.max": ONE_CORE}, 1, id="v2, own folder not mounted"),
        pytest.param("0::/a\n", {"unified/a/cpu.max": ONE_CORE}, 1, id="v2 beside v1"),
        pytest.param("broken\n", {"cpu.max": ONE_CORE}, 1, id="list of cgroups that cannot be read"),
        pytest.param("0::/\n", {"cpu.max": "100000 0\n"}, None, id="period of zero"),
        pytest.param(
            "4:memory:/m\n3:cpu,cpuacct:/a/b\n0::/\n",
            {"cpu/a/cpu.cfs_quota_us": "150000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
            1,
            id="v1, quota of a parent",
        ),
        pytest.param(
            "3:cpu,cpuacct:/a\n",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "100000\n", "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n"},
            1,
            id="v1, folder of two controllers",
        ),
        pytest.param(
            "4:memory:/m\n3:cpu:/a\n",
            {"cpu/m/cpu.cfs_quota_us": "100000\n", "cpu/m/cpu.cfs_period_us": "100000\n"},
            None,
            id="v1, path of another controller",
        ),
    ],
)
def test_lowest_quota_of_the_own_cgroup_and_its_parents_counts(
    own: str, files: dict[str, str], cores: int | None, proc: Path, tmp_path: Path
) -> None:
    (proc / "self/cgroup").write_text(own)
    for name, content in files.items():
        write(tmp_path / "cgroup/fs" / name, content)
    found = usable_cores(proc=proc, cgroup=tmp_path / "cgroup/fs")
    assert found == (affinity() if cores is None else cores)


@linux_only
def test_quota_is_tight_if_it_is_below_the_affinity(proc: Path, tmp_path: Path) -> None:
    found = {}
    for quota in (f"{affinity() * 100_000 - 1} 100000", f"{affinity() * 100_000} 100000", UNLIMITED):
        (tmp_path / "cpu.max").write_text(quota)
        found[quota] = is_quota_tight(proc=proc, cgroup=tmp_path)
    assert list(found.values()) == [True, False, False]


@linux_only
def test_quota_of_a_real_cgroup_is_seen() -> None:
    """As systemd sets it for a unit: the process sees the whole tree, and the quota is on a parent of its cgroup."""
    parent = Path(f"/sys/fs/cgroup/cpu/test-cores-{os.getpid()}")
    own = parent / "unit"
    try:
        own.mkdir(parents=True)
        (parent / "cpu.cfs_quota_us").write_text("100000")
    except OSError:
        for folder in (own, parent):
            with suppress(OSError):
                folder.rmdir()
        pytest.skip("needs a writable cgroup v1 with the controller cpu")
    code = f"""
import os
open({str(own / "tasks")!r}, "w").write(str(os.getpid()))
from host.cores import is_quota_tight, usable_cores
print(usable_cores(), is_quota_tight())
"""
    try:
        assert run(code) == f"1 {affinity() > 1}\n"
    finally:
        own.rmdir()
        parent.rmdir()


def test_this_machine_has_at_least_one_core() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


@linux_only
def test_only_the_thread_that_asks_for_it_gets_a_lower_priority() -> None:
    """The process may have a niceness already, if the service was started with `nice`."""
    code = """
import os, threading
from host.cores import lower_priority
os.nice(2)
seen = []
def priority():
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
def work():
    lower_priority(5)
    seen.append(priority())
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(seen[0] - priority())
"""
    assert int(run(code)) == 5
