"""Compare this checkout's service with another checkout's, alternately: did a change make it slower?

Run `python benchmarks/beside.py OTHER`, where OTHER is a folder with another revision (`git worktree add OTHER
REVISION`). Both run with this Python and its packages. The speed of shared machines changes from minute to minute, so
only ratios within a round count: each round measures both services, and every other round begins with the other one.
"""

import argparse
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

if not __package__:  # run as a script: let `benchmarks` be found
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.load import Job, run_load, texts_done
from benchmarks.machine import ROOT, describe_run
from benchmarks.processes import BenchError, Server, end_children_on_sigterm, healthy_server, spawned_server
from benchmarks.startup import first_vector
from benchmarks.tables import percentile
from benchmarks.workloads import LOADS, Row
from host.cores import usable_cores

WARM_S = 0.5


@dataclass(frozen=True, slots=True)
class Sample:
    """What one service did in one round."""

    texts_per_s: float
    cpu_ms_per_text: float
    p50_ms: float
    texts_per_run: float


def main() -> int:
    """Print a line per row, and return the exit code."""
    options = _parse_options()
    end_children_on_sigterm()
    print(f"{describe_run('python benchmarks/beside.py')}; other: {options.other}", flush=True)
    print(f"{'row':<58}{'texts/s':>16}{'CPU ms per text':>18}{'p50 ms':>18}{'texts per run':>18}", flush=True)
    checkouts = [ROOT, options.other]
    lanes = usable_cores()
    try:
        with ExitStack() as stack:
            servers = [stack.enter_context(healthy_server(lanes=lanes, checkout=checkout)) for checkout in checkouts]
            for number in options.rows:
                print(_line(LOADS[number], _rounds(LOADS[number], servers, options)), flush=True)
        if options.starts:
            print(_start_line([_starts(checkouts, number, lanes) for number in range(options.starts)]))
    except BenchError as error:
        print(f"beside.py: {error}", file=sys.stderr)
        return 1
    return 0


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="beside.py", description="Compare this service with another revision's.")
    parser.add_argument("other", type=Path, help="a checkout of the other revision")
    parser.add_argument("--rows", type=lambda text: [int(row) for row in text.split(",")], default=sorted(LOADS))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--starts", type=int, default=10, help="starts of each service (default: %(default)s)")
    return parser.parse_args()


def _order(number: int) -> list[int]:
    """Return which service comes first in a round: 0 is this one, 1 the other one."""
    return [0, 1] if number % 2 == 0 else [1, 0]


def _rounds(row: Row, servers: list[Server], options: argparse.Namespace) -> list[list[Sample]]:
    """Return the samples of this service and of the other one, in that order, per round."""
    rounds = []
    for number in range(options.rounds):
        seed = f"beside/{row.number}/{number}"
        samples = {side: _sample(row, servers[side], seed, options.seconds) for side in _order(number)}
        rounds.append([samples[0], samples[1]])
    return rounds


def _sample(row: Row, server: Server, seed: str, seconds: float) -> Sample:
    before = _run_counts(server)
    report = run_load(Job(server.port, server.process.pid, list(row.streams), seed, WARM_S, seconds))
    run_texts, runs = (now - then for now, then in zip(_run_counts(server), before, strict=True))
    texts = texts_done(report, row.streams)
    p50_ms = percentile(report.streams[0].latencies_ms, 0.5)
    return Sample(texts / seconds, report.server_cpu_s * 1e3 / texts, p50_ms, run_texts / runs)


def _run_counts(server: Server) -> tuple[int, int]:
    """Return how many texts the server has run through the model, and in how many runs."""
    counted = server.get("/metrics").json["micro_batches"]
    return counted["texts"], counted["runs"]


def _starts(checkouts: list[Path], number: int, lanes: int) -> list[float]:
    """Return the seconds from starting each service to its first answer, this one's first."""
    seconds = [0.0, 0.0]
    for side in _order(number):
        began = time.perf_counter()
        with spawned_server(lanes=lanes, checkout=checkouts[side]) as server:
            first_vector(server)
            seconds[side] = time.perf_counter() - began
    return seconds


def _start_line(starts: list[list[float]]) -> str:
    ours = median(seconds[0] for seconds in starts)
    ratio = median(seconds[0] / seconds[1] for seconds in starts)
    return f"8 start to the first answer: {ours:.2f} s ({ratio:.2f} x)"


def _line(row: Row, rounds: list[list[Sample]]) -> str:
    """Return this service's medians, and in brackets the median of its ratios to the other one."""
    columns = []
    for name, width in (("texts_per_s", 16), ("cpu_ms_per_text", 18), ("p50_ms", 18), ("texts_per_run", 18)):
        ours = [getattr(samples[0], name) for samples in rounds]
        ratios = [getattr(samples[0], name) / getattr(samples[1], name) for samples in rounds]
        columns.append(f"{median(ours):.2f} ({median(ratios):.2f} x)".rjust(width))
    return f"{row.number} {row.title[:55]:<56}{''.join(columns)}"


if __name__ == "__main__":
    sys.exit(main())
