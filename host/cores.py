"""Cores: how many this process may use, and the priority of its threads."""

import contextlib
import os
import threading
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def usable_cores(*, cgroup: Path = CGROUP) -> int:
    """Cores that this process may really use, at least 1.

    The smaller one of its CPU affinity (which follows a cpuset) and its cgroup's CPU quota, rounded down: a lane more
    than the quota pays for is stopped by the kernel in the middle of its work.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, int(_quota(cgroup) or cores)))


def _quota(cgroup: Path) -> float | None:
    """The CPU quota in cores, of cgroup v2 (`cpu.max`) or v1; None: none is set."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (cgroup / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        microseconds = int((cgroup / "cpu/cpu.cfs_quota_us").read_text())
        return microseconds / int((cgroup / "cpu/cpu.cfs_period_us").read_text()) if microseconds > 0 else None
    return None


def lower_priority(by: int) -> None:
    """Lower the calling thread's priority by so many steps of niceness.

    Linux keeps a niceness per thread; elsewhere it is the process's, so nothing is changed there.
    """
    if hasattr(os, "sched_getaffinity"):
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + by))
