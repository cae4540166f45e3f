import os
import subprocess
import sys
from pathlib import Path

import pytest

from host.cores import usable_cores
from tests.support.servers import ROOT

pytestmark = pytest.mark.timeout(60)  # it starts processes, on a machine that may be busy

linux_only = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux tells a process its cores")


def affinity() -> int:
    return len(os.sched_getaffinity(0))


def run(code: str) -> str:
    """What *code* prints, in a process of its own: affinity and niceness cannot be taken back."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def write_v1(cgroup: Path, quota: str, period: str) -> None:
    (cgroup / "cpu").mkdir()
    (cgroup / "cpu/cpu.cfs_quota_us").write_text(quota)
    (cgroup / "cpu/cpu.cfs_period_us").write_text(period)


@pytest.mark.parametrize(
    ("content", "cores"),
    [
        pytest.param("100000 100000\n", 1, id="one core"),
        pytest.param("150000 100000\n", 1, id="one and a half is one"),
        pytest.param("199999 100000\n", 1, id="nearly two is one"),
        pytest.param("20000 100000\n", 1, id="a fifth is still one"),
        pytest.param("1000 1000000\n", 1, id="a thousandth is still one"),
    ],
)
def test_quota_of_cgroup_v2_is_rounded_down(content: str, cores: int, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(content)
    assert usable_cores(cgroup=tmp_path) == cores


@linux_only
@pytest.mark.parametrize("content", ["max 100000\n", "100000000 100000\n", "", "max", "many few\n"])
def test_without_a_smaller_quota_of_v2_the_affinity_counts(content: str, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(content)
    assert usable_cores(cgroup=tmp_path) == affinity()


@pytest.mark.parametrize(("quota", "period"), [("100000\n", "100000\n"), ("150000", "100000"), ("5000", "100000")])
def test_quota_of_cgroup_v1_is_rounded_down(quota: str, period: str, tmp_path: Path) -> None:
    write_v1(tmp_path, quota, period)
    assert usable_cores(cgroup=tmp_path) == 1


@linux_only
@pytest.mark.parametrize(("quota", "period"), [("-1\n", "100000\n"), ("0", "100000"), ("x", "y"), ("10000000", "1000")])
def test_without_a_smaller_quota_of_v1_the_affinity_counts(quota: str, period: str, tmp_path: Path) -> None:
    write_v1(tmp_path, quota, period)
    assert usable_cores(cgroup=tmp_path) == affinity()


@linux_only
def test_quota_of_v2_counts_before_one_of_v1(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("max 100000\n")
    write_v1(tmp_path, "100000", "100000")
    assert usable_cores(cgroup=tmp_path) == affinity()


@linux_only
def test_without_a_cgroup_the_affinity_counts(tmp_path: Path) -> None:
    assert usable_cores(cgroup=tmp_path / "nowhere") == affinity()


@linux_only
def test_affinity_to_one_core_leaves_one() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
    assert run(f"{code}\nfrom host.cores import usable_cores\nprint(usable_cores())") == "1\n"


def test_cores_of_this_machine_are_one_at_least() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


@linux_only
@pytest.mark.parametrize("niceness", [0, 5])
def test_only_the_thread_that_asks_for_it_gets_a_lower_priority(niceness: int) -> None:
    """Whatever the process's is: somebody may start the service with `nice`."""
    code = f"""
import os, threading
from host.cores import lower_priority
os.nice({niceness})
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
