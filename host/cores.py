"""The number of cores this process may use, and the priority of its threads."""

import contextlib
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from host.cgroups import CGROUP, PROC, folders_v1, folders_v2


def usable_cores(*, proc: Path = PROC, cgroup: Path = CGROUP) -> int:
    """Return the number of cores that this process may use, at least 1.

    This is the smaller of its CPU affinity (which follows a cpuset) and the lowest CPU quota of its cgroup and that
    cgroup's parents, rounded down. The kernel would throttle one lane more than the quota allows in the middle of a
    run.
    """
    return max(1, int(min(_affinity(), _quota(proc, cgroup))))


def is_quota_tight(*, proc: Path = PROC, cgroup: Path = CGROUP) -> bool:
    """Return whether a CPU quota is below the affinity: then the kernel stops all threads once they have used it."""
    return _quota(proc, cgroup) < _affinity()


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quota(proc: Path, cgroup: Path) -> float:
    """Return the lowest CPU quota in cores; infinity: none is set. The cpu controller has one version, v2 or v1."""
    quotas = list(_quotas_v2(proc, cgroup)) or list(_quotas_v1(proc, cgroup))
    return min(quotas, default=math.inf)


def _quotas_v2(proc: Path, cgroup: Path) -> Iterator[float]:
    for folder in folders_v2(proc=proc, cgroup=cgroup):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = (folder / "cpu.max").read_text().split()
            yield math.inf if quota == "max" else int(quota) / int(period)


def _quotas_v1(proc: Path, cgroup: Path) -> Iterator[float]:
    for folder in folders_v1("cpu", proc=proc, cgroup=cgroup):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            microseconds = int((folder / "cpu.cfs_quota_us").read_text())
            if microseconds > 0:  # -1: no quota
                yield microseconds / int((folder / "cpu.cfs_period_us").read_text())


def lower_priority(by: int) -> None:
    """Raise the niceness of the calling thread by *by* steps, to at most 19.

    Linux has a niceness per thread. Elsewhere it belongs to the process, so this does nothing there.
    """
    if hasattr(os, "sched_getaffinity"):
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + by))
