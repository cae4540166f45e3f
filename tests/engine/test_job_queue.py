"""The queue's sums. What it decides is tested through the scheduler."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.job_queue import Job, JobQueue, MicroBatch
from engine.ledger import Account, Reservation
from engine.planner import cost
from tests.support.gated import GatedModel, Text


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
    while queue and len(batches) < taken:
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
