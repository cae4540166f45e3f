"""The number of cores this process may use, and the priority of its threads."""

import contextlib
import os
import threading
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def usable_cores(*, cgroup: Path = CGROUP) -> int:
    """Return the number of cores that this process may use, at least 1.

    This is the smaller of its CPU affinity (which follows a cpuset) and its cgroup's CPU quota, rounded down. The
    kernel would throttle one lane more than the quota allows in the middle of a run.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, int(_quota(cgroup) or cores)))


def _quota(cgroup: Path) -> float | None:
    """Return the CPU quota in cores, from cgroup v2 (`cpu.max`) or v1; None: no quota is set."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (cgroup / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        microseconds = int((cgroup / "cpu/cpu.cfs_quota_us").read_text())
        return microseconds / int((cgroup / "cpu/cpu.cfs_period_us").read_text()) if microseconds > 0 else None
    return None


def lower_priority(by: int) -> None:
    """Raise the niceness of the calling thread by *by* steps, to at most 19.

    Linux has a niceness per thread. Elsewhere it belongs to the process, so this does nothing there.
    """
    if hasattr(os, "sched_getaffinity"):
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + by))
