"""CPU and memory of processes, as Linux reports them; and the machine and the revision that a result belongs to."""

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from host.cores import usable_cores

ROOT = Path(__file__).resolve().parent.parent
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PACKAGES = ("fastembed", "onnxruntime", "litestar", "uvicorn", "numpy")


def cpu_s_of(pid: int) -> float:
    """Return the CPU seconds that a process has used: all its threads, user and kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user_ticks, system_ticks = fields[11:13]
    return (int(user_ticks) + int(system_ticks)) / TICKS_PER_S


def cpu_s_of_all() -> float:
    """Return the CPU seconds that everything on this machine has used."""
    user, nice, system, _idle, _iowait, *interrupts_and_stolen = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + sum(interrupts_and_stolen)) / TICKS_PER_S


def memory_mb_of(pid: int) -> tuple[float, float]:
    """Return the resident memory of a process in MB: now, and at its peak."""
    lines = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    kilobytes = {name: float(value.split()[0]) for name, _, value in lines if name in {"VmRSS", "VmHWM"}}
    return kilobytes["VmRSS"] / 1024, kilobytes["VmHWM"] / 1024


@dataclass(frozen=True, slots=True)
class Machine:
    """What a result depends on, without names that identify the owner."""

    date: str
    cpu: str
    cores: int
    system: str
    python: str
    packages: str
    revision: str


def this_machine() -> Machine:
    return Machine(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        cpu=_cpu_model(),
        cores=usable_cores(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        packages=", ".join(f"{name} {_version_of(name)}" for name in PACKAGES),
        revision=_revision(),
    )


def describe_run(command: str) -> str:
    """Return the two lines that scripts print above their results: machine and versions, revision and command."""
    machine = this_machine()
    return (
        f"{machine.cpu}, {machine.cores} usable cores; Python {machine.python}, {machine.packages}; {machine.date}\n"
        f"revision {machine.revision}; command: {command}".rstrip()
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return "unknown CPU"


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _revision() -> str:
    if not (git := shutil.which("git")):
        return "unknown"

    def output_of(*arguments: str) -> str:
        return subprocess.run([git, *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    changed = " with local changes" if output_of("status", "--porcelain", "--untracked-files=no") else ""
    return (output_of("rev-parse", "--short", "HEAD") or "unknown") + changed
