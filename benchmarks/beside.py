"""This checkout's service beside another checkout's, in turns: did a change make it slower?

Run it as `python benchmarks/beside.py OTHER`, where OTHER is a folder with another revision (`git worktree add OTHER
REVISION`). Both run with this Python and its packages. Shared machines change their pace from minute to minute, so only
ratios within a round count: each has both services once, and every other round begins with the other one.
"""

import argparse
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.cpu import usable_cores  # noqa: E402 - the path above makes the project's own modules importable
from benchmarks.load import Job  # noqa: E402
from benchmarks.processes import BenchError, Server, healthy_server, run_load, spawned_server  # noqa: E402
from benchmarks.report import revision, this_machine  # noqa: E402
from benchmarks.rows import LOADS, Row  # noqa: E402
from benchmarks.startup import first_answer  # noqa: E402
from benchmarks.work import percentile  # noqa: E402

WARM_S = 0.5


@dataclass(frozen=True, slots=True)
class Turn:
    """What one service did in one turn."""

    texts_per_s: float
    cpu_ms_per_text: float
    p50_ms: float


def main() -> int:
    """Print a line per row, and give the exit code."""
    arguments = _arguments()
    print(f"{_machine()}\nthis: {revision()}; other: {arguments.other}", flush=True)
    checkouts = [ROOT, arguments.other]
    print(f"{'row':<58}{'texts/s':>16}{'CPU ms per text':>18}{'p50 ms':>16}", flush=True)
    try:
        with ExitStack() as stack:
            servers = [
                stack.enter_context(healthy_server(log_level="INFO", lanes=usable_cores(), checkout=checkout))
                for checkout in checkouts
            ]
            for number in arguments.rows:
                print(_line(LOADS[number], _rounds(LOADS[number], servers, arguments)), flush=True)
        if arguments.starts:
            print(_start_line([_starts(checkouts, number) for number in range(arguments.starts)]))
    except BenchError as error:
        print(f"beside.py: {error}", file=sys.stderr)
        return 1
    return 0


def _machine() -> str:
    machine = this_machine()
    return f"{machine.cpu}, {machine.cores} usable cores; Python {machine.python}, {machine.packages}; {machine.date}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="beside.py", description="Compare this service with another revision's.")
    parser.add_argument("other", type=Path, help="a checkout of the other revision")
    parser.add_argument("--rows", type=lambda text: [int(row) for row in text.split(",")], default=sorted(LOADS))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--starts", type=int, default=10, help="starts of each service (default: %(default)s)")
    return parser.parse_args()


def _rounds(row: Row, servers: list[Server], arguments: argparse.Namespace) -> list[list[Turn]]:
    """Per round what this service and the other one did, in that order."""
    rounds = []
    for number in range(arguments.rounds):
        order = [0, 1] if number % 2 == 0 else [1, 0]
        turns = {side: _turn(row, servers[side], f"beside/{row.number}/{number}", arguments.seconds) for side in order}
        rounds.append([turns[0], turns[1]])
    return rounds


def _turn(row: Row, server: Server, seed: str, seconds: float) -> Turn:
    report = run_load(Job(server.port, server.process.pid, list(row.streams), seed, WARM_S, seconds))
    done = [sum(share for _, share in stream.shares) for stream in report.streams]
    texts = sum(count * stream.texts_per_request for count, stream in zip(done, row.streams, strict=True))
    latencies = report.streams[0].latencies_ms
    return Turn(texts / seconds, report.server_cpu_s * 1e3 / texts, percentile(latencies, 0.5))


def _starts(checkouts: list[Path], number: int) -> list[float]:
    """Seconds from spawning each service to its first answer, this one's first."""
    seconds = [0.0, 0.0]
    for side in [0, 1] if number % 2 == 0 else [1, 0]:
        began = time.perf_counter()
        with spawned_server(log_level="INFO", lanes=usable_cores(), checkout=checkouts[side]) as server:
            first_answer(server)
            seconds[side] = time.perf_counter() - began
    return seconds


def _start_line(starts: list[list[float]]) -> str:
    mine = statistics.median(seconds[0] for seconds in starts)
    ratio = statistics.median(seconds[0] / seconds[1] for seconds in starts)
    return f"8 start to the first answer: {mine:.2f} s ({ratio:.2f} x)"


def _line(row: Row, rounds: list[list[Turn]]) -> str:
    """This service's median, and in brackets the median of its ratios to the other one."""
    columns = []
    for name, width in (("texts_per_s", 16), ("cpu_ms_per_text", 18), ("p50_ms", 16)):
        mine = [getattr(turns[0], name) for turns in rounds]
        ratios = [getattr(turns[0], name) / getattr(turns[1], name) for turns in rounds]
        columns.append(f"{statistics.median(mine):.2f} ({statistics.median(ratios):.2f} x)".rjust(width))
    return f"{row.number} {row.title[:55]:<56}{''.join(columns)}"


if __name__ == "__main__":
    sys.exit(main())
