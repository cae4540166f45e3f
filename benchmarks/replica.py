"""What one replica needs: memory by its lanes, and what a CPU limit at the size of its lanes does to it.

Run it as `python benchmarks/replica.py`, about 3 minutes. The second part puts the server into a control group with a
CPU quota, as a container's limit does; that takes root and is left out without. It tells nothing on a machine that is
busy with other things: who gets no core meets no limit. docs/production/kubernetes.md has the numbers of memory.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.cpu import memory_mb_of, usable_cores  # noqa: E402 - our own modules can be found now
from benchmarks.load import Job  # noqa: E402
from benchmarks.processes import (  # noqa: E402
    BenchError,
    end_children_on_sigterm,
    healthy_server,
    run_load,
)
from benchmarks.report import markdown, revision, this_machine  # noqa: E402
from benchmarks.rows import BESIDE_ROW, BULK_ALONE, LOADS  # noqa: E402
from benchmarks.texts import Kind, distinct_texts  # noqa: E402
from benchmarks.watch import post  # noqa: E402
from benchmarks.work import percentile  # noqa: E402

GROUPS = Path("/sys/fs/cgroup")
PERIOD_US = 100_000
KINDS: tuple[Kind, ...] = ("short", "mixed")
TEXTS_COUNTED = 512
REPLICAS = (
    ("1 lane", 1, "256MB"),
    ("2 lanes, LONE_TEXT_MEMORY=0", 2, "0"),
    ("2 lanes", 2, "256MB"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15.0, help="of load in each run (default 15)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of the second part (default 3)")
    options = parser.parse_args()
    end_children_on_sigterm()
    machine = this_machine()
    print(f"{machine.cpu}, {machine.cores} usable cores; Python {machine.python}, {machine.packages}; {revision()}\n")
    try:
        print(tokens_of_texts(), memory_by_lanes(options.seconds), sep="\n\n")
        print(limits(options.seconds, options.rounds))
    except BenchError as error:
        sys.exit(f"replica.py: {error}")


def tokens_of_texts() -> str:
    """Mean tokens of the benchmark's texts, as the model counts them."""
    with healthy_server(log_level="ERROR", lanes=1, MAX_BATCH_SIZE=str(TEXTS_COUNTED)) as server:
        found = []
        for kind in KINDS:
            source = distinct_texts(kind, "tokens")
            _, answer, _ = post(server, "/tokenize", {"texts": [next(source) for _ in range(TEXTS_COUNTED)]})
            found.append([kind, f"{mean(text['tokens'] for text in answer['texts']):.0f}"])
    return markdown(["texts", "tokens, mean"], found)


def memory_by_lanes(seconds: float) -> str:
    lines = []
    for name, lanes, lone in REPLICAS:
        with healthy_server(log_level="ERROR", lanes=lanes, LONE_TEXT_MEMORY=lone) as server:
            ready_mb, _ = memory_mb_of(server.process.pid)
            run_load(Job(server.port, server.process.pid, list(BULK_ALONE.streams), name, 1.0, seconds))
            lines.append([name, *(f"{mb:.0f}" for mb in (ready_mb, *memory_mb_of(server.process.pid)))])
    return markdown(["replica", "MB when ready", "MB after bulk work", "MB at most"], lines)


def limits(seconds: float, rounds: int) -> str:
    """One lane with a limit of one core, and of two, in turns."""
    if os.geteuid() != 0:
        return "\nCPU limits: left out, they take root."
    if usable_cores() < 2:
        return "\nCPU limits: left out, they take 2 cores."
    found: dict[int, list[tuple[float, float, float, float, float]]] = {1: [], 2: []}
    for number in range(rounds):
        for cores, runs in found.items():
            runs.append(limited(cores, seconds, f"{cores}/{number}"))
    lines = [
        [f"{cores}", *(f"{median(values):.1f}" for values in zip(*runs, strict=True))] for cores, runs in found.items()
    ]
    head = ["limit, cores", "periods with a stop, %", "stopped, ms per s", "texts/s", "query p50 ms", "query p99 ms"]
    return "\n" + markdown(head, lines)


def limited(cores: int, seconds: float, seed: str) -> tuple[float, float, float, float, float]:
    """A query beside bulk work on one lane, in a group that may use so many cores."""
    row = LOADS[BESIDE_ROW]
    with healthy_server(log_level="ERROR", lanes=1) as server, group(cores, server.process.pid) as folder:
        began, before = time.monotonic(), stops(folder)
        report = run_load(Job(server.port, server.process.pid, list(row.streams), seed, 1.0, seconds))
        periods, stopped, stopped_ms = (now - then for now, then in zip(stops(folder), before, strict=True))
        took_s = time.monotonic() - began
    texts = sum(
        sum(share for _, share in answered.shares) * stream.texts_per_request
        for stream, answered in zip(row.streams, report.streams, strict=True)
    )
    query_ms = sorted(report.streams[0].latencies_ms)
    share = 100 * stopped / periods if periods else 0.0
    return share, stopped_ms / took_s, texts / seconds, percentile(query_ms, 0.5), percentile(query_ms, 0.99)


@contextmanager
def group(cores: int, pid: int) -> Iterator[Path]:
    """A control group with a CPU quota and this process in it; cgroup v1 or v2."""
    is_v2 = (GROUPS / "cgroup.controllers").exists()
    folder = (GROUPS if is_v2 else GROUPS / "cpu") / f"fast-embedding-{os.getpid()}"
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


def stops(folder: Path) -> tuple[float, float, float]:
    """Periods so far, those with a stop, and milliseconds of stops (of all cores together)."""
    told = dict(line.split() for line in (folder / "cpu.stat").read_text().splitlines())
    stopped_ms = int(told["throttled_usec"]) / 1e3 if "throttled_usec" in told else int(told["throttled_time"]) / 1e6
    return int(told["nr_periods"]), int(told["nr_throttled"]), stopped_ms


if __name__ == "__main__":
    main()
