"""Pretend to have more cores than the machine: each worker gets a small share of a core, so that all have room.

The service plans its workers by the cores that the kernel reports. A `sitecustomize` module, which Python imports at
its start, reports more in the processes that the benchmark starts, and in those only. Once the workers run, each is put
into a control group that limits its CPU time. Throughput then grows with the workers as it would on such a machine,
unless something that they share limits it. Needs root, for the control groups.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
PERIOD_US = 20_000
FOR_WORKERS = 0.7
"""Share of the real cores that all workers together may use; the rest is for the supervisor and the load generator."""

SITECUSTOMIZE = """
import os
os.sched_getaffinity = lambda pid: set(range({cores}))
os.sched_setaffinity = lambda pid, cores: None
"""


def write_pretence(folder: Path, cores: int) -> dict[str, str]:
    """Write the module into *folder*, and return the environment of a server that believes in *cores* cores."""
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE.format(cores=cores))
    return {"PYTHONPATH": str(folder)}


def share_of_a_core(cores: int) -> float:
    """Return what a pretended core is worth, in real cores."""
    return FOR_WORKERS * len(os.sched_getaffinity(0)) / cores


@contextmanager
def limited(pids: list[int], share: float) -> Iterator[None]:
    """Limit each process to *share* of a core while the block runs."""
    is_v2 = (CGROUPS / "cgroup.controllers").exists()
    parent = CGROUPS if is_v2 else CGROUPS / "cpu"
    folders = [parent / f"fast-embedding-{pid}" for pid in pids]
    quota_us = max(1000, round(PERIOD_US * share))
    try:
        for folder, pid in zip(folders, pids, strict=True):
            folder.mkdir()
            if is_v2:
                (folder / "cpu.max").write_text(f"{quota_us} {PERIOD_US}")
            else:
                (folder / "cpu.cfs_period_us").write_text(str(PERIOD_US))
                (folder / "cpu.cfs_quota_us").write_text(str(quota_us))
            (folder / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        for folder, pid in zip(folders, pids, strict=True):
            with suppress(OSError):
                (parent / "cgroup.procs").write_text(str(pid))
            with suppress(OSError):
                folder.rmdir()
