"""Usable cores from affinity and cgroup quota, and the priority of threads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from host.cores import usable_cores
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
    return usable_cores(cgroup=folder)


def cores_with_v1(folder: Path, quota: str, period: str) -> int:
    (folder / "cpu").mkdir(exist_ok=True)
    (folder / "cpu/cpu.cfs_quota_us").write_text(quota)
    (folder / "cpu/cpu.cfs_period_us").write_text(period)
    return usable_cores(cgroup=folder)


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
