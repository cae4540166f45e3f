"""The scheduler on real threads: who goes next, who is refused, and that everybody gets an answer."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.admission import SHARE_ADMITTED
from engine.errors import DrainingError, InferenceError, LaneLostError, OverloadedError
from engine.jobs import WINDOW_TEXTS, Batching, Job, Matrix, cut_into_runs
from engine.lane import LEAD_S, Lane
from engine.planner import cost, plan
from engine.scheduler import SMALL_TOKENS, Scheduler
from tests.support.clock import ManualClock
from tests.support.gated import GatedModel, Text

MICRO_BATCH_TOKENS = 512
BIG = 100
SMALL = 10
STUCK_S = 60.0


def opened(clock: ManualClock, stack: ExitStack) -> list[Lane]:
    """Two lanes and an express lane, closed with *stack*."""
    threads = [Lane(name, clock=clock) for name in ("lane-0", "lane-1", "express")]
    for lane in threads:
        stack.callback(lane.close)
    return threads


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def threads(clock: ManualClock) -> Iterator[list[Lane]]:
    with ExitStack() as stack:
        yield opened(clock, stack)


@pytest.fixture
def model() -> Iterator[GatedModel]:
    model = GatedModel()
    yield model
    model.open()


def make(threads: Sequence[Lane], clock: ManualClock, *, lanes: int, max_queue_s: float = 1e9) -> Scheduler:
    return Scheduler(
        lanes=threads[:lanes],
        express=threads[2],
        micro_batch_tokens=MICRO_BATCH_TOKENS,
        max_queue_s=max_queue_s,
        stuck_s=STUCK_S,
        clock=clock,
    )


@pytest.fixture
async def one_lane(threads: list[Lane], clock: ManualClock, model: GatedModel) -> AsyncIterator[Scheduler]:
    scheduler = make(threads, clock, lanes=1)
    yield scheduler
    model.open()
    await scheduler.aclose()


@pytest.fixture
async def two_lanes(threads: list[Lane], clock: ManualClock, model: GatedModel) -> AsyncIterator[Scheduler]:
    scheduler = make(threads, clock, lanes=2)
    yield scheduler
    model.open()
    await scheduler.aclose()


async def begun(model: GatedModel, runs: int) -> None:
    await asyncio.to_thread(model.wait_for_runs, runs)


def ask(scheduler: Scheduler, model: GatedModel, *texts: Text) -> asyncio.Task[Matrix]:
    return asyncio.create_task(scheduler.submit(model, texts))


async def turn() -> None:
    """Let tasks that were just created submit their texts."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_vectors_come_in_the_order_asked(two_lanes: Scheduler) -> None:
    model = GatedModel(is_open=True)
    lengths = [3, 300, 40, 41, 5, 300, 12]
    vectors = await two_lanes.submit(model, [Text(length, number) for number, length in enumerate(lengths)])
    assert vectors.dtype == np.float32
    assert vectors[:, 0].tolist() == list(range(len(lengths)))
    assert len(model.runs) > 1


async def test_texts_that_wait_share_a_run(one_lane: Scheduler, model: GatedModel) -> None:
    first = ask(one_lane, model, Text(SMALL, 0))
    await begun(model, 1)
    others = [ask(one_lane, model, Text(SMALL, number)) for number in range(1, 6)]
    await turn()
    model.open()
    await asyncio.gather(first, *others)
    assert [sorted(run) for run in model.runs] == [[0], [1, 2, 3, 4, 5]]


async def test_idle_lanes_share_a_lone_request(two_lanes: Scheduler, model: GatedModel) -> None:
    request = ask(two_lanes, model, *(Text(BIG, number) for number in range(4)))
    await begun(model, 2)
    assert sorted(len(run) for run in model.runs) == [2, 2]
    model.open()
    await request


async def test_a_text_that_comes_while_nothing_runs_may_use_all_cores(two_lanes: Scheduler, model: GatedModel) -> None:
    first = ask(two_lanes, model, Text(SMALL, 0))
    await begun(model, 1)
    assert model.lone_runs == 1
    second = ask(two_lanes, model, Text(SMALL, 1))
    await begun(model, 2)
    assert model.lone_runs == 1
    model.open()
    await asyncio.gather(first, second)
    await two_lanes.submit(model, [Text(SMALL, 2), Text(SMALL, 3)])
    assert model.lone_runs == 1


async def test_a_lane_goes_on_to_its_next_run_while_the_event_loop_is_busy(
    one_lane: Scheduler, model: GatedModel, clock: ManualClock
) -> None:
    first = ask(one_lane, model, Text(BIG, 0))
    await begun(model, 1)
    second = ask(one_lane, model, Text(BIG, 1))
    await turn()
    assert one_lane.state().waiting_texts == 1  # its end is far, so who goes next is still open
    clock.now_s = cost(1, BIG) * model.seconds_per_token - LEAD_S
    third = ask(one_lane, model, Text(4 * BIG, 2))
    await turn()
    assert one_lane.state().waiting_texts == 1
    model.open(1)
    model.wait_for_runs(2)  # this holds the event loop: nobody tells the lane what comes next
    model.open()
    await asyncio.gather(first, second, third)
    assert model.runs == [[0], [1], [2]]


async def test_a_single_text_overtakes_a_waiting_bulk(
    one_lane: Scheduler, model: GatedModel, clock: ManualClock
) -> None:
    running = ask(one_lane, model, Text(SMALL, 0))
    await begun(model, 1)
    bulk = ask(one_lane, model, *(Text(BIG, 100 + number) for number in range(20)))
    await turn()
    clock.now_s = 0.01  # the bulk takes 20 * 112 tokens at 1 ms: its turn comes at 2.24 s
    single = ask(one_lane, model, Text(SMALL, 1))
    await turn()
    model.open()
    await asyncio.gather(running, bulk, single)
    assert model.runs[1] == [1]


async def test_a_bulk_that_has_waited_long_enough_goes_before_smaller_ones(
    one_lane: Scheduler, model: GatedModel, clock: ManualClock
) -> None:
    running = ask(one_lane, model, Text(SMALL, 0))
    await begun(model, 1)
    bulk = ask(one_lane, model, Text(3 * BIG, 100))
    await turn()
    clock.now_s = 10.0
    single = ask(one_lane, model, Text(BIG, 1))
    await turn()
    model.open()
    await asyncio.gather(running, bulk, single)
    assert model.runs[1:] == [[100], [1]]


async def test_the_express_lane_serves_a_query_while_all_lanes_are_at_bulk(
    two_lanes: Scheduler, model: GatedModel
) -> None:
    bulk = ask(two_lanes, model, *(Text(BIG, 100 + number) for number in range(32)))
    await begun(model, 2)
    query = GatedModel("query", is_open=True)
    vectors = await two_lanes.submit(query, [Text(SMALL, 7)])
    assert vectors.tolist() == [[7.0]]
    assert not bulk.done()
    assert len(model.runs) == 2


async def test_the_express_lane_never_takes_more_than_a_small_run(two_lanes: Scheduler, model: GatedModel) -> None:
    bulk = ask(two_lanes, model, *(Text(BIG, 100 + number) for number in range(32)))
    await begun(model, 2)
    query = GatedModel("query")
    asked = [ask(two_lanes, query, Text(SMALL, number)) for number in range(30)]
    await begun(query, 1)
    query.open(1)
    await begun(query, 2)
    assert all(len(run) * SMALL <= SMALL_TOKENS for run in query.runs[:2])
    query.open()
    model.open()
    await asyncio.gather(bulk, *asked)


async def test_small_requests_wait_for_a_lane_that_is_at_small_ones(one_lane: Scheduler, model: GatedModel) -> None:
    first = ask(one_lane, model, Text(SMALL, 0))
    await begun(model, 1)
    second = ask(one_lane, model, Text(SMALL, 1))
    await turn()
    assert one_lane.state().running == 1
    model.open()
    await asyncio.gather(first, second)


async def test_too_much_work_is_refused_whole_and_says_when_to_come_back(
    threads: list[Lane], clock: ManualClock, model: GatedModel
) -> None:
    scheduler = make(threads, clock, lanes=1, max_queue_s=1.0)
    four_s = 4 * cost(1, BIG) * model.seconds_per_token
    running = ask(scheduler, model, Text(BIG, 0))
    await begun(model, 1)
    waiting = [ask(scheduler, model, *(Text(BIG, 10 * job + number) for number in range(4))) for job in (1, 2)]
    await turn()
    with pytest.raises(OverloadedError) as refused:
        await scheduler.submit(model, [Text(BIG, number) for number in range(30, 34)])
    assert refused.value.retry_after_s == max(1.0, 3 * four_s - 1.0)
    assert scheduler.state().waiting_seconds == pytest.approx(2 * four_s)
    model.open()
    await asyncio.gather(running, *waiting)
    assert not {30, 31} & {number for run in model.runs for number in run}
    await scheduler.aclose()


async def test_any_request_is_refused_unseen_once_small_ones_fill_the_queue(
    threads: list[Lane], clock: ManualClock, model: GatedModel
) -> None:
    scheduler = make(threads, clock, lanes=1, max_queue_s=1.0)
    assert scheduler.refusal() is None
    big = ask(scheduler, model, *(Text(BIG, number) for number in range(9)))
    await begun(model, 1)
    assert scheduler.refusal() is None  # small requests overtake the big one
    small_s = cost(1, SMALL) * model.seconds_per_token
    most_s = SHARE_ADMITTED - SMALL_TOKENS * model.seconds_per_token
    room = int(most_s / small_s)
    waiting = [ask(scheduler, model, Text(SMALL, number)) for number in range(1 + room)]
    await begun(model, 2)  # the express lane has taken some
    while scheduler.refusal() is None:
        waiting.append(ask(scheduler, model, Text(SMALL, len(waiting))))
        await turn()
    assert scheduler.state().waiting_seconds > most_s
    assert (refusal := scheduler.refusal())
    assert refusal.retry_after_s == 1.0
    model.open()
    await asyncio.gather(big, *waiting)
    assert scheduler.refusal() is None
    await scheduler.aclose()


async def test_texts_that_are_too_many_whatever_they_hold_are_refused_before_they_are_tokenised(
    threads: list[Lane], clock: ManualClock, model: GatedModel
) -> None:
    scheduler = make(threads, clock, lanes=1, max_queue_s=1.0)
    running = ask(scheduler, model, Text(BIG))
    await begun(model, 1)
    scheduler.check(model, 8)
    waiting = [ask(scheduler, model, *(Text(BIG, number) for number in range(4))) for _ in range(2)]
    await turn()
    with pytest.raises(OverloadedError):
        scheduler.check(model, 8)
    scheduler.check(model, 1)  # it may be a small one, which overtakes
    model.open()
    await asyncio.gather(running, *waiting)
    scheduler.check(model, 8)
    await scheduler.aclose()


async def test_request_that_is_not_large_counts_as_a_whole_until_its_last_text_is_taken(
    threads: list[Lane], clock: ManualClock, model: GatedModel
) -> None:
    """Later ones share its runs, so it is done later than its own texts alone would be."""
    scheduler = make(threads, clock, lanes=1, max_queue_s=100.0)
    whole_s = 3 * cost(1, 400) * model.seconds_per_token  # one fills a run
    request = ask(scheduler, model, *(Text(400, number) for number in range(3)))
    await begun(model, 1)
    state = scheduler.state()
    assert state.waiting_texts == 2
    assert state.waiting_seconds == pytest.approx(whole_s)
    model.open()
    await request
    assert scheduler.state().waiting_seconds == 0.0
    await scheduler.aclose()


async def test_one_huge_request_on_a_slow_model_keeps_no_others_out(threads: list[Lane], clock: ManualClock) -> None:
    scheduler = make(threads, clock, lanes=1, max_queue_s=10.0)
    slow, fast = GatedModel("slow", seconds_per_token=1.0), GatedModel("fast", is_open=True)
    huge = ask(scheduler, slow, *(Text(BIG, number) for number in range(32)))
    await begun(slow, 1)
    assert scheduler.state().waiting_seconds <= 5.0
    others = [ask(scheduler, fast, Text(SMALL, 1)), ask(scheduler, fast, Text(BIG, 2))]
    slow.open()
    await asyncio.gather(huge, *others)
    await scheduler.aclose()


async def test_small_requests_are_not_refused_for_work_that_they_overtake(
    threads: list[Lane], clock: ManualClock, model: GatedModel
) -> None:
    scheduler = make(threads, clock, lanes=1, max_queue_s=1.0)
    jobs = [ask(scheduler, model, *(Text(BIG, number) for number in range(4))) for _ in range(3)]
    await begun(model, 1)
    with pytest.raises(OverloadedError):
        await scheduler.submit(model, [Text(BIG, 0)] * 4)
    small = ask(scheduler, model, Text(SMALL, 7))
    model.open()
    assert (await small).tolist() == [[7.0]]
    await asyncio.gather(*jobs)
    await scheduler.aclose()


async def test_an_empty_queue_takes_a_request_of_any_size(threads: list[Lane], clock: ManualClock) -> None:
    scheduler = make(threads, clock, lanes=1, max_queue_s=0.001)
    vectors = await scheduler.submit(GatedModel(is_open=True), [Text(BIG, number) for number in range(100)])
    assert len(vectors) == 100
    await scheduler.aclose()


async def test_a_caller_who_leaves_takes_the_waiting_texts_along(one_lane: Scheduler, model: GatedModel) -> None:
    first = ask(one_lane, model, Text(BIG, 0))
    await begun(model, 1)
    leaving = ask(one_lane, model, Text(BIG, 1), Text(BIG, 2))
    await turn()
    leaving.cancel()
    await turn()
    assert one_lane.state().waiting_texts == 0
    assert one_lane.state().waiting_seconds == 0.0
    model.open()
    await first
    assert model.runs == [[0]]
    assert one_lane.state().dropped_texts == 2


async def test_a_model_that_raises_fails_its_callers_and_nobody_else(one_lane: Scheduler) -> None:
    broken, sound = GatedModel("broken", is_open=True), GatedModel("sound", is_open=True)
    broken.fails_on = {1}
    with pytest.raises(InferenceError) as failed:
        await one_lane.submit(broken, [Text(SMALL, 1)])
    assert isinstance(failed.value.__cause__, ValueError)
    assert (await one_lane.submit(sound, [Text(SMALL, 1)])).tolist() == [[1.0]]


async def test_only_the_guilty_one_of_a_shared_run_fails(one_lane: Scheduler, model: GatedModel) -> None:
    model.fails_on = {2}
    first = ask(one_lane, model, Text(SMALL, 0))
    await begun(model, 1)
    others = [ask(one_lane, model, Text(SMALL, number)) for number in (1, 2, 3)]
    await turn()
    model.open()
    results = await asyncio.gather(first, *others, return_exceptions=True)
    assert [type(result) for result in results] == [np.ndarray, np.ndarray, InferenceError, np.ndarray]
    assert sorted(map(sorted, model.runs)) == [[0], [1], [1, 2, 3], [2], [3]]


async def test_a_model_that_returns_too_few_vectors_is_a_failure(one_lane: Scheduler) -> None:
    model = GatedModel(is_open=True)
    model.missing_vectors = 1
    with pytest.raises(InferenceError):
        await one_lane.submit(model, [Text(SMALL, 1), Text(SMALL, 2)])


async def test_a_failed_request_takes_its_waiting_texts_along(one_lane: Scheduler, model: GatedModel) -> None:
    model.fails_on = {0}
    request = ask(one_lane, model, *(Text(400 - number, number) for number in range(5)))
    await begun(model, 1)
    model.open()
    with pytest.raises(InferenceError):
        await request
    assert model.runs == [[0]]
    assert one_lane.state().waiting_texts == 0


async def test_closing_answers_what_runs_and_fails_what_waits(
    threads: list[Lane], clock: ManualClock, model: GatedModel
) -> None:
    scheduler = make(threads, clock, lanes=1)
    running = ask(scheduler, model, Text(BIG, 0))
    await begun(model, 1)
    waiting = ask(scheduler, model, Text(BIG, 1))
    await turn()
    closing = asyncio.create_task(scheduler.aclose())
    await turn()
    assert not closing.done()
    with pytest.raises(DrainingError):
        await scheduler.submit(model, [Text(SMALL, 2)])
    model.open()
    await closing
    assert (await running).tolist() == [[0.0]]
    with pytest.raises(DrainingError):
        await waiting


async def test_the_pace_is_learned_from_runs(threads: list[Lane], clock: ManualClock, model: GatedModel) -> None:
    scheduler = make(threads, clock, lanes=1, max_queue_s=1000.0)
    request = ask(scheduler, model, Text(94, 0), Text(94, 1))
    await begun(model, 1)
    clock.now_s = 2000.0  # 200 tokens took 2000 s: ten per token where a millisecond was guessed
    model.open(1)
    await request
    blocked = ask(scheduler, model, Text(88, 1))
    await begun(model, 2)
    waiting = ask(scheduler, model, Text(88, 2))
    await turn()
    assert scheduler.state().waiting_seconds == pytest.approx(100 * (0.9 * 0.001 + 0.1 * 10.0))
    model.open()
    await asyncio.gather(blocked, waiting)
    await scheduler.aclose()


async def test_models_share_the_lanes_in_order_of_arrival(one_lane: Scheduler, model: GatedModel) -> None:
    other = GatedModel("other", is_open=True)
    first = ask(one_lane, model, Text(BIG, 0))
    await begun(model, 1)
    second, third = ask(one_lane, other, Text(BIG, 1)), ask(one_lane, model, Text(BIG, 2))
    await turn()
    model.open()
    await asyncio.gather(first, second, third)
    assert model.runs == [[0], [2]]
    assert other.runs == [[1]]


def of_batching(batching: Batching, *, is_open: bool = False) -> GatedModel:
    model = GatedModel(batching, is_open=is_open)
    model.batching = batching
    return model


async def runs_of_waiting(scheduler: Scheduler, model: GatedModel, *requests: Sequence[Text]) -> list[list[int]]:
    """The runs of *requests* that all wait while the model is at another text, the number of which is -1."""
    first = ask(scheduler, model, Text(SMALL, -1))
    await begun(model, 1)
    asked = [ask(scheduler, model, *request) for request in requests]
    await turn()
    model.open()
    for request, vectors in zip(requests, await asyncio.gather(*asked), strict=True):
        assert vectors[:, 0].tolist() == [text.number for text in request]
    await first
    return [sorted(run) for run in model.runs[1:]]


async def test_single_texts_never_share_a_run(one_lane: Scheduler) -> None:
    requests = [[Text(SMALL, 1), Text(SMALL, 2)], [Text(SMALL, 3)], [Text(BIG, 4), Text(BIG, 5)]]
    runs = await runs_of_waiting(one_lane, of_batching("single"), *requests)
    assert sorted(runs) == [[1], [2], [3], [4], [5]]


async def test_texts_of_equal_length_share_a_run_and_no_others_do(one_lane: Scheduler) -> None:
    requests = [[Text(5, 1), Text(6, 2)], [Text(5, 3)], [Text(6, 4), Text(5, 5)], [Text(7, 6)]]
    runs = await runs_of_waiting(one_lane, of_batching("equal"), *requests)
    assert sorted(runs) == [[1, 3, 5], [2, 4], [6]]


async def test_small_requests_and_big_ones_share_no_run_even_of_equal_length(one_lane: Scheduler) -> None:
    """The express lane must be able to take the small ones whole."""
    small, big = [Text(10, 1), Text(10, 2)], [Text(10, 10 + number) for number in range(5)]
    runs = await runs_of_waiting(one_lane, of_batching("equal"), small, big)
    assert sorted(runs) == [[1, 2], [10, 11, 12, 13, 14]]


async def test_equal_texts_behind_many_others_of_a_request_are_found(one_lane: Scheduler) -> None:
    """They lie beyond the window of texts that a micro-batch is chosen from."""
    bulk = [Text(20 + number % 30, number) for number in range(3 * WINDOW_TEXTS)]
    bulk += [Text(70, 1000), Text(19, 1001)]
    runs = await runs_of_waiting(one_lane, of_batching("equal"), bulk, [Text(70, 1002), Text(19, 1003)])
    assert [1000, 1002] in runs
    assert [1001, 1003] in runs
    lengths = {text.number: text.length for text in [*bulk, Text(70, 1002), Text(19, 1003)]}
    assert all(len({lengths[number] for number in run}) == 1 for run in runs)


@pytest.mark.parametrize("batching", ["equal", "single"])
async def test_single_text_overtakes_a_waiting_bulk_of_a_model_that_batches(
    batching: Batching, one_lane: Scheduler, clock: ManualClock
) -> None:
    model = of_batching(batching)
    running = ask(one_lane, model, Text(SMALL, 0))
    await begun(model, 1)
    bulk = ask(one_lane, model, *(Text(BIG + number, 100 + number) for number in range(20)))
    await turn()
    clock.now_s = 0.01
    single = ask(one_lane, model, Text(SMALL, 1))
    await turn()
    model.open()
    await asyncio.gather(running, bulk, single)
    assert model.runs[1] == [1]


@pytest.mark.parametrize("batching", ["equal", "single"])
async def test_bulk_that_has_waited_long_enough_goes_first_whatever_shares_its_runs(
    batching: Batching, one_lane: Scheduler, clock: ManualClock
) -> None:
    model = of_batching(batching)
    running = ask(one_lane, model, Text(SMALL, 0))
    await begun(model, 1)
    bulk = ask(one_lane, model, *(Text(BIG + number, 100 + number) for number in range(3)))
    await turn()
    clock.now_s = 10.0
    singles = [ask(one_lane, model, Text(200, number)) for number in range(1, 4)]
    await turn()
    model.open()
    await asyncio.gather(running, bulk, *singles)
    assert sorted(number for run in model.runs[1:4] for number in run) == [100, 101, 102]


async def test_express_lane_takes_texts_of_equal_length_only(two_lanes: Scheduler, model: GatedModel) -> None:
    bulk = ask(two_lanes, model, *(Text(BIG, 100 + number) for number in range(32)))
    await begun(model, 2)
    query = of_batching("equal")
    first = ask(two_lanes, query, Text(5, 0))
    await begun(query, 1)
    others = [ask(two_lanes, query, Text(5 + number % 2, number)) for number in range(1, 7)]
    await turn()
    query.open()
    await asyncio.gather(first, *others)
    assert sorted(map(sorted, query.runs)) == [[0], [1, 3, 5], [2, 4, 6]]
    model.open()
    await bulk


@pytest.mark.parametrize("batching", ["equal", "single"])
async def test_only_the_guilty_one_fails_whatever_shares_its_runs(batching: Batching, one_lane: Scheduler) -> None:
    model = of_batching(batching)
    model.fails_on = {2}
    first = ask(one_lane, model, Text(BIG, 0))
    await begun(model, 1)
    others = [ask(one_lane, model, Text(SMALL, number)) for number in (1, 2, 3)]
    await turn()
    model.open()
    results = await asyncio.gather(first, *others, return_exceptions=True)
    assert [type(result) for result in results] == [np.ndarray, np.ndarray, InferenceError, np.ndarray]
    assert one_lane.state().waiting_texts == 0


lengths_of_texts = st.lists(st.integers(1, 300), min_size=1, max_size=40)
requests_of_texts = st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=30), min_size=1, max_size=8)
each_batching = pytest.mark.parametrize("batching", ["mixed", "equal", "single"])
properties = settings(deadline=None, max_examples=30, derandomize=True)


def ran(batching: Batching, requests: Sequence[Sequence[int]], *, lanes: int = 1) -> tuple[GatedModel, Scheduler]:
    """The model and the scheduler after requests of texts of these lengths, all of them sent at once."""
    model = of_batching(batching, is_open=True)
    numbers = iter(range(sum(map(len, requests))))
    asked = [[Text(length, next(numbers)) for length in request] for request in requests]

    async def run() -> Scheduler:
        with ExitStack() as stack:
            clock = ManualClock()
            scheduler = make(opened(clock, stack), clock, lanes=lanes)
            answers = await asyncio.gather(*(scheduler.submit(model, texts) for texts in asked))
            for texts, vectors in zip(asked, answers, strict=True):
                assert vectors[:, 0].tolist() == [text.number for text in texts]
            await scheduler.aclose()
            return scheduler

    return model, asyncio.run(run())


@each_batching
@properties
@given(requests=requests_of_texts)
def test_every_text_runs_once_with_whom_it_may_and_none_is_lost(batching: Batching, requests: list[list[int]]) -> None:
    model, scheduler = ran(batching, requests, lanes=2)
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


@each_batching
@properties
@given(lengths=lengths_of_texts)
def test_runs_cover_each_text_once_within_the_budget(batching: Batching, lengths: list[int]) -> None:
    runs = cut_into_runs(lengths, batching, budget_tokens=MICRO_BATCH_TOKENS)
    assert sum(texts for texts, _ in runs) == len(lengths)
    assert all(texts == 1 or texts * longest <= MICRO_BATCH_TOKENS for texts, longest in runs)
    assert {longest for _, longest in runs} <= set(lengths)
    if batching == "equal":
        assert sorted(longest for texts, longest in runs for _ in range(texts)) == sorted(lengths)


async def estimated(batching: Batching, lengths: Sequence[int], *, lanes: int) -> tuple[int, float]:
    with ExitStack() as stack:
        clock = ManualClock()
        scheduler = make(opened(clock, stack), clock, lanes=lanes)
        model = of_batching(batching)
        estimate = scheduler.estimate(model, [Text(length) for length in lengths])
        assert (model.runs, scheduler.state().waiting_texts) == ([], 0)
        await scheduler.aclose()
        return estimate.micro_batches, estimate.seconds


@pytest.mark.parametrize("lanes", [1, 2])
@each_batching
@properties
@given(lengths=lengths_of_texts)
def test_estimate_is_of_the_runs_that_really_run(batching: Batching, lanes: int, lengths: list[int]) -> None:
    micro_batches, seconds = asyncio.run(estimated(batching, lengths, lanes=lanes))
    model, _ = ran(batching, [lengths], lanes=lanes)
    assert micro_batches == len(model.runs)
    costs = [cost(len(run), max(lengths[number] for number in run)) for run in model.runs]
    if lanes == 1:
        assert seconds == pytest.approx(sum(costs) * model.seconds_per_token)
    assert sum(costs) / lanes - 1e-9 <= seconds / model.seconds_per_token <= sum(costs) + 1e-9


@each_batching
@pytest.mark.parametrize("texts", [WINDOW_TEXTS, WINDOW_TEXTS + 1, 3 * WINDOW_TEXTS])
def test_estimate_of_many_short_texts_is_of_the_runs_that_really_run(batching: Batching, texts: int) -> None:
    """More texts fit into a run than a micro-batch is chosen from."""
    micro_batches, _ = asyncio.run(estimated(batching, [3] * texts, lanes=1))
    model, _ = ran(batching, [[3] * texts])
    assert micro_batches == len(model.runs)


async def test_memory_that_runs_out_in_a_run_fails_its_request_only(one_lane: Scheduler) -> None:
    class Hungry(GatedModel):
        def encode(self, items: Sequence[Text], *, is_lone: bool = False) -> Matrix:
            super().encode(items, is_lone=is_lone)
            raise MemoryError

    with pytest.raises(InferenceError) as failed:
        await one_lane.submit(Hungry("hungry", is_open=True), [Text(SMALL, 1)])
    assert isinstance(failed.value.__cause__, MemoryError)
    assert (await one_lane.submit(GatedModel(is_open=True), [Text(SMALL, 2)])).tolist() == [[2.0]]


class Dying(GatedModel):
    """Ends the thread that runs it."""

    def encode(self, items: Sequence[Text], *, is_lone: bool = False) -> Matrix:
        super().encode(items, is_lone=is_lone)
        raise SystemExit


async def test_thread_that_dies_fails_those_who_share_its_run_and_the_scheduler_goes_on(one_lane: Scheduler) -> None:
    dying = Dying()
    first = ask(one_lane, dying, Text(SMALL, 0))
    await begun(dying, 1)
    others = [ask(one_lane, dying, Text(SMALL, number)) for number in (1, 2)]
    await turn()
    dying.open()
    failures = await asyncio.gather(first, *others, return_exceptions=True)
    assert [type(failure) for failure in failures] == [LaneLostError] * 3
    assert len(set(map(id, failures))) == 3
    assert (await one_lane.submit(GatedModel(is_open=True), [Text(SMALL, 2)])).tolist() == [[2.0]]
    state = one_lane.state()
    assert (state.lanes_died, state.running, state.waiting_texts) == (2, 0, 0)


async def test_while_a_lane_is_stuck_the_others_take_what_waited_behind_it(
    two_lanes: Scheduler, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.watchdog.LOOK_S", 0.0)
    hanging, other, sound = GatedModel("hanging"), GatedModel("other"), GatedModel("sound", is_open=True)
    stuck = ask(two_lanes, hanging, Text(BIG, 0))
    await begun(hanging, 1)
    busy = ask(two_lanes, other, Text(4 * BIG, 0))
    await begun(other, 1)
    clock.now_s = cost(1, BIG) * hanging.seconds_per_token
    behind = ask(two_lanes, sound, Text(BIG, 7))
    await turn()
    assert two_lanes.state().waiting_texts == 0  # the hanging run was expected to end
    clock.now_s = STUCK_S + 1
    while not two_lanes.state().waiting_texts:  # noqa: ASYNC110 - until the watchdog looks
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


async def test_small_requests_are_served_while_the_only_lane_is_stuck(
    one_lane: Scheduler, model: GatedModel, clock: ManualClock
) -> None:
    stuck = ask(one_lane, model, Text(SMALL, 0))
    await begun(model, 1)
    clock.now_s = 10.0
    sound = GatedModel("sound", is_open=True)
    assert (await one_lane.submit(sound, [Text(SMALL, 1)])).tolist() == [[1.0]]
    assert not stuck.done()


async def test_who_waits_behind_a_run_that_hangs_may_leave(
    one_lane: Scheduler, model: GatedModel, clock: ManualClock
) -> None:
    stuck = ask(one_lane, model, Text(BIG, 0))
    await begun(model, 1)
    clock.now_s = STUCK_S + 1
    behind = ask(one_lane, model, Text(BIG, 1))
    await turn()
    behind.cancel()
    await turn()
    assert one_lane.state().dropped_texts == 1
    model.open()
    await stuck
    assert model.runs == [[0]]


async def test_closing_does_not_wait_for_a_run_that_may_never_end(
    threads: list[Lane], clock: ManualClock, model: GatedModel
) -> None:
    scheduler = make(threads, clock, lanes=1)
    stuck = ask(scheduler, model, Text(BIG, 0))
    await begun(model, 1)
    clock.now_s = 10.0
    await scheduler.aclose()
    with pytest.raises(DrainingError):
        await stuck


async def test_request_that_cannot_be_cut_into_runs_fails_and_holds_up_nobody(
    one_lane: Scheduler, model: GatedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = ask(one_lane, model, Text(SMALL, 0))
    await begun(model, 1)
    unlucky, lucky = ask(one_lane, model, Text(BIG, 1)), ask(one_lane, model, Text(BIG, 2))
    await turn()
    failures = [MemoryError()]

    def plan_without_memory(*args: Any, **options: Any) -> list[range]:
        if failures:
            raise failures.pop()
        return plan(*args, **options)

    monkeypatch.setattr("engine.jobs.plan", plan_without_memory)
    model.open()
    with pytest.raises(InferenceError) as failed:
        await unlucky
    assert isinstance(failed.value.__cause__, MemoryError)
    assert (await lucky).tolist() == [[2.0]]
    await running


async def test_answer_that_cannot_be_handed_out_fails_its_caller_only(
    one_lane: Scheduler, model: GatedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = ask(one_lane, model, Text(SMALL, 0))
    await begun(model, 1)
    unlucky, lucky = ask(one_lane, model, Text(SMALL, 1)), ask(one_lane, model, Text(SMALL, 2))
    await turn()
    hand_out = Job.hand_out

    def hand_out_without_memory(job: Job, *args: Any) -> None:
        if job.items == (Text(SMALL, 1),):
            raise MemoryError
        hand_out(job, *args)

    monkeypatch.setattr(Job, "hand_out", hand_out_without_memory)
    model.open()
    with pytest.raises(InferenceError):
        await unlucky
    assert (await lucky).tolist() == [[2.0]]
    assert model.runs[1] == [1, 2]
    await running
