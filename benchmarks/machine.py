"""CPU and memory of processes, as Linux reports them; and the machine and the revision that a result belongs to."""

import os
import platform
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from host.cores import usable_cores

ROOT = Path(__file__).resolve().parent.parent
CPUINFO = Path("/proc/cpuinfo")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PACKAGES = ("fastembed", "onnxruntime", "litestar", "uvicorn", "numpy")
FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_tile": "AMX",
    "asimddp": "dot product",
    "i8mm": "int8 matrix product",
    "sve": "SVE",
}
"""Instruction sets that decide how fast a model runs: the name in /proc/cpuinfo, and the usual one."""


def cpu_s_of(pid: int) -> float:
    """Return the CPU seconds that a process has used: all its threads, user and kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user_ticks, system_ticks = fields[11:13]
    return (int(user_ticks) + int(system_ticks)) / TICKS_PER_S


def thread_s(pid: int) -> float:
    """Return the CPU seconds of the first thread of a process, on which the service's event loop runs."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9


def tree_of(pid: int) -> list[int]:
    """Return a process and everything that it started, directly or not, and that still runs."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    found = [pid]
    for process in found:  # grows while it is read
        found += children.get(process, [])
    return found


def cpu_s_of_tree(pid: int) -> float:
    """Return the CPU seconds of a process and its descendants; those that have ended count, too."""
    total_ticks = 0
    for process in tree_of(pid):
        with suppress(OSError):
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            total_ticks += sum(map(int, fields[11:15]))  # own user and system time, and that of ended children
    return total_ticks / TICKS_PER_S


@dataclass(frozen=True, slots=True)
class TreeMemory:
    """Memory in MB of a process and its descendants. *pss* divides shared pages by their users; *rss* does not."""

    pss: float
    rss: float
    private_dirty: float


def memory_of_tree(pid: int) -> TreeMemory:
    kilobytes = dict.fromkeys(("Pss", "Rss", "Private_Dirty"), 0)
    for process in tree_of(pid):
        with suppress(OSError):
            for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]:
                name, _, value = line.partition(":")
                if name in kilobytes:
                    kilobytes[name] += int(value.split()[0])
    return TreeMemory(*(value / 1024 for value in kilobytes.values()))


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
    features: str
    cores: int
    system: str
    python: str
    packages: str
    revision: str


def this_machine() -> Machine:
    return Machine(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        cpu=_cpu_model(),
        features=cpu_features(),
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
        f"{machine.cpu} ({machine.features}), {machine.cores} usable cores; Python {machine.python}, "
        f"{machine.packages}; {machine.date}\n"
        f"revision {machine.revision}; command: {command}".rstrip()
    )


def cpu_features(cpuinfo: Path = CPUINFO) -> str:
    """Return the instruction sets of `FEATURES` that the CPU has, such as `AVX2, AVX-512`."""
    flags = set((_cpu_fact(cpuinfo, "flags") or _cpu_fact(cpuinfo, "Features")).split())
    return ", ".join(name for flag, name in FEATURES.items() if flag in flags) or "no vector instructions known"


def _cpu_model(cpuinfo: Path = CPUINFO) -> str:
    """Return the name of the CPU. Virtual machines shorten it, so family and model are added."""
    if not (name := _cpu_fact(cpuinfo, "model name")):
        return f"unknown CPU ({platform.machine()})"
    return f"{name}, family {_cpu_fact(cpuinfo, 'cpu family')} model {_cpu_fact(cpuinfo, 'model')}"


def _cpu_fact(cpuinfo: Path, wanted: str) -> str:
    for line in cpuinfo.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == wanted:
            return value.strip()
    return ""


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
