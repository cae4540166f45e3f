"""The scheduler on real threads: order, admission, express lane, failures. Every request gets an answer."""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.admission import BULK_MICRO_BATCHES, MAX_COUNTED_SHARE
from engine.errors import DeadlineError, DrainingError, InferenceError, LaneLostError, OverloadedError
from engine.fair_queue import ANYONE
from engine.job_queue import Job
from engine.lane import PREFETCH_S, Lane
from engine.planner import MAX_PLANNED_TEXTS, MAX_SMALL_TOKENS, Batching, cheapest_split, cost
from engine.scheduler import Scheduler
from engine.vectors import Matrix
from tests.support.clock import ManualClock
from tests.support.gated import DyingModel, GatedModel, Text
from tests.support.one_model import run_texts
from tests.support.scheduling import (
    LARGE,
    MICRO_BATCH_TOKENS,
    SMALL,
    STUCK_S,
    open_lanes,
    scheduler_of,
    submit,
    submitted,
    texts_of,
)

each_batching = pytest.mark.parametrize("batching", ["mixed", "equal", "single"])


@pytest.fixture
async def limited(lanes: list[Lane], clock: ManualClock, model: GatedModel) -> AsyncIterator[Scheduler]:
    """A scheduler of one lane that admits one second of work."""
    scheduler = scheduler_of(lanes, clock, count=1, max_queue_s=1.0)
    yield scheduler
    model.open()
    await scheduler.aclose()


def model_of(batching: Batching, *, is_open: bool = False) -> GatedModel:
    model = GatedModel(batching, is_open=is_open)
    model.batching = batching
    return model


# --- Micro-batches ----------------------------------------------------------------------------------------------------


async def test_vectors_are_in_the_order_of_the_texts(two_lanes: Scheduler) -> None:
    model = GatedModel(is_open=True)
    lengths = [3, 300, 40, 41, 5, 300, 12]
    vectors = await run_texts(two_lanes, model, [Text(length, number) for number, length in enumerate(lengths)])
    assert vectors.dtype == np.float32
    assert vectors[:, 0].tolist() == list(range(len(lengths)))
    assert len(model.runs) > 1


async def test_waiting_texts_of_several_requests_share_a_run(one_lane: Scheduler, model: GatedModel) -> None:
    first = submit(one_lane, model, Text(SMALL, 0))
    await model.started(1)
    others = [submit(one_lane, model, Text(SMALL, number)) for number in range(1, 6)]
    await submitted()
    model.open()
    await asyncio.gather(first, *others)
    assert [sorted(run) for run in model.runs] == [[0], [1, 2, 3, 4, 5]]


async def test_idle_lanes_share_a_single_request(two_lanes: Scheduler, model: GatedModel) -> None:
    request = submit(two_lanes, model, *texts_of(LARGE, 4))
    await model.started(2)
    assert sorted(len(run) for run in model.runs) == [2, 2]
    model.open()
    await request


@pytest.mark.parametrize(("lanes", "runs"), [(2, 1), (4, 2), (16, 8)])
async def test_texts_that_arrive_together_start_on_many_idle_lanes_but_share_a_run_on_two(
    lanes: int, runs: int, clock: ManualClock, model: GatedModel
) -> None:
    """On two cores, a run for each takes more from the event loop than it gives. On 16, most lanes would stay idle."""
    with ExitStack() as stack:
        scheduler = scheduler_of(open_lanes(clock, stack, count=lanes), clock, count=lanes)
        requests = [submit(scheduler, model, Text(SMALL, number)) for number in range(lanes)]
        await model.started(runs)
        assert scheduler.state().waiting_texts == 0
        assert len(model.runs) == runs
        model.open()
        await asyncio.gather(*requests)
        await scheduler.aclose()


async def test_only_a_single_text_on_an_idle_service_may_use_all_cores(two_lanes: Scheduler, model: GatedModel) -> None:
    first = submit(two_lanes, model, Text(SMALL, 0))
    await model.started(1)
    assert model.lone_runs == 1
    second = submit(two_lanes, model, Text(SMALL, 1))
    await model.started(2)
    model.open()
    await asyncio.gather(first, second)
    await run_texts(two_lanes, model, [Text(SMALL, 2), Text(SMALL, 3)])
    assert model.lone_runs == 1


async def test_lane_starts_its_next_micro_batch_while_the_event_loop_is_blocked(
    one_lane: Scheduler, model: GatedModel, clock: ManualClock
) -> None:
    first = submit(one_lane, model, Text(LARGE, 0))
    await model.started(1)
    second = submit(one_lane, model, Text(LARGE, 1))
    await submitted()
    assert one_lane.state().waiting_texts == 1  # the run ends much later, so the order is still open
    clock.now_s = cost(1, LARGE) * model.seconds_per_token - PREFETCH_S
    third = submit(one_lane, model, Text(4 * LARGE, 2))
    await submitted()
    assert one_lane.state().waiting_texts == 1
    model.open(1)
    model.wait_for_runs(2)  # blocks the event loop
    model.open()
    await asyncio.gather(first, second, third)
    assert model.runs == [[0], [1], [2]]


async def test_lane_gets_its_next_micro_batch_before_the_current_one_ends_although_nothing_happens(
    one_lane: Scheduler, model: GatedModel, clock: ManualClock
) -> None:
    first = submit(one_lane, model, Text(LARGE, 0))
    await model.started(1)
    second = submit(one_lane, model, Text(LARGE, 1))
    await submitted()
    assert one_lane.state().waiting_texts == 1
    clock.now_s = cost(1, LARGE) * model.seconds_per_token - PREFETCH_S
    async with asyncio.timeout(10):
        while one_lane.state().waiting_texts:  # noqa: ASYNC110 - until the scheduler's timer, in milliseconds
            await asyncio.sleep(0)
    model.open()
    await asyncio.gather(first, second)


async def test_texts_of_callers_that_answer_each_answer_share_their_runs(
    two_lanes: Scheduler, model: GatedModel
) -> None:
    """A lane that started at once would miss the texts that it has just answered, and run half as many at a time."""
    large = submit(two_lanes, model, Text(LARGE, 0))
    await model.started(1)
    other, clients, texts = GatedModel("other", is_open=True), 4, 80

    async def send_one_after_the_other() -> None:
        for number in range(texts):
            await run_texts(two_lanes, other, [Text(SMALL, number)])

    await asyncio.gather(*(send_one_after_the_other() for _ in range(clients)))
    assert len(other.runs) < 1.4 * texts
    model.open()
    await large


async def runs_of_waiting(scheduler: Scheduler, model: GatedModel, *requests: Sequence[Text]) -> list[list[int]]:
    """Return the runs of *requests* that all wait while the model runs another text, which has the number -1."""
    first = submit(scheduler, model, Text(SMALL, -1))
    await model.started(1)
    tasks = [submit(scheduler, model, *request) for request in requests]
    await submitted()
    model.open()
    for request, vectors in zip(requests, await asyncio.gather(*tasks), strict=True):
        assert vectors[:, 0].tolist() == [text.number for text in request]
    await first
    return sorted(sorted(run) for run in model.runs[1:])


@pytest.mark.parametrize(
    ("batching", "expected"),
    [("single", [[1], [2], [3], [4], [5], [6]]), ("equal", [[1, 3, 5], [2, 4], [6]])],
)
async def test_only_texts_that_the_models_batching_allows_share_a_run(
    one_lane: Scheduler, batching: Batching, expected: list[list[int]]
) -> None:
    requests = [[Text(5, 1), Text(6, 2)], [Text(5, 3)], [Text(6, 4), Text(5, 5)], [Text(7, 6)]]
    assert await runs_of_waiting(one_lane, model_of(batching), *requests) == expected


async def test_small_and_large_requests_share_no_run(one_lane: Scheduler) -> None:
    """So the express lane can take any micro-batch of small ones."""
    small, large = texts_of(10, 2), texts_of(10, 5, first=10)
    runs = await runs_of_waiting(one_lane, model_of("equal"), small, large)
    assert runs == [[0, 1], [10, 11, 12, 13, 14]]


async def test_texts_of_equal_length_are_found_behind_many_others(one_lane: Scheduler) -> None:
    """Behind more than a micro-batch is planned from."""
    bulk = [Text(20 + number % 30, number) for number in range(3 * MAX_PLANNED_TEXTS)]
    bulk += [Text(70, 1000), Text(19, 1001)]
    other = [Text(70, 1002), Text(19, 1003)]
    runs = await runs_of_waiting(one_lane, model_of("equal"), bulk, other)
    assert [1000, 1002] in runs
    assert [1001, 1003] in runs
    lengths = {text.number: text.length for text in [*bulk, *other]}
    assert all(len({lengths[number] for number in run}) == 1 for run in runs)


# --- Order ------------------------------------------------------------------------------------------------------------


async def test_models_share_a_lane_in_order_of_arrival(one_lane: Scheduler, model: GatedModel) -> None:
    other = GatedModel("other", is_open=True)
    first = submit(one_lane, model, Text(LARGE, 0))
    await model.started(1)
    second, third = submit(one_lane, other, Text(LARGE, 1)), submit(one_lane, model, Text(LARGE, 2))
    await submitted()
    model.open()
    await asyncio.gather(first, second, third)
    assert model.runs == [[0], [2]]
    assert other.runs == [[1]]


@each_batching
async def test_small_request_overtakes_a_waiting_bulk_job(
    batching: Batching, one_lane: Scheduler, clock: ManualClock
) -> None:
    model = model_of(batching)
    running = submit(one_lane, model, Text(SMALL, 0))
    await model.started(1)
    bulk = submit(one_lane, model, *(Text(LARGE + number, 100 + number) for number in range(20)))
    await submitted()
    clock.now_s = 0.01  # the bulk job takes more than 20 * 112 tokens at 1 ms, so it is due after 2.24 s
    small = submit(one_lane, model, Text(SMALL, 1))
    await submitted()
    model.open()
    await asyncio.gather(running, bulk, small)
    assert model.runs[1] == [1]


@each_batching
async def test_bulk_job_that_has_waited_long_enough_goes_before_later_requests(
    batching: Batching, one_lane: Scheduler, clock: ManualClock
) -> None:
    model = model_of(batching)
    running = submit(one_lane, model, Text(SMALL, 0))
    await model.started(1)
    bulk = submit(one_lane, model, *(Text(300 + number, 100 + number) for number in range(3)))
    await submitted()
    clock.now_s = 10.0
    others = [submit(one_lane, model, Text(LARGE, number)) for number in range(1, 4)]
    await submitted()
    model.open()
    await asyncio.gather(running, bulk, *others)
    assert sorted(number for run in model.runs[1:4] for number in run) == [100, 101, 102]


async def test_express_lane_runs_a_query_while_all_lanes_run_bulk_work(two_lanes: Scheduler, model: GatedModel) -> None:
    bulk = submit(two_lanes, model, *texts_of(LARGE, 32))
    await model.started(2)
    query = GatedModel("query", is_open=True)
    assert (await run_texts(two_lanes, query, [Text(SMALL, 7)])).tolist() == [[7.0]]
    assert not bulk.done()
    assert len(model.runs) == 2


async def test_lanes_are_busy_all_the_time_at_most_whatever_the_express_lane_does(
    two_lanes: Scheduler, model: GatedModel, clock: ManualClock
) -> None:
    bulk = submit(two_lanes, model, *texts_of(LARGE, 32))
    await model.started(2)
    query = GatedModel("query")
    small = submit(two_lanes, query, Text(SMALL, 7))
    await query.started(1)
    clock.now_s += 3.0
    state = two_lanes.state()
    assert (state.lanes, state.lanes_busy_s, sum(state.busy_s.values())) == (2, 2 * 3.0, 3 * 3.0)
    query.open()
    model.open()
    await asyncio.gather(bulk, small)


async def test_express_lane_runs_small_micro_batches_only(two_lanes: Scheduler, model: GatedModel) -> None:
    bulk = submit(two_lanes, model, *texts_of(LARGE, 32))
    await model.started(2)
    query = GatedModel("query")
    queries = [submit(two_lanes, query, text) for text in texts_of(SMALL, 30)]
    await query.started(1)
    query.open(1)
    await query.started(2)
    assert all(len(run) * SMALL <= MAX_SMALL_TOKENS for run in query.runs[:2])
    query.open()
    model.open()
    await asyncio.gather(bulk, *queries)


async def test_express_lane_keeps_to_the_models_batching(two_lanes: Scheduler, model: GatedModel) -> None:
    bulk = submit(two_lanes, model, *texts_of(LARGE, 32))
    await model.started(2)
    query = model_of("equal")
    first = submit(two_lanes, query, Text(5, 0))
    await query.started(1)
    others = [submit(two_lanes, query, Text(5 + number % 2, number)) for number in range(1, 7)]
    await submitted()
    query.open()
    await asyncio.gather(first, *others)
    assert sorted(map(sorted, query.runs)) == [[0], [1, 3, 5], [2, 4, 6]]
    model.open()
    await bulk


async def test_express_lane_stays_idle_while_a_lane_runs_small_requests(one_lane: Scheduler, model: GatedModel) -> None:
    first = submit(one_lane, model, Text(SMALL, 0))
    await model.started(1)
    second = submit(one_lane, model, Text(SMALL, 1))
    await submitted()
    assert one_lane.state().running == 1
    model.open()
    await asyncio.gather(first, second)


# --- Fairness ---------------------------------------------------------------------------------------------------------


async def test_first_request_of_a_caller_goes_next_whatever_another_has_queued(
    one_lane: Scheduler, model: GatedModel
) -> None:
    running = submit(one_lane, model, Text(LARGE, 0), caller=("flood",))
    await model.started(1)
    flood = [submit(one_lane, model, Text(500, 10 + number), caller=("flood",)) for number in range(20)]
    await submitted()
    model.open(1)  # one more of the flood's, so that its virtual time is ahead
    await model.started(2)
    newcomer = submit(one_lane, model, Text(510, 1), caller=("newcomer",))
    await submitted()
    model.open()
    await asyncio.gather(running, newcomer, *flood)
    assert model.runs[2] == [1]


async def test_callers_get_equal_parts_of_a_lane_and_none_starves(one_lane: Scheduler, model: GatedModel) -> None:
    running = submit(one_lane, model, Text(LARGE, 0))
    await model.started(1)
    many = [submit(one_lane, model, Text(500, 100 + number), caller=("many",)) for number in range(12)]
    few = [submit(one_lane, model, *texts_of(500, 4, first=10 * number), caller=("few",)) for number in range(1, 4)]
    await submitted()
    model.open()
    await asyncio.gather(running, *many, *few)
    owners = [run[0] >= 100 for run in model.runs[1:]]
    assert all(abs(sum(owners[:end]) - end / 2) <= 1 for end in range(1, 25))


async def test_text_of_another_caller_shares_the_run_and_pays_for_its_part(
    one_lane: Scheduler, model: GatedModel
) -> None:
    running = submit(one_lane, model, Text(LARGE, 0))
    await model.started(1)
    first = submit(one_lane, model, Text(LARGE, 1), caller=("a",))
    other = submit(one_lane, model, Text(LARGE, 2), caller=("b",))
    await submitted()
    model.open()
    await asyncio.gather(running, first, other)
    assert sorted(model.runs[1]) == [1, 2]


async def test_interactive_request_goes_before_the_callers_own_bulk_but_does_not_stop_it(
    one_lane: Scheduler, clock: ManualClock, model: GatedModel
) -> None:
    running = submit(one_lane, model, Text(LARGE, 0))
    await model.started(1)
    size = 1 + BULK_MICRO_BATCHES * MICRO_BATCH_TOKENS // cost(1, 500)
    bulk = [submit(one_lane, model, *texts_of(500, size, first=100 * job)) for job in range(1, 5)]
    await submitted()
    clock.now_s = 1000.0  # the bulk work is older than anything its size allows
    interactive = [submit(one_lane, model, Text(510, number)) for number in range(1, 9)]
    await submitted()
    model.open()
    await asyncio.gather(running, *bulk, *interactive)
    is_bulk = [run[0] >= 100 for run in model.runs[1:11]]
    assert is_bulk == [False, True, *[False] * 4, True, *[False] * 3]


# --- Admission --------------------------------------------------------------------------------------------------------


async def test_request_above_the_callers_share_is_rejected_whole_with_the_time_to_retry(
    lanes: list[Lane], clock: ManualClock
) -> None:
    scheduler, model = scheduler_of(lanes, clock, count=1, max_queue_s=40.0), GatedModel(seconds_per_token=0.005)
    request_s = 10 * cost(1, LARGE) * model.seconds_per_token
    running = submit(scheduler, model, Text(LARGE, 0))
    await model.started(1)
    waiting = [submit(scheduler, model, *texts_of(LARGE, 10, first=20 * job)) for job in range(1, 6)]
    await submitted()
    assert scheduler.state().waiting_seconds == pytest.approx(5 * request_s)
    with pytest.raises(OverloadedError) as error:
        await run_texts(scheduler, model, texts_of(LARGE, 10, first=1000))
    assert error.value.retry_after_s is not None
    newcomer = submit(scheduler, model, *texts_of(LARGE, 10, first=2000), caller=("other",))
    model.open()
    await asyncio.gather(running, newcomer, *waiting)
    assert not set(range(1000, 1010)) & {number for run in model.runs for number in run}
    await scheduler.aclose()


async def test_overload_is_reported_once_small_requests_fill_the_callers_share(
    limited: Scheduler, model: GatedModel
) -> None:
    assert limited.overload() is None
    large = submit(limited, model, *texts_of(LARGE, 9))
    await model.started(1)
    assert limited.overload() is None  # small requests overtake the large one
    waiting = [submit(limited, model, Text(SMALL, 0))]
    await model.started(2)  # the express lane has taken it
    while limited.overload() is None:
        waiting.append(submit(limited, model, Text(SMALL, len(waiting))))
        await submitted()
    assert limited.is_tight()
    assert limited.overload(("other",)) is None
    model.open()
    await asyncio.gather(large, *waiting)
    assert limited.overload() is None
    assert not limited.is_tight()


async def test_reservation_counts_until_the_request_is_submitted_and_then_exactly(
    lanes: list[Lane], clock: ManualClock, model: GatedModel
) -> None:
    scheduler = scheduler_of(lanes, clock, count=1, max_queue_s=100.0)
    running = submit(scheduler, model, Text(LARGE, 0))
    await model.started(1)
    reservation = scheduler.reserve(model, [300] * 20, ("caller",), 60.0)  # estimated as bulk
    assert scheduler.accounts[1].held == pytest.approx(20 * cost(1, 300) * model.seconds_per_token)
    request = submit(scheduler, model, Text(LARGE, 1), caller=("caller",), reservation=reservation)
    await submitted()
    assert scheduler.accounts[1].held == 0.0
    assert scheduler.accounts[0].held == pytest.approx(cost(1, LARGE) * model.seconds_per_token)
    model.open()
    await asyncio.gather(running, request)
    assert scheduler.accounts[0].held == 0.0
    await scheduler.aclose()


async def test_many_short_texts_are_accepted_if_their_runs_can_end_before_the_deadline(
    lanes: list[Lane], clock: ManualClock
) -> None:
    scheduler, model = scheduler_of(lanes, clock, count=1), GatedModel(is_open=True)
    texts = texts_of(SMALL, 512)
    estimated_s = scheduler.estimate(model, texts).seconds
    assert estimated_s < len(texts) * cost(1, SMALL) * model.seconds_per_token / 2
    with pytest.raises(DeadlineError):
        scheduler.reserve(model, [SMALL] * len(texts), ("caller",), 0.9 * estimated_s)
    with scheduler.reserve(model, [SMALL] * len(texts), ("caller",), estimated_s):
        pass
    assert len(await run_texts(scheduler, model, texts, deadline_s=estimated_s)) == len(texts)
    await scheduler.aclose()


async def test_request_that_cannot_be_queued_leaves_nothing_in_the_ledger(
    one_lane: Scheduler, model: GatedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("engine.job_queue.Job.__post_init__", fail)
    with pytest.raises(MemoryError):
        await run_texts(one_lane, model, texts_of(LARGE, 4))
    assert [account.held for account in one_lane.accounts] == [0.0, 0.0]


async def test_small_requests_are_not_rejected_for_work_that_they_overtake(
    limited: Scheduler, model: GatedModel
) -> None:
    jobs = [submit(limited, model, *texts_of(LARGE, 4)) for _ in range(5)]
    await model.started(1)
    with limited.reserve(model, [LARGE], ANYONE, 60.0), pytest.raises(OverloadedError):
        await run_texts(limited, model, texts_of(LARGE, 4))
    small = submit(limited, model, Text(SMALL, 7))
    model.open()
    assert (await small).tolist() == [[7.0]]
    await asyncio.gather(*jobs)


async def test_request_counts_in_full_until_its_last_text_is_taken(
    lanes: list[Lane], clock: ManualClock, model: GatedModel
) -> None:
    """Later requests share its micro-batches, so it ends later than its own texts suggest."""
    scheduler = scheduler_of(lanes, clock, count=1, max_queue_s=100.0)
    request = submit(scheduler, model, *texts_of(400, 3))  # one text fills a micro-batch
    await model.started(1)
    state = scheduler.state()
    assert state.waiting_texts == 2
    assert state.waiting_seconds == pytest.approx(3 * cost(1, 400) * model.seconds_per_token)
    model.open()
    await request
    assert scheduler.state().waiting_seconds == 0.0
    await scheduler.aclose()


async def test_huge_request_on_a_slow_model_does_not_lock_others_out(lanes: list[Lane], clock: ManualClock) -> None:
    scheduler = scheduler_of(lanes, clock, count=1, max_queue_s=10.0)
    slow, fast = GatedModel("slow", seconds_per_token=1.0), GatedModel("fast", is_open=True)
    huge = submit(scheduler, slow, *texts_of(LARGE, 10))
    await slow.started(1)
    assert scheduler.state().waiting_seconds <= MAX_COUNTED_SHARE * 10.0
    others = [submit(scheduler, fast, Text(SMALL, 1)), submit(scheduler, fast, Text(LARGE, 2))]
    slow.open()
    await asyncio.gather(huge, *others)
    await scheduler.aclose()


@pytest.mark.parametrize("texts", [10, 100])
async def test_empty_queue_admits_a_request_of_any_size(texts: int, lanes: list[Lane], clock: ManualClock) -> None:
    scheduler = scheduler_of(lanes, clock, count=1, max_queue_s=0.001, max_bulk_queue_s=0.001)
    assert len(await run_texts(scheduler, GatedModel(is_open=True), texts_of(LARGE, texts))) == texts
    await scheduler.aclose()


async def test_waiting_time_follows_the_measured_speed(
    lanes: list[Lane], clock: ManualClock, model: GatedModel
) -> None:
    scheduler = scheduler_of(lanes, clock, count=1, max_queue_s=10_000.0)
    request = submit(scheduler, model, *texts_of(94, 2))
    await model.started(1)
    clock.now_s = 2000.0  # 200 tokens took 2000 s: 10 s per token instead of the estimated 1 ms
    model.open(1)
    await request
    running = submit(scheduler, model, Text(88, 1))
    await model.started(2)
    waiting = submit(scheduler, model, Text(88, 2))
    await submitted()
    assert scheduler.state().waiting_seconds == pytest.approx(100 * (0.9 * 0.001 + 0.1 * 10.0))
    model.open()
    await asyncio.gather(running, waiting)
    await scheduler.aclose()


# --- Failures ---------------------------------------------------------------------------------------------------------


async def test_cancelled_caller_takes_its_waiting_texts_out_of_the_queue(
    one_lane: Scheduler, model: GatedModel
) -> None:
    first = submit(one_lane, model, Text(LARGE, 0))
    await model.started(1)
    cancelled = submit(one_lane, model, Text(LARGE, 1), Text(LARGE, 2))
    await submitted()
    cancelled.cancel()
    await submitted()
    state = one_lane.state()
    assert (state.waiting_texts, state.waiting_seconds, state.dropped_texts) == (0, 0.0, 2)
    model.open()
    await first
    assert model.runs == [[0]]


@pytest.mark.parametrize("error", [ValueError(), MemoryError()], ids=["value", "memory"])
async def test_model_error_fails_its_request_only(one_lane: Scheduler, error: Exception) -> None:
    class FailingModel(GatedModel):
        def encode(self, items: Sequence[Text], *, is_lone: bool = False) -> Matrix:
            super().encode(items, is_lone=is_lone)
            raise error

    with pytest.raises(InferenceError) as failure:
        await run_texts(one_lane, FailingModel(is_open=True), [Text(SMALL, 1)])
    assert failure.value.__cause__ is error
    assert (await run_texts(one_lane, GatedModel(is_open=True), [Text(SMALL, 1)])).tolist() == [[1.0]]


@each_batching
async def test_only_the_request_that_causes_an_error_fails(batching: Batching, one_lane: Scheduler) -> None:
    model = model_of(batching)
    model.fails_on = {2}
    first = submit(one_lane, model, Text(SMALL, 0))
    await model.started(1)
    others = [submit(one_lane, model, Text(SMALL, number)) for number in (1, 2, 3)]
    await submitted()
    model.open()
    results = await asyncio.gather(first, *others, return_exceptions=True)
    assert [type(result) for result in results] == [np.ndarray, np.ndarray, InferenceError, np.ndarray]
    shared = [] if batching == "single" else [[1, 2, 3]]
    assert sorted(map(sorted, model.runs)) == sorted([[0], [1], *shared, [2], [3]])
    assert one_lane.state().waiting_texts == 0


async def test_missing_vectors_are_an_inference_error(one_lane: Scheduler) -> None:
    model = GatedModel(is_open=True)
    model.omitted_vectors = 1
    with pytest.raises(InferenceError):
        await run_texts(one_lane, model, [Text(SMALL, 1), Text(SMALL, 2)])


async def test_waiting_texts_of_a_failed_request_never_run(one_lane: Scheduler, model: GatedModel) -> None:
    model.fails_on = {0}
    request = submit(one_lane, model, *(Text(400 - number, number) for number in range(5)))
    await model.started(1)
    model.open()
    with pytest.raises(InferenceError):
        await request
    assert model.runs == [[0]]
    assert one_lane.state().waiting_texts == 0


async def test_thread_that_dies_fails_all_requests_of_its_run_and_work_goes_on(one_lane: Scheduler) -> None:
    dying = DyingModel()
    first = submit(one_lane, dying, Text(SMALL, 0))
    await dying.started(1)
    others = [submit(one_lane, dying, Text(SMALL, number)) for number in (1, 2)]
    await submitted()
    dying.open()
    errors = await asyncio.gather(first, *others, return_exceptions=True)
    assert [type(error) for error in errors] == [LaneLostError] * 3
    assert len(set(map(id, errors))) == 3
    assert (await run_texts(one_lane, GatedModel(is_open=True), [Text(SMALL, 2)])).tolist() == [[2.0]]
    state = one_lane.state()
    assert (state.lanes_died, state.running, state.waiting_texts) == (2, 0, 0)


async def test_what_waits_behind_a_stuck_run_moves_to_another_lane(
    two_lanes: Scheduler, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.watchdog.CHECK_INTERVAL_S", 0.0)
    hanging, other, healthy = GatedModel("hanging"), GatedModel("other"), GatedModel("healthy", is_open=True)
    stuck = submit(two_lanes, hanging, Text(LARGE, 0))
    await hanging.started(1)
    busy = submit(two_lanes, other, Text(4 * LARGE, 0))
    await other.started(1)
    clock.now_s = cost(1, LARGE) * hanging.seconds_per_token
    behind = submit(two_lanes, healthy, Text(LARGE, 7))
    await submitted()
    assert two_lanes.state().waiting_texts == 0  # queued on the lane whose run should end now
    clock.now_s = STUCK_S + 1
    while not two_lanes.state().waiting_texts:  # noqa: ASYNC110 - until the watchdog's next check
        await asyncio.sleep(0)
    other.open()
    assert (await behind).tolist() == [[7.0]]
    await busy
    assert [(run.model, run.seconds) for run in two_lanes.stuck] == [("hanging", STUCK_S + 1)]
    assert two_lanes.state().lanes_stuck == 1
    assert not stuck.done()
    hanging.open()
    await stuck
    assert two_lanes.stuck == []


async def test_express_lane_runs_small_requests_while_the_only_lane_is_stuck(
    one_lane: Scheduler, model: GatedModel, clock: ManualClock
) -> None:
    stuck = submit(one_lane, model, Text(SMALL, 0))
    await model.started(1)
    clock.now_s = 10.0
    healthy = GatedModel("healthy", is_open=True)
    assert (await run_texts(one_lane, healthy, [Text(SMALL, 1)])).tolist() == [[1.0]]
    assert not stuck.done()


async def test_nothing_is_queued_behind_an_overdue_run(
    one_lane: Scheduler, model: GatedModel, clock: ManualClock
) -> None:
    stuck = submit(one_lane, model, Text(LARGE, 0))
    await model.started(1)
    clock.now_s = STUCK_S + 1
    waiting = submit(one_lane, model, Text(LARGE, 1))
    await submitted()
    waiting.cancel()
    await submitted()
    assert one_lane.state().dropped_texts == 1
    model.open()
    await stuck
    assert model.runs == [[0]]


async def test_job_that_cannot_be_planned_fails_alone_and_without_blocking_others(
    one_lane: Scheduler, model: GatedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = submit(one_lane, model, Text(SMALL, 0), caller=("other",))
    await model.started(1)
    failing, other = submit(one_lane, model, Text(LARGE, 1)), submit(one_lane, model, Text(LARGE, 2))
    others = [submit(one_lane, model, Text(length, 3), caller=("other",)) for length in (SMALL, LARGE)]
    await submitted()
    errors = [MemoryError()]

    def fail_once(*args: Any, **options: Any) -> list[range]:
        if errors:
            raise errors.pop()
        return cheapest_split(*args, **options)

    monkeypatch.setattr("engine.job_queue.cheapest_split", fail_once)
    model.open()
    with pytest.raises(InferenceError) as error:
        await failing
    assert isinstance(error.value.__cause__, MemoryError)
    assert (await other).tolist() == [[2.0]]
    await asyncio.gather(running, *others)


async def test_vectors_that_cannot_be_delivered_fail_their_request_only(
    one_lane: Scheduler, model: GatedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = submit(one_lane, model, Text(SMALL, 0))
    await model.started(1)
    failing, other = submit(one_lane, model, Text(SMALL, 1)), submit(one_lane, model, Text(SMALL, 2))
    await submitted()
    deliver = Job.deliver

    def fail_for_one(job: Job, *args: Any) -> None:
        if job.items == (Text(SMALL, 1),):
            raise MemoryError
        deliver(job, *args)

    monkeypatch.setattr(Job, "deliver", fail_for_one)
    model.open()
    with pytest.raises(InferenceError):
        await failing
    assert (await other).tolist() == [[2.0]]
    assert model.runs[1] == [1, 2]
    await running


async def test_closing_answers_running_requests_and_fails_waiting_ones(
    lanes: list[Lane], clock: ManualClock, model: GatedModel
) -> None:
    scheduler = scheduler_of(lanes, clock, count=1)
    running = submit(scheduler, model, Text(LARGE, 0))
    await model.started(1)
    waiting = submit(scheduler, model, Text(LARGE, 1))
    await submitted()
    closing = asyncio.create_task(scheduler.aclose())
    await submitted()
    assert not closing.done()
    with pytest.raises(DrainingError):
        await run_texts(scheduler, model, [Text(SMALL, 2)])
    model.open()
    await closing
    assert (await running).tolist() == [[0.0]]
    with pytest.raises(DrainingError):
        await waiting


async def test_closing_does_not_wait_for_an_overdue_run(
    lanes: list[Lane], clock: ManualClock, model: GatedModel
) -> None:
    scheduler = scheduler_of(lanes, clock, count=1)
    stuck = submit(scheduler, model, Text(LARGE, 0))
    await model.started(1)
    clock.now_s = 10.0
    await scheduler.aclose()
    with pytest.raises(DrainingError):
        await stuck


# --- Properties -------------------------------------------------------------------------------------------------------

text_lengths = st.lists(st.integers(1, 300), min_size=1, max_size=40)
request_lengths = st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=30), min_size=1, max_size=8)
properties = settings(deadline=None, max_examples=30, derandomize=True)


def run_all(batching: Batching, requests: Sequence[Sequence[int]], *, lanes: int = 1) -> tuple[GatedModel, Scheduler]:
    """Submit requests with texts of these lengths at the same time; return the model and the scheduler afterwards."""
    model = model_of(batching, is_open=True)
    numbers = iter(range(sum(map(len, requests))))
    texts = [[Text(length, next(numbers)) for length in request] for request in requests]

    async def run() -> Scheduler:
        with ExitStack() as stack:
            clock = ManualClock()
            scheduler = scheduler_of(open_lanes(clock, stack), clock, count=lanes)
            answers = await asyncio.gather(*(run_texts(scheduler, model, request) for request in texts))
            for request, vectors in zip(texts, answers, strict=True):
                assert vectors[:, 0].tolist() == [text.number for text in request]
            await scheduler.aclose()
            return scheduler

    return model, asyncio.run(run())


@each_batching
@properties
@given(requests=request_lengths)
def test_every_text_runs_exactly_once_as_the_models_batching_allows(
    batching: Batching, requests: list[list[int]]
) -> None:
    model, scheduler = run_all(batching, requests, lanes=2)
    lengths = [length for request in requests for length in request]
    assert sorted(number for run in model.runs for number in run) == list(range(len(lengths)))
    for run in model.runs:
        together = [lengths[number] for number in run]
        assert len(run) * max(together) <= max(MICRO_BATCH_TOKENS, *together)
        assert batching != "single" or len(run) == 1
        assert batching != "equal" or len(set(together)) == 1
    state = scheduler.state()
    assert (state.waiting_texts, state.waiting_seconds, state.dropped_texts) == (0, 0.0, 0)
    assert (state.texts, state.micro_batches) == (len(lengths), len(model.runs))


async def estimated(batching: Batching, lengths: Sequence[int], *, lanes: int) -> tuple[int, float]:
    with ExitStack() as stack:
        clock = ManualClock()
        scheduler = scheduler_of(open_lanes(clock, stack), clock, count=lanes)
        model = model_of(batching)
        estimate = scheduler.estimate(model, [Text(length) for length in lengths])
        assert (model.runs, scheduler.state().waiting_texts) == ([], 0)
        await scheduler.aclose()
        return estimate.micro_batches, estimate.seconds


@pytest.mark.parametrize("lanes", [1, 2])
@each_batching
@properties
@given(lengths=text_lengths)
def test_estimate_equals_the_runs_of_an_idle_service(batching: Batching, lanes: int, lengths: list[int]) -> None:
    micro_batches, seconds = asyncio.run(estimated(batching, lengths, lanes=lanes))
    model, _ = run_all(batching, [lengths], lanes=lanes)
    assert micro_batches == len(model.runs)
    costs = [cost(len(run), max(lengths[number] for number in run)) for run in model.runs]
    if lanes == 1:
        assert seconds == pytest.approx(sum(costs) * model.seconds_per_token)
    assert sum(costs) / lanes - 1e-9 <= seconds / model.seconds_per_token <= sum(costs) + 1e-9


@each_batching
@pytest.mark.parametrize("texts", [MAX_PLANNED_TEXTS, MAX_PLANNED_TEXTS + 1, 3 * MAX_PLANNED_TEXTS])
def test_estimate_holds_for_more_texts_than_are_planned_at_once(batching: Batching, texts: int) -> None:
    micro_batches, _ = asyncio.run(estimated(batching, [3] * texts, lanes=1))
    model, _ = run_all(batching, [[3] * texts])
    assert micro_batches == len(model.runs)


@pytest.mark.parametrize("fails", [False, True])
async def test_job_that_fails_or_is_dropped_while_it_runs_knows_since_when_it_ran(
    one_lane: Scheduler, model: GatedModel, clock: ManualClock, *, fails: bool
) -> None:
    texts = [Text(SMALL, 1)]
    clock.now_s = 3.0
    admitted = one_lane.admit(model, texts, caller=ANYONE, deadline_s=math.inf)
    with admitted.reservation:
        job = one_lane.start(admitted, texts)
        await model.started(1)
        clock.now_s = 5.0
        if fails:
            model.fails_on = {1}
            model.open()
            with pytest.raises(InferenceError):
                await job.result
        else:
            one_lane.drop(job)
    assert (job.queued_s, job.started_s, job.unfinished) == (3.0, 3.0, 1)
