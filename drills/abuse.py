"""Measure how much slower a well-behaved client is served beside an abusive one.

Run `python -m drills.abuse`. The well-behaved client sends 10 short texts, 2 mixed texts and 1 batch per second at a
fixed rate, from 127.0.0.1; the abuser is another caller, at 127.0.0.2. Each round measures the client alone, then
beside the abuser; the ratio is taken within a round, then the median over the rounds. Both clients are processes of
their own (the abuser with a lower priority) on the last core, which the server may not use, so that only what the abuse
costs the server counts; with `--shared`, all use all cores. Exit code 1: the median of the client's short texts was
more than 1.3 times as long and more than 10 ms longer, the p95 was above 300 ms (short texts) or 600 ms (mixed ones), a
request was lost, or the abuser's sockets were not closed.

`--smoke` takes about 20 seconds: one short round of two abuses, without the target for the client's latency.
"""

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.machine import ROOT, cpu_s_of, describe_run, memory_mb_of
from benchmarks.processes import BenchError, Server, end_children_on_sigterm, healthy_server, spawned
from benchmarks.tables import markdown, percentile
from drills.abusers import ABUSES
from drills.monitor import connections_of
from drills.open_loop_load import OpenLoopJob, OpenLoopStream, run_open_loop
from drills.process_limits import pinned, split_cores

WELL_BEHAVED = [
    OpenLoopStream("short", 1, rate=10.0),
    OpenLoopStream("mixed", 1, rate=2.0),
    OpenLoopStream("mixed", 4, rate=1.0),
]
MAX_RATIO, MAX_MORE_MS = 1.3, 10.0
MAX_P95_MS, MAX_MIXED_P95_MS = 300.0, 600.0
HEAD_START_S = 1.5
"""How much earlier the abuse begins than the measurement beside it."""
MAX_CLOSING_S = 15.0
MAX_SOCKETS = 12
"""TCP sockets the server may have when the abuser is gone: its own, and kept-alive ones of the well-behaved client."""
SMOKE = {"seconds": 1.0, "rounds": 1, "only": ["gone-at-once", "many-headers"]}
HEADINGS = [
    "abuse",
    "p50 ms alone, beside",
    "ratio",
    "p95 ms alone, beside",
    "p95 of mixed texts",
    "served",
    "abuser's answers",
    "server's CPU s per s alone, beside",
    "RSS MB, most",
    "sockets left",
]


@dataclass(frozen=True, slots=True)
class Sample:
    """What the well-behaved client got: latencies of single texts, and the share of its requests answered with 200."""

    p50_ms: float
    p95_ms: float
    mixed_p95_ms: float
    served: float
    server_cpu_per_s: float


@dataclass(frozen=True, slots=True)
class Round:
    """The well-behaved client alone and beside the abuser, and the abuser's answers."""

    alone: Sample
    beside: Sample
    answers: dict[str, int]


def main() -> int:
    """Print a row per abuse, and return the exit code."""
    options = _parse_options()
    end_children_on_sigterm()
    print(describe_run(f"python -m drills.abuse {' '.join(sys.argv[1:])}"), flush=True)
    lines, missed = [], []
    try:
        for name in options.only or ABUSES:
            line, is_met = _measure(name, options)
            lines.append(line)
            missed += [] if is_met else [name]
            print(" | ".join(line), file=sys.stderr, flush=True)
    except BenchError as error:
        print(f"abuse: {error}", file=sys.stderr)
        return 1
    print("\n" + markdown(HEADINGS, lines))
    print("\nmissed: " + ", ".join(missed) if missed else "\nall targets met")
    return 1 if missed else 0


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="abuse", description="Measure a well-behaved client beside abusive ones.")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="for each abuse (default: %(default)s)")
    parser.add_argument("--only", nargs="*", choices=sorted(ABUSES), help="these abuses (default: all)")
    parser.add_argument("--shared", action="store_true", help="let server and clients use all cores")
    parser.add_argument("--checkout", type=Path, default=ROOT, help="serve another revision (default: this one)")
    parser.add_argument("--smoke", action="store_true", help="a short run without the target for the latency")
    options = parser.parse_args()
    if options.smoke:
        vars(options).update(SMOKE)
    return options


def _measure(name: str, options: argparse.Namespace) -> tuple[list[str], bool]:
    server_cores, client_cores = split_cores(is_shared=options.shared)
    with (
        pinned(server_cores),
        healthy_server(lanes=len(server_cores), checkout=options.checkout) as server,
        pinned(client_cores),
    ):
        _sample(server, 2.0, f"warm/{name}")
        rounds = [_round(server, name, number, options.seconds) for number in range(options.rounds)]
        sockets = _sockets_left(server)
        rss_mb, max_rss_mb = memory_mb_of(server.process.pid)
    ratio = median(one.beside.p50_ms / one.alone.p50_ms for one in rounds)
    share = median(one.beside.served / one.alone.served for one in rounds)
    answers = sum((Counter(one.answers) for one in rounds), Counter[str]())
    alone_cpu = [one.alone.server_cpu_per_s for one in rounds]
    beside_cpu = [one.beside.server_cpu_per_s for one in rounds]
    more_ms = median(one.beside.p50_ms - one.alone.p50_ms for one in rounds)
    is_fast = (
        (ratio <= MAX_RATIO or more_ms <= MAX_MORE_MS)
        and median(one.beside.p95_ms for one in rounds) <= MAX_P95_MS
        and median(one.beside.mixed_p95_ms for one in rounds) <= MAX_MIXED_P95_MS
    )
    is_met = (is_fast or options.smoke) and share >= 1.0 and sockets <= MAX_SOCKETS
    line = [
        name,
        f"{_median(one.alone.p50_ms for one in rounds)}, {_median(one.beside.p50_ms for one in rounds)}",
        f"{ratio:.2f} x" if is_met else f"**{ratio:.2f} x**",
        f"{_median(one.alone.p95_ms for one in rounds)}, {_median(one.beside.p95_ms for one in rounds)}",
        f"{_median(one.alone.mixed_p95_ms for one in rounds)}, {_median(one.beside.mixed_p95_ms for one in rounds)}",
        f"{share:.0%}",
        ", ".join(f"{status or 'none'}: {count}" for status, count in answers.most_common()) or "none",
        ", ".join(f"{median(cpu):.2f}" for cpu in (alone_cpu, beside_cpu)),
        f"{rss_mb:.0f}, {max_rss_mb:.0f}",
        str(sockets),
    ]
    return line, is_met


def _round(server: Server, name: str, number: int, seconds: float) -> Round:
    alone = _sample(server, seconds, f"{name}/{number}/alone")
    length_s = seconds + 2 * HEAD_START_S
    command = ["-m", "drills.abusers", name, str(server.port), str(length_s), f"{name}/{number}"]
    with spawned(command, stdout=subprocess.PIPE) as abuser:
        time.sleep(HEAD_START_S)
        beside = _sample(server, seconds, f"{name}/{number}/beside")
        output, _ = abuser.communicate(timeout=length_s + 60)
    if not output:
        raise BenchError(f"The abuser {name} ended too early. Its output is above.")
    return Round(alone, beside, json.loads(output))


def _sample(server: Server, seconds: float, seed: str) -> Sample:
    before = cpu_s_of(server.process.pid)
    report = run_open_loop(OpenLoopJob(server.port, server.process.pid, WELL_BEHAVED, seed, seconds, patience_s=30.0))
    cpu_per_s = (cpu_s_of(server.process.pid) - before) / seconds
    short_ms, mixed_ms = (stream.latencies_ms.get("200", [float("inf")]) for stream in report.streams[:2])
    sent = sum(stream.sent for stream in report.streams)
    served = sum(len(stream.latencies_ms.get("200", [])) for stream in report.streams) / sent
    p50_ms, p95_ms, mixed_p95_ms = percentile(short_ms, 0.5), percentile(short_ms, 0.95), percentile(mixed_ms, 0.95)
    return Sample(p50_ms, p95_ms, mixed_p95_ms, served, cpu_per_s)


def _sockets_left(server: Server) -> int:
    """Return the server's open sockets once it had time to notice that all clients are gone."""
    deadline = time.monotonic() + MAX_CLOSING_S
    while (sockets := connections_of(server.port)) > MAX_SOCKETS and time.monotonic() < deadline:
        time.sleep(0.2)
    return sockets


def _median(values: Iterable[float]) -> str:
    return f"{median(values):.1f}"


if __name__ == "__main__":
    sys.exit(main())
