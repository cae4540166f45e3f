"""Measure the memory of a replica, of more workers and replicas, and the effect of a CPU limit that equals its lanes.

Run `python benchmarks/replica.py`, about 4 minutes. The first server writes the optimised copy that the others map.
Resident memory (RSS) contains mapped files in full in each process. Pss divides what processes share among them, so it
can be added up. Private dirty memory is what the kernel cannot drop. The last part puts the server into a control group
with a CPU quota, as a container's limit does. That needs root, and is left out without. Its result is meaningless on a
busy machine, where the server gets too little CPU to reach the limit. docs/production/kubernetes.md has the results.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any

if not __package__:  # run as a script: let `benchmarks` be found
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.load import Job, run_load, texts_done
from benchmarks.machine import describe_run
from benchmarks.processes import BenchError, end_children_on_sigterm, healthy_server
from benchmarks.tables import markdown, percentile
from benchmarks.texts import Kind, distinct_texts
from benchmarks.workloads import BULK_ALONE, LOADS, SHARED_ROW
from host.cores import usable_cores

CGROUPS = Path("/sys/fs/cgroup")
PERIOD_US = 100_000
KINDS: tuple[Kind, ...] = ("short", "mixed")
COUNTED_TEXTS = 512
REPLICAS = (
    ("2 lanes, no optimised copies", 2, {"OPTIMISED_MODELS_MAX_SIZE": "0"}),
    ("1 lane", 1, {}),
    ("2 lanes, LONE_TEXT_MEMORY=0", 2, {"LONE_TEXT_MEMORY": "0"}),
    ("2 lanes", 2, {}),
    *(
        (f"2 lanes, WORKERS={workers}", 2, {"WORKERS": str(workers)})
        for workers in range(2, min(4, usable_cores()) + 1)
    ),
)
"""Name, lanes and settings."""
SETTLED_S = 3.0
"""Time after the start in which the sessions for lone texts are opened."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="replica.py", description="Measure the memory and CPU limits of a replica.")
    parser.add_argument("--seconds", type=float, default=15.0, help="of load in each run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of the second part (default: %(default)s)")
    options = parser.parse_args()
    end_children_on_sigterm()
    command = f"python benchmarks/replica.py --seconds {options.seconds:g} --rounds {options.rounds}"
    print(describe_run(command), end="\n\n")
    try:
        print(_tokens_per_text(), _memory_by_settings(options.seconds), sep="\n\n", end="\n\n")
        print(_effect_of_limits(options.seconds, options.rounds))
    except BenchError as error:
        sys.exit(f"replica.py: {error}")


def _tokens_per_text() -> str:
    """Return a table of the mean tokens of the benchmark's texts, as the model counts them."""
    lines = []
    with healthy_server({"MAX_BATCH_SIZE": str(COUNTED_TEXTS)}, log_level="ERROR", lanes=1) as server:
        for kind in KINDS:
            source = distinct_texts(kind, "tokens")
            answer = server.post("/tokenize", {"texts": [next(source) for _ in range(COUNTED_TEXTS)]})
            lines.append([kind, f"{mean(text['tokens'] for text in answer.json['texts']):.0f}"])
    return markdown(["texts", "tokens, mean"], lines)


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of a server in MB, its workers included."""

    resident: float
    shared_out: float
    private_dirty: float

    def written(self) -> list[str]:
        return [f"{mb:.0f}" for mb in (self.resident, self.shared_out, self.private_dirty)]


def memory_of(pid: int) -> Memory:
    """Return the memory of a process and its children: RSS, Pss and private dirty."""
    pids = [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    found = {"Rss:": 0.0, "Pss:": 0.0, "Private_Dirty:": 0.0}
    for each in pids:
        for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines():
            name, *value = line.split()
            if name in found:
                found[name] += int(value[0]) / 1024
    return Memory(*found.values())


def _memory_by_settings(seconds: float) -> str:
    """Return a table of one server each, and of a second replica that starts beside one."""
    lines = []
    with TemporaryDirectory() as cache:
        _write_copy({"HUB_CACHE_DIR": cache})
        for name, lanes, settings in REPLICAS:
            given = {"HUB_CACHE_DIR": cache, **settings}
            with healthy_server(given, log_level="ERROR", lanes=lanes) as server:
                ready = _settled(server.process.pid)
                run_load(Job(server.port, server.process.pid, list(BULK_ALONE.streams), name, 1.0, seconds))
                lines.append([name, *ready.written(), *memory_of(server.process.pid).written()])
        options: dict[str, Any] = {"log_level": "ERROR", "lanes": 2}
        with healthy_server({"HUB_CACHE_DIR": cache}, **options) as first:
            alone = _settled(first.process.pid)
            with healthy_server({"HUB_CACHE_DIR": cache}, **options) as second:
                both = (memory_of(first.process.pid), _settled(second.process.pid))
            added = sum(memory.shared_out for memory in both) - alone.shared_out
    head = ["replica", "RSS when ready", "Pss", "private dirty", "RSS after bulk work", "Pss", "private dirty"]
    return f"{markdown(head, lines)}\n\nMB. A second replica with the same HUB_CACHE_DIR adds {added:.0f} MB Pss."


def _settled(pid: int) -> Memory:
    time.sleep(SETTLED_S)
    return memory_of(pid)


def _write_copy(settings: dict[str, str]) -> None:
    """Let a server write the optimised copy of the model, and end it."""
    with healthy_server(settings, lanes=1) as server:
        server.wait_for(lambda: any(event["event"] == "optimised_copy_adopted" for event in server.events_after(0)))


def _effect_of_limits(seconds: float, rounds: int) -> str:
    """Return a table of one lane with a limit of one core and of two, measured alternately."""
    if os.geteuid() != 0 or usable_cores() < 2:
        return "CPU limits: left out, they need root and 2 cores."
    found: dict[int, list[tuple[float, ...]]] = {1: [], 2: []}
    for number in range(rounds):
        for cores, runs in found.items():
            runs.append(_run_limited(cores, seconds, f"{cores}/{number}"))
    lines = [
        [f"{cores}", *(f"{median(values):.1f}" for values in zip(*runs, strict=True))] for cores, runs in found.items()
    ]
    head = ["limit, cores", "throttled periods, %", "throttled, ms per s", "texts/s", "query p50 ms", "query p99 ms"]
    return markdown(head, lines)


def _run_limited(cores: int, seconds: float, seed: str) -> tuple[float, ...]:
    """Run short texts beside bulk work on one lane, limited to *cores*, and return the columns of the table."""
    row = LOADS[SHARED_ROW]
    with healthy_server(log_level="ERROR", lanes=1) as server, _cpu_limit(cores, server.process.pid) as folder:
        began, before = time.monotonic(), _throttling(folder)
        report = run_load(Job(server.port, server.process.pid, list(row.streams), seed, 1.0, seconds))
        periods, throttled, throttled_ms = (now - then for now, then in zip(_throttling(folder), before, strict=True))
        took_s = time.monotonic() - began
    share = 100 * throttled / periods if periods else 0.0
    query_ms = report.streams[0].latencies_ms
    latencies = percentile(query_ms, 0.5), percentile(query_ms, 0.99)
    return share, throttled_ms / took_s, texts_done(report, row.streams) / seconds, *latencies


@contextmanager
def _cpu_limit(cores: int, pid: int) -> Iterator[Path]:
    """Put a process into a new control group with a CPU quota, and yield the group's folder; cgroup v1 or v2."""
    is_v2 = (CGROUPS / "cgroup.controllers").exists()
    folder = (CGROUPS if is_v2 else CGROUPS / "cpu") / f"fast-embedding-{os.getpid()}"
    folder.mkdir()
    try:
        if is_v2:
            (folder / "cpu.max").write_text(f"{cores * PERIOD_US} {PERIOD_US}")
        else:
            (folder / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (folder / "cpu.cfs_quota_us").write_text(str(cores * PERIOD_US))
        (folder / "cgroup.procs").write_text(str(pid))
        yield folder
    finally:
        (folder.parent / "cgroup.procs").write_text(str(pid))
        folder.rmdir()


def _throttling(folder: Path) -> tuple[float, float, float]:
    """Return the periods so far, how many were throttled, and the throttled milliseconds (of all cores together)."""
    stat = dict(line.split() for line in (folder / "cpu.stat").read_text().splitlines())
    throttled_ms = int(stat["throttled_usec"]) / 1e3 if "throttled_usec" in stat else int(stat["throttled_time"]) / 1e6
    return int(stat["nr_periods"]), int(stat["nr_throttled"]), throttled_ms


if __name__ == "__main__":
    main()
