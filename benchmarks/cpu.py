"""What the kernel says of processes and cores."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
CGROUP_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def cpu_s_of(pid: int) -> float:
    """Tell the CPU seconds a process and all its threads have used, in user and kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user_ticks, system_ticks = fields[11:13]
    return (int(user_ticks) + int(system_ticks)) / TICKS_PER_S


def cpu_s_of_all() -> float:
    """Tell the CPU seconds everything on the machine has used."""
    user, nice, system, _idle, _waiting, *interrupts_and_stolen = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + sum(interrupts_and_stolen)) / TICKS_PER_S


def memory_mb_of(pid: int) -> tuple[float, float]:
    """Tell a process's resident memory, now and at its peak."""
    kilobytes = {
        name: float(value.split()[0])
        for name, _, value in (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        if name in {"VmRSS", "VmHWM"}
    }
    return kilobytes["VmRSS"] / 1024, kilobytes["VmHWM"] / 1024


def usable_cores() -> int:
    """Count the cores this process may use: its CPU set, and its cgroup's quota if there is one."""
    cores = len(os.sched_getaffinity(0))
    quota, _, period = CGROUP_CPU_MAX.read_text().partition(" ") if CGROUP_CPU_MAX.exists() else ("max", "", "")
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return "unknown"


def raise_open_files() -> int:
    """Let this process and those it starts hold as many files and sockets as the system allows; tell how many."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def open_files_of(pid: int) -> dict[str, int]:
    """Count what a process holds open: `sockets`, and `files` of any other kind."""
    links = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            links.append(str(descriptor.readlink()))
    sockets = sum(link.startswith("socket:") for link in links)
    return {"sockets": sockets, "files": len(links) - sockets}


def threads_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


@contextmanager
def pinned(cores: set[int]) -> Iterator[None]:
    """Processes started in this block run on these *cores* only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def split_cores(*, is_shared: bool) -> tuple[set[int], set[int]]:
    """The server's cores and those of who calls it: the last one, unless all are shared or there is but one."""
    usable = sorted(os.sched_getaffinity(0))
    if is_shared or len(usable) == 1:
        return set(usable), set(usable)
    return set(usable[:-1]), set(usable[-1:])
