"""The run queue between callers, without lanes: whose job the next micro-batch begins with."""

from typing import Any

from engine.fair_queue import AGING, Caller
from engine.job_queue import Job
from engine.ledger import Reservation
from engine.run_queue import RunQueue
from tests.support.gated import GatedModel, Text

EARLY, LATE = ("early",), ("late",)


def add(queue: RunQueue, model: GatedModel, caller: Caller, count: int, *, arrival: float) -> None:
    nobody: Any = None  # waits for the result
    for number in range(count):
        reservation = Reservation((), caller)
        queue.add(Job(model, [Text(60)], nobody, 1.0, arrival + number, is_small=True, reservation=reservation))


def test_what_the_express_lane_has_done_for_a_caller_alone_does_not_make_them_wait_later() -> None:
    queue, model = RunQueue(lambda batch: 1.0 * len(batch.parts)), GatedModel()
    model.batching = "single"
    add(queue, model, EARLY, 52, arrival=0)
    for _ in range(50):  # while all lanes are stuck
        queue.take_small()
    add(queue, model, LATE, 10, arrival=100)
    callers = [queue.take(lambda _: 64).parts[0][0].caller for _ in range(4)]
    assert sorted(callers) == [EARLY, EARLY, LATE, LATE]


def test_stream_of_new_callers_starves_no_large_request() -> None:
    queue, model = RunQueue(lambda _: 1.0), GatedModel()
    model.batching = "single"
    add(queue, model, EARLY, 5, arrival=0)
    for number in range(20 * AGING):
        add(queue, model, (f"new {number}",), 1, arrival=10 + number)
        queue.take(lambda _: 64)
    assert EARLY not in [job.caller for job in queue]
