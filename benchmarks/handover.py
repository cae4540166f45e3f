"""Measure what it costs to have a run done by another thread: by a lane, and by an executor of one thread, in turns.

`python benchmarks/handover.py` hands over runs of a model that does nothing, one after the other, and waits for each.
What is timed is the way into the thread and back to who waits on the event loop; CPU is the whole process's.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: let `benchmarks` and the service's modules be found
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

from benchmarks.report import this_machine
from engine.jobs import Batching, Job, Matrix, Run
from engine.lane import Lane

ROUNDS = 15
Way = Callable[[Run], Awaitable[object]]


class Nothing:
    """A model that does nothing, and a text of its."""

    name = "nothing"
    dim = length = 1
    batching: Batching = "mixed"
    seconds_per_token = 0.0
    vector: Matrix = np.zeros((1, 1), np.float32)

    def encode(self, _: Sequence[Any], *, is_lone: bool) -> Matrix:  # noqa: ARG002 - the signature of a model
        return self.vector


def by_lane(lane: Lane) -> Way:
    def hand_over(run: Run) -> asyncio.Future[object]:
        done = asyncio.get_running_loop().create_future()
        lane.start(run, lambda _lane, _run, outcome, _seconds: done.set_result(outcome))
        return done

    return hand_over


def by_executor(executor: ThreadPoolExecutor) -> Way:
    def encode(run: Run) -> tuple[Matrix, float]:
        started = time.monotonic()
        return run.model.encode(run.items, is_lone=run.is_lone), time.monotonic() - started

    def hand_over(run: Run) -> asyncio.Future[object]:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        loop.run_in_executor(executor, encode, run).add_done_callback(lambda future: done.set_result(future.result()))
        return done

    return hand_over


async def measure(runs: int) -> dict[str, tuple[list[float], list[float]]]:
    """Per way, the microseconds of each run, and the microseconds of CPU per run of each round."""
    job = Job(Nothing(), [Nothing()], asyncio.Future(), token_s=1.0, order=0.0, is_small=True)
    run = Run(job.model, [(job, 0)])
    lane = Lane("lane")
    with ThreadPoolExecutor(1) as executor:
        ways = {"an executor of one thread": by_executor(executor), "a lane": by_lane(lane)}
        measured: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ways}
        for number in range(ROUNDS + 1):
            for name, hand_over in ways.items():
                passed_us, cpu_us = await one_round(hand_over, run, runs)
                if number:  # the first round is a warm-up
                    measured[name][0].extend(passed_us)
                    measured[name][1].append(cpu_us)
    lane.close()
    return measured


async def one_round(hand_over: Way, run: Run, runs: int) -> tuple[list[float], float]:
    passed_us, cpu_s = [], time.process_time()
    for _ in range(runs):
        started = time.perf_counter()
        await hand_over(run)
        passed_us.append((time.perf_counter() - started) * 1e6)
    return passed_us, (time.process_time() - cpu_s) / runs * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(prog="handover.py", description="Measure the way into a thread and back.")
    parser.add_argument("--runs", type=int, default=500, help="of each way in each round (default: %(default)s)")
    measured = asyncio.run(measure(parser.parse_args().runs))
    machine = this_machine()
    print(
        f"{machine.cpu}, {machine.cores} cores; Python {machine.python}; {machine.revision}; {ROUNDS} rounds, in turns"
    )
    print(f"{'microseconds per run':<28}{'median':>10}{'p95':>10}{'CPU':>10}")
    for name, (passed_us, cpu_us) in measured.items():
        p95 = statistics.quantiles(passed_us, n=20)[18]
        print(f"{name:<28}{statistics.median(passed_us):10.1f}{p95:10.1f}{statistics.median(cpu_us):10.1f}")


if __name__ == "__main__":
    main()
