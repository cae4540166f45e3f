"""A polite caller alone and beside an abuser, in turns: how much slower is he served?

Run it as `python benchmarks/abuse.py`. The polite caller sends 10 short texts and 1 batch a second by the clock. Per
abuse there are rounds of two turns, alone and beside; the ratio is taken within a round, then the median over the
rounds. The polite caller and the abuser (at a lower priority) are processes of their own, on a core of their own: the
last one, which the server may not use, so that only what the abuse costs the server is seen (`--shared`: all cores for
all). Exit code 1: a polite caller was slowed by more than a fifth, or the server held something at the end.
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

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.abusers import ABUSES  # noqa: E402 - the path above makes the project's own modules importable
from benchmarks.cpu import cpu_s_of, memory_mb_of, open_files_of, pinned, split_cores  # noqa: E402
from benchmarks.openloop import OpenJob, OpenReport, OpenStream  # noqa: E402
from benchmarks.processes import (  # noqa: E402
    BenchError,
    Server,
    end_children_on_sigterm,
    healthy_server,
    run_open_load,
    spawned,
)
from benchmarks.report import markdown, revision, this_machine  # noqa: E402
from benchmarks.work import percentile  # noqa: E402

POLITE = [OpenStream("short", 1, rate=10.0), OpenStream("mixed", 4, rate=1.0)]
MAX_RATIO, MIN_SHARE = 1.2, 0.8
HEAD_START_S = 1.5
"""The abuse begins so much earlier than what is measured beside it."""
GONE_WITHIN_S = 15.0
FEW_SOCKETS = 12
"""Sockets the server may still hold when the abuser has gone: its own, and those kept alive for the polite caller."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What the polite caller got: milliseconds of short texts, and the share of all his requests that were served."""

    p50_ms: float
    p99_ms: float
    served: float


@dataclass(frozen=True, slots=True)
class Round:
    """One turn alone and one beside; what the abuser got, and what he cost the server."""

    alone: Turn
    beside: Turn
    answers: dict[str, int]
    server_cpu_s: float
    alone_cpu_s: float


def main() -> int:
    """Print a row per abuse, and give the exit code."""
    options = parser().parse_args()
    end_children_on_sigterm()
    machine = this_machine()
    print(f"{machine.cpu}, {machine.cores} usable cores; Python {machine.python}, {machine.packages}; {machine.date}")
    print(f"revision {revision()}; command: python benchmarks/abuse.py {' '.join(sys.argv[1:])}".rstrip(), flush=True)
    server_cores, other_cores = split_cores(is_shared=options.shared)
    lines, missed = [], []
    try:
        for name in options.only or ABUSES:
            with (
                pinned(server_cores),
                healthy_server(log_level="INFO", lanes=len(server_cores)) as server,
                pinned(other_cores),
            ):
                polite(server, 2.0, f"warm/{name}")
                rounds = [measured(server, name, number, options.seconds) for number in range(options.rounds)]
                sockets = sockets_left(server)
                line, is_met = row(name, rounds, server, sockets)
            lines.append(line)
            missed += [] if is_met else [name]
            print(f"{' | '.join(line)}", file=sys.stderr, flush=True)
    except BenchError as error:
        print(f"abuse.py: {error}", file=sys.stderr)
        return 1
    head = ["abuse", "p50 ms alone, beside", "ratio", "p99 ms alone, beside", "served", "abuser's answers"]
    print("\n" + markdown([*head, "server's CPU s per s alone, beside", "RSS MB, most", "sockets left"], lines))
    print("\nmissed: " + ", ".join(missed) if missed else "\nnobody was slowed by more than a fifth")
    return 1 if missed else 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="abuse.py", description="Measure a polite caller beside abusers.")
    made.add_argument("--seconds", type=float, default=8.0, help="of each turn (default: %(default)s)")
    made.add_argument("--rounds", type=int, default=3, help="of two turns for each abuse (default: %(default)s)")
    made.add_argument("--only", nargs="*", choices=sorted(ABUSES), help="these abuses (default: all)")
    made.add_argument("--shared", action="store_true", help="server, abuser and polite caller use all cores together")
    return made


def measured(server: Server, name: str, number: int, seconds: float) -> Round:
    alone_cpu_s, alone = timed(server, seconds, f"{name}/{number}/alone")
    length_s = seconds + 2 * HEAD_START_S
    command = ["-m", "benchmarks.abusers", name, str(server.port), str(length_s)]
    with spawned(command, stdout=subprocess.PIPE) as abuser:
        time.sleep(HEAD_START_S)
        cpu_s, beside = timed(server, seconds, f"{name}/{number}/beside")
        output, _ = abuser.communicate(timeout=length_s + 60)
    if not output:
        raise BenchError(f"The abuser {name} ended unasked (its last words are above).")
    return Round(alone, beside, json.loads(output)["answers"], cpu_s / seconds, alone_cpu_s / seconds)


def timed(server: Server, seconds: float, seed: str) -> tuple[float, Turn]:
    before = cpu_s_of(server.process.pid)
    turn = polite(server, seconds, seed)
    return cpu_s_of(server.process.pid) - before, turn


def polite(server: Server, seconds: float, seed: str) -> Turn:
    report = run_open_load(OpenJob(server.port, server.process.pid, POLITE, seed, seconds, patience_s=30.0))
    short_ms = report.streams[0].latencies_ms.get("200", [float("inf")])
    return Turn(percentile(short_ms, 0.5), percentile(short_ms, 0.99), served(report))


def served(report: OpenReport) -> float:
    """The share of the requests that were answered with 200."""
    sent = sum(stream.sent for stream in report.streams)
    return sum(len(stream.latencies_ms.get("200", [])) for stream in report.streams) / sent


def sockets_left(server: Server) -> int:
    """What the server still holds when it has had time to see that all have gone."""
    deadline = time.monotonic() + GONE_WITHIN_S
    while (sockets := open_files_of(server.process.pid)["sockets"]) > FEW_SOCKETS and time.monotonic() < deadline:
        time.sleep(0.2)
    return sockets


def row(name: str, rounds: list[Round], server: Server, sockets: int) -> tuple[list[str], bool]:
    """The line of the table, and whether the target is met."""
    ratio = median(one.beside.p50_ms / one.alone.p50_ms for one in rounds)
    share = median(one.beside.served / one.alone.served for one in rounds)
    answers = sum((Counter(one.answers) for one in rounds), Counter[str]())
    is_met = ratio <= MAX_RATIO and share >= MIN_SHARE and sockets <= FEW_SOCKETS
    rss_mb, most_mb = memory_mb_of(server.process.pid)
    line = [
        name,
        f"{middle(one.alone.p50_ms for one in rounds)}, {middle(one.beside.p50_ms for one in rounds)}",
        f"{ratio:.2f} x" if is_met else f"**{ratio:.2f} x**",
        f"{middle(one.alone.p99_ms for one in rounds)}, {middle(one.beside.p99_ms for one in rounds)}",
        f"{share:.0%}",
        ", ".join(f"{status or 'none'}: {count}" for status, count in answers.most_common()) or "none",
        f"{median(one.alone_cpu_s for one in rounds):.2f}, {median(one.server_cpu_s for one in rounds):.2f}",
        f"{rss_mb:.0f}, {most_mb:.0f}",
        str(sockets),
    ]
    return line, is_met


def middle(values: Iterable[float]) -> str:
    return f"{median(values):.1f}"


if __name__ == "__main__":
    sys.exit(main())
