"""What this process takes from the machine: memory, processor time and open files."""

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from host.cgroups import PROC

if sys.platform != "win32":
    import resource


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessUsage:
    """What a process takes. All but `pid` and `cpu_seconds` are None where the system does not report them.

    Attributes:
        resident_bytes: memory, with all pages that it shares with other processes (RSS).
        proportional_bytes: memory, with its part of the pages that it shares (Pss): of several processes, it adds up.
        started_s: when it was started, in seconds since 1970.
    """

    pid: int
    cpu_seconds: float
    resident_bytes: int | None = None
    proportional_bytes: int | None = None
    virtual_bytes: int | None = None
    open_files: int | None = None
    max_files: int | None = None
    started_s: float | None = None


def process_usage(*, proc: Path = PROC) -> ProcessUsage:
    """Return what this process takes. Blocks for milliseconds: the kernel counts the pages."""
    times = os.times()
    found: dict[str, int | float] = {"pid": os.getpid(), "cpu_seconds": times.user + times.system}
    own = proc / "self"
    with suppress(OSError, ValueError):
        # Fields 22 to 24 of the whole line; the name of the command, in parentheses, may contain spaces.
        fields = (own / "stat").read_text().rpartition(")")[2].split()
        start_ticks, virtual_bytes, resident_pages = map(int, fields[19:22])
        found |= {"virtual_bytes": virtual_bytes, "resident_bytes": resident_pages * os.sysconf("SC_PAGE_SIZE")}
        boot_s = next(line for line in (proc / "stat").read_text().splitlines() if line.startswith("btime "))
        found["started_s"] = int(boot_s.split()[1]) + start_ticks / os.sysconf("SC_CLK_TCK")
    with suppress(OSError, ValueError, StopIteration):
        lines = (own / "smaps_rollup").read_text().splitlines()
        found["proportional_bytes"] = 1024 * int(next(line for line in lines if line.startswith("Pss:")).split()[1])
    with suppress(OSError):
        found["open_files"] = len(list((own / "fd").iterdir()))
    if sys.platform != "win32":
        found["max_files"] = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return ProcessUsage(**found)  # type: ignore[arg-type]  # each has the type of its field
