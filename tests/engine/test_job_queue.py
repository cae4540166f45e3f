"""The queue's sums. What it decides is tested through the scheduler."""

import random
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.job_queue import Job, JobQueue, MicroBatch
from engine.ledger import Account, Reservation
from engine.planner import MAX_PLANNED_TEXTS, cost
from tests.support.gated import GatedModel, Text

MODEL = GatedModel()


@pytest.mark.parametrize("is_bulk", [True, False])
@settings(deadline=None, max_examples=60, derandomize=True)
@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=20), taken=st.integers(1, 20))
def test_requeued_texts_count_as_if_they_had_never_been_taken(lengths: list[int], taken: int, *, is_bulk: bool) -> None:
    nobody: Any = None  # waits for the result
    account = Account("bulk", 1e9)
    texts, reservation = [Text(length) for length in lengths], Reservation([account], ("caller",))
    job = Job(GatedModel(), texts, nobody, 0.5, 0.0, is_small=False, is_bulk=is_bulk, reservation=reservation)
    queue, total_s = JobQueue(), sum(cost(1, length) for length in lengths) * 0.5
    queue.add(job)
    batches = list[MicroBatch]()
    while queue.jobs and len(batches) < taken:
        batches.append(queue.take(job, 512))
        waiting_s = sum(cost(1, lengths[index]) for index in job.waiting) * 0.5
        assert account.held == pytest.approx(total_s if not is_bulk and job.waiting else waiting_s)
        assert queue.tokens == sum(lengths[index] for index in job.waiting)
    for batch in batches:
        queue.requeue(job, [index for _, index in batch.parts])
    assert queue.heads == [job]
    assert sorted(job.waiting) == list(range(len(lengths)))
    assert account.held == pytest.approx(total_s)
    assert queue.tokens == sum(lengths)


def total_cost(jobs: list[list[int]]) -> int:
    """Return the modelled cost of the runs by which a queue empties, for jobs of these lengths."""
    queue, nobody, total = JobQueue(), cast("Any", None), 0
    for number, lengths in enumerate(jobs):
        queue.add(Job(MODEL, [Text(length) for length in lengths], nobody, 0.5, float(number), is_small=False))
    while queue.jobs:
        batch = queue.take(queue.heads[0], 512)
        total += cost(len(batch.parts), batch.longest)
    return total


@pytest.mark.parametrize("longest", [12, 60, 250])
@pytest.mark.parametrize("seed", range(3))
def test_planning_the_neighbours_of_a_text_is_as_good_as_planning_all(
    longest: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = random.Random(seed)  # noqa: S311 - the same lengths in every run
    jobs = [[source.randint(2, longest) for _ in range(32)] for _ in range(8)]
    found = total_cost(jobs)
    monkeypatch.setattr("engine.job_queue.NEIGHBOURS", MAX_PLANNED_TEXTS)
    assert found <= total_cost(jobs) * 1.003
