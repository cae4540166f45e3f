"""Equal texts of several requests run once, and every caller is answered as if theirs had run alone."""

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.errors import InferenceError, LaneLostError, ServiceError
from engine.fair_queue import ANYONE, Caller
from engine.job_outcomes import JobOutcomes
from engine.job_queue import Job, MicroBatch
from engine.lane import OVERDUE_S
from engine.ledger import Account, Reservation
from engine.planner import MAX_PLANNED_TEXTS, MAX_SMALL_TOKENS, cost
from engine.run_queue import RunQueue
from engine.scheduler import Scheduler
from engine.vectors import Matrix
from tests.support.clock import ManualClock
from tests.support.gated import DyingModel, GatedModel, Text
from tests.support.scheduling import (
    LARGE,
    MICRO_BATCH_TOKENS,
    SMALL,
    STUCK_S,
    check_empty,
    open_lanes,
    scheduler_of,
    submitted,
)

Answer = tuple[list[float], int]
"""The vectors of a request, and how many of its texts were coalesced."""


def keys_of(texts: Sequence[Text]) -> list[bytes]:
    return [bytes([text.number]) for text in texts]


async def send(scheduler: Scheduler, model: GatedModel, *texts: Text, caller: Caller = ANYONE) -> Answer:
    admitted = scheduler.admit(model, texts, caller=caller)
    with admitted.reservation:
        vectors = await scheduler.run(admitted, texts, keys_of(texts))
    return vectors[:, 0].tolist(), admitted.coalesced


def submit(scheduler: Scheduler, model: GatedModel, *texts: Text, caller: Caller = ANYONE) -> asyncio.Task[Answer]:
    return asyncio.create_task(send(scheduler, model, *texts, caller=caller))


# --- Requests on real threads -----------------------------------------------------------------------------------------


async def test_waiting_equal_texts_run_once(one_lane: Scheduler, model: GatedModel) -> None:
    first = submit(one_lane, model, Text(SMALL, 0))
    await model.started(1)
    others = [submit(one_lane, model, Text(SMALL, 1)) for _ in range(3)]
    both = submit(one_lane, model, Text(SMALL, 2), Text(SMALL, 1))
    await submitted()
    model.open()
    assert await asyncio.gather(first, *others, both) == [([0], 0), ([1], 0), ([1], 1), ([1], 1), ([2, 1], 1)]
    assert sorted(map(sorted, model.runs)) == [[0], [1, 2]]
    assert one_lane.state().texts == 3
    assert await send(one_lane, model, Text(SMALL, 1)) == ([1], 0)


async def test_text_that_arrives_while_an_equal_one_runs_gets_its_vector(
    one_lane: Scheduler, model: GatedModel
) -> None:
    first = submit(one_lane, model, Text(SMALL, 1))
    await model.started(1)
    whole, part = submit(one_lane, model, Text(SMALL, 1)), submit(one_lane, model, Text(SMALL, 2), Text(SMALL, 1))
    await submitted()
    state = one_lane.state()
    assert (state.waiting_requests, state.waiting_texts) == (1, 1)
    assert state.waiting_seconds == pytest.approx(cost(1, SMALL) * 2 * model.seconds_per_token)
    model.open()
    assert list(await asyncio.gather(first, whole, part)) == [([1], 0), ([1], 1), ([2, 1], 1)]
    assert model.runs == [[1], [2]]


async def test_query_does_not_wait_for_the_bulk_job_that_sent_the_text_first(
    one_lane: Scheduler, model: GatedModel
) -> None:
    running = submit(one_lane, model, Text(LARGE, 0))
    await model.started(1)
    bulk = submit(one_lane, model, *(Text(LARGE, number) for number in range(100, 130)), Text(SMALL, 1))
    await submitted()
    query = submit(one_lane, model, Text(SMALL, 1))
    await model.started(2)  # on the express lane
    assert model.runs == [[0], [1]]
    assert one_lane.state().waiting_texts == 30
    model.open()
    assert await query == ([1], 0)
    assert (await bulk)[1] == 1
    assert sum(run.count(1) for run in model.runs) == 1
    await running


async def test_equal_texts_run_apart_without_keys_or_on_different_model_objects(
    two_lanes: Scheduler, model: GatedModel
) -> None:
    reloaded = GatedModel(model.name, is_open=True)
    first = submit(two_lanes, model, Text(SMALL, 1))
    await model.started(1)
    assert await send(two_lanes, reloaded, Text(SMALL, 1)) == ([1], 0)
    admitted = two_lanes.admit(model, [Text(SMALL, 1)])
    apart = asyncio.create_task(two_lanes.run(admitted, [Text(SMALL, 1)]))
    await model.started(2)
    model.open()
    assert (await apart).tolist() == [[1.0]]
    assert await first == ([1], 0)
    assert (model.runs, admitted.coalesced) == ([[1], [1]], 0)


@pytest.mark.parametrize("leaving", [0, 1], ids=["first", "attached"])
@pytest.mark.parametrize("is_running", [True, False])
async def test_caller_who_leaves_takes_nothing_from_others(
    one_lane: Scheduler, model: GatedModel, leaving: int, *, is_running: bool
) -> None:
    running = submit(one_lane, model, Text(SMALL, 0))
    await model.started(1)
    if is_running:
        model.open(1)
        await running
    requests = [submit(one_lane, model, Text(SMALL, 1)) for _ in range(2)]
    if is_running:
        await model.started(2)
    await submitted()
    requests[leaving].cancel()
    await submitted()
    model.open()
    assert (await requests[1 - leaving])[0] == [1]
    assert model.runs == [[0], [1]]
    await running


async def test_failed_run_fails_all_who_sent_its_text_and_is_not_remembered(
    one_lane: Scheduler, model: GatedModel
) -> None:
    model.fails_on = {1}
    requests = [submit(one_lane, model, Text(SMALL, 1))]
    await model.started(1)
    requests += [submit(one_lane, model, Text(SMALL, 1)) for _ in range(3)]
    await submitted()
    model.open()
    errors = await asyncio.gather(*requests, return_exceptions=True)
    assert [type(error) for error in errors] == [InferenceError] * 4
    assert len(set(map(id, errors))) == 4
    assert model.runs == [[1]]
    model.fails_on = set()
    assert await send(one_lane, model, Text(SMALL, 1)) == ([1], 0)


async def test_equal_texts_that_cause_a_failure_fail_together_and_nothing_else_does(
    one_lane: Scheduler, model: GatedModel
) -> None:
    model.fails_on = {1}
    first = submit(one_lane, model, Text(SMALL, 0))
    await model.started(1)
    failing = [submit(one_lane, model, Text(SMALL, 1)) for _ in range(20)]
    others = [submit(one_lane, model, Text(SMALL, 2)) for _ in range(20)]
    both = submit(one_lane, model, Text(SMALL, 2), Text(SMALL, 1))
    await submitted()
    model.open()
    errors = await asyncio.gather(*failing, both, return_exceptions=True)
    assert [type(error) for error in errors] == [InferenceError] * 21
    assert [vectors for vectors, _ in await asyncio.gather(*others)] == [[2.0]] * 20
    await first
    assert len(model.runs) <= 5  # the first text, the shared run, and each of the three kinds of requests on its own


async def test_thread_that_dies_fails_all_who_sent_its_text(one_lane: Scheduler) -> None:
    dying = DyingModel()
    requests = [submit(one_lane, dying, Text(SMALL, 1))]
    await dying.started(1)
    requests += [submit(one_lane, dying, Text(SMALL, 1)) for _ in range(2)]
    await submitted()
    dying.open()
    errors = await asyncio.gather(*requests, return_exceptions=True)
    assert [type(error) for error in errors] == [LaneLostError] * 3


async def test_nothing_is_attached_to_an_overdue_run(
    two_lanes: Scheduler, model: GatedModel, clock: ManualClock
) -> None:
    overdue = submit(two_lanes, model, Text(SMALL, 1))
    await model.started(1)
    clock.now_s = cost(1, SMALL) * model.seconds_per_token + OVERDUE_S + 0.1
    second = submit(two_lanes, model, Text(SMALL, 1))
    await model.started(2)
    third = submit(two_lanes, model, Text(SMALL, 1))  # attached to the second run
    await submitted()
    assert two_lanes.state().running == 2
    model.open()
    assert list(await asyncio.gather(overdue, second, third)) == [([1], 0), ([1], 0), ([1], 1)]
    assert model.runs == [[1], [1]]


async def test_texts_attached_to_a_micro_batch_that_is_withdrawn_wait_again(
    two_lanes: Scheduler, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.watchdog.CHECK_INTERVAL_S", 0.0)
    hanging, busy, healthy = GatedModel("hanging"), GatedModel("busy"), GatedModel("healthy", is_open=True)
    stuck = submit(two_lanes, hanging, Text(LARGE, 0))
    await hanging.started(1)
    other = submit(two_lanes, busy, Text(4 * LARGE, 0))
    await busy.started(1)
    clock.now_s = cost(1, LARGE) * hanging.seconds_per_token
    behind = [submit(two_lanes, healthy, Text(LARGE, 7)) for _ in range(2)]
    await submitted()
    behind.append(submit(two_lanes, healthy, Text(LARGE, 7)))
    await submitted()
    assert two_lanes.state().waiting_texts == 0  # on the lane whose run should end now
    clock.now_s = STUCK_S + 1
    while two_lanes.state().waiting_texts < 3:  # noqa: ASYNC110 - until the watchdog's next check
        await asyncio.sleep(0)
    busy.open()
    assert sorted(await asyncio.gather(*behind)) == [([7], 0), ([7], 1), ([7], 1)]
    assert healthy.runs == [[7]]
    hanging.open()
    await asyncio.gather(stuck, other)


async def test_nothing_is_attached_to_what_waits_behind_an_overdue_run(
    one_lane: Scheduler, clock: ManualClock, model: GatedModel
) -> None:
    overdue = submit(one_lane, model, Text(LARGE, 0))
    await model.started(1)
    clock.now_s = cost(1, LARGE) * model.seconds_per_token
    behind = submit(one_lane, model, Text(4 * LARGE, 7))
    await submitted()
    assert one_lane.state().waiting_texts == 0
    clock.now_s += OVERDUE_S + 0.1  # the text behind it is not late yet, but will be
    late = submit(one_lane, model, Text(4 * LARGE, 7))
    await submitted()
    assert one_lane.state().waiting_texts == 1
    model.open()
    assert list(await asyncio.gather(behind, late)) == [([7], 0), ([7], 0)]
    await overdue


async def test_text_that_waits_again_gets_the_row_of_an_equal_one_that_runs() -> None:
    overdue = set[MicroBatch]()
    queue, model = RunQueue(lambda _: 0.1, overdue.__contains__), GatedModel()
    first = add(queue, model, 1, ("first",), arrival=0)
    withdrawn = queue.take(lambda _: MICRO_BATCH_TOKENS)
    overdue.add(withdrawn)
    second = add(queue, model, 1, ("second",), arrival=1)
    running = queue.take(lambda _: MICRO_BATCH_TOKENS)
    JobOutcomes(queue).requeue([withdrawn])
    assert not queue
    assert running.rows_by_job.keys() == {second, first}


# --- Fairness ---------------------------------------------------------------------------------------------------------


def add(queue: RunQueue, model: GatedModel, text: int, caller: Caller, arrival: float) -> Job:
    texts, result = [Text(SMALL, text)], asyncio.get_running_loop().create_future()
    reservation = Reservation((), caller)
    job = Job(model, texts, result, 1.0, arrival, is_small=True, reservation=reservation, keys=keys_of(texts))
    queue.add(job)
    return job


@pytest.mark.parametrize("is_running", [True, False])
async def test_caller_of_a_coalesced_text_pays_as_if_it_had_run(*, is_running: bool) -> None:
    queue, model = RunQueue(lambda batch: 0.1 * len(batch.parts)), GatedModel()
    model.batching = "single"
    add(queue, model, 1, ("first",), arrival=0)
    if not is_running:
        add(queue, model, 1, ("coalesced",), arrival=1)
    queue.take(lambda _: 64)
    if is_running:
        add(queue, model, 1, ("coalesced",), arrival=1)
    assert not queue
    add(queue, model, 2, ("coalesced",), arrival=2)
    add(queue, model, 3, ("new",), arrival=3)
    assert [queue.take(lambda _: 64).parts[0][0].caller for _ in range(2)] == [("new",), ("coalesced",)]


async def test_equal_texts_take_no_place_in_a_micro_batch() -> None:
    queue, model = RunQueue(lambda _: 0.1), GatedModel()
    for number in range(2 * MAX_PLANNED_TEXTS):
        add(queue, model, number % 5, (f"caller {number}",), arrival=number)
    batch = queue.take(lambda _: MICRO_BATCH_TOKENS)
    assert sorted(item.number for item in batch.items if isinstance(item, Text)) == [0, 1, 2, 3, 4]
    assert not queue
    assert sum(map(len, batch.rows_by_job.values())) == 2 * MAX_PLANNED_TEXTS


async def test_text_that_runs_is_found_after_an_equal_one_has_begun_on_another_model_object() -> None:
    queue, model, reloaded = RunQueue(lambda _: 1.0), GatedModel(), GatedModel()
    add(queue, model, 1, ("a",), 0)
    running = queue.take(lambda _: 64)
    add(queue, reloaded, 1, ("b",), 1)
    queue.take(lambda _: 64)
    late = add(queue, model, 1, ("c",), 2)
    assert not queue
    assert running.attached == [late]


async def test_texts_that_failed_with_others_are_attached_to_no_run_of_several_requests() -> None:
    """Else a stream of failing requests could keep them from ever running on their own."""
    queue, model = RunQueue(lambda _: 0.1), GatedModel()
    outcomes = JobOutcomes(queue)
    suspect = add(queue, model, 1, ("suspect",), arrival=0)
    add(queue, model, 2, ("other",), arrival=1)
    failed = queue.take(lambda _: MICRO_BATCH_TOKENS)
    queue.end(failed)
    for number in (1, 2):
        add(queue, model, number, ("new",), arrival=-1)
    mixed = queue.take(lambda _: MICRO_BATCH_TOKENS)
    assert len(mixed.parts) == 2
    outcomes.fail_or_isolate(failed, ValueError())
    assert suspect in queue  # not attached to the mixed run, which may fail as well
    queue.end(mixed)
    for number in (1, 2):
        add(queue, model, number, ("newest",), arrival=-1)
    assert suspect not in queue.take(lambda _: MICRO_BATCH_TOKENS).rows_by_job
    equal = add(queue, model, 1, ("equal",), arrival=9)
    while suspect in queue:
        alone = queue.take(lambda _: MICRO_BATCH_TOKENS)
    assert alone.rows_by_job.keys() == {suspect}
    assert equal not in queue


# --- Any interleaving -------------------------------------------------------------------------------------------------

POISON = 0
"""The number of a text that fails every run."""
LETHAL = 9
"""The number of a text that ends the thread that runs it."""


class LethalModel(GatedModel):
    def encode(self, items: Sequence[Text], *, is_lone: bool = False) -> Matrix:
        vectors = super().encode(items, is_lone=is_lone)
        if LETHAL in vectors:
            raise SystemExit("not an error of the model")
        return vectors


steps = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.lists(st.integers(POISON, LETHAL), min_size=1, max_size=4, unique=True)),
        st.tuples(st.sampled_from(["leave", "open", "turn", "wait"]), st.integers(0, 20)),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(steps=steps)
def test_requests_on_real_threads_are_all_answered(steps: list[tuple[str, Any]]) -> None:
    model, sent, left = LethalModel(), list[tuple[list[int], asyncio.Task[Answer]]](), set[int]()
    model.fails_on = {POISON}

    async def run() -> Scheduler:
        with ExitStack() as stack:
            clock = ManualClock()
            scheduler = scheduler_of(open_lanes(clock, stack), clock, count=2)
            for step, value in steps:
                match step:
                    case "send":
                        texts = [Text(5 * number + 1, number) for number in value]
                        sent.append((value, submit(scheduler, model, *texts, caller=(f"caller {len(sent) % 3}",))))
                    case "leave" if value < len(sent):
                        left.add(value)
                        sent[value][1].cancel()
                    case "open":
                        model.open(1)
                    case "wait":
                        clock.now_s += value / 10
                await asyncio.sleep(0)
            model.open()
            async with asyncio.timeout(10):
                await asyncio.gather(*(task for _, task in sent), return_exceptions=True)
            await scheduler.aclose()
            return scheduler

    check_empty(asyncio.run(run()))
    for position, (numbers, task) in enumerate(sent):
        if task.cancelled():
            assert position in left
        elif (error := task.exception()) is not None:
            assert POISON in numbers if isinstance(error, InferenceError) else isinstance(error, LaneLostError)
        else:
            assert task.result()[0] == numbers
            assert not {POISON, LETHAL} & set(numbers)


numbers = st.lists(st.integers(0, 5), min_size=1, max_size=5)


class Interleavings(RuleBasedStateMachine):
    """The queue and the outcomes of micro-batches, with the lanes as a list of the micro-batches that they have."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.models = [GatedModel("one"), GatedModel("two")]
        self.accounts = {False: Account("interactive", 1e9), True: Account("bulk", 1e9)}
        self.queue = RunQueue(lambda batch: 0.01 * len(batch.parts), lambda batch: batch in self.overdue)
        self.outcomes = JobOutcomes(self.queue)
        self.jobs: list[Job] = []
        self.on_lanes: list[MicroBatch] = []
        self.overdue: set[MicroBatch] = set()
        self.may_fail: dict[Job, type[ServiceError]] = {}
        self.computed = 0

    @rule(
        texts=numbers,
        model=st.integers(0, 1),
        kind=st.sampled_from(["small", "large", "bulk"]),
        caller=st.integers(0, 2),
        has_keys=st.sampled_from([True, True, True, False]),
    )
    def arrive(self, texts: list[int], model: int, kind: str, caller: int, *, has_keys: bool) -> None:
        items = [Text(5 + number, number) for number in texts]
        reservation = Reservation([self.accounts[kind == "bulk"]], (f"caller {caller}",))
        job = Job(
            self.models[model],
            items,
            self.loop.create_future(),
            0.5,
            float(len(self.jobs)),
            is_small=kind == "small",
            is_bulk=kind == "bulk",
            reservation=reservation,
            keys=keys_of(items) if has_keys else None,
        )
        self.jobs.append(job)
        self.queue.add(job)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.outcomes.drop(data.draw(st.sampled_from(self.jobs)), ())

    @precondition(lambda self: self.queue)
    @rule(budget=st.integers(5, 64))
    def take(self, budget: int) -> None:
        self.put_on_lane(self.queue.take(lambda _: budget))

    @precondition(lambda self: self.queue.has_small)
    @rule()
    def take_small(self) -> None:
        self.put_on_lane(self.queue.take_small())

    def put_on_lane(self, batch: MicroBatch) -> None:
        texts = self.shared_texts(batch)
        assert len(texts) == len(set(texts))
        if not batch.parts[0][0].is_isolated:  # else its equal may run with texts of others
            for other in self.on_lanes:
                if other.model is batch.model and other not in self.overdue:
                    assert not set(texts) & set(self.shared_texts(other))
        assert all(job.model is batch.model for job in batch.rows_by_job)
        self.on_lanes.append(batch)
        self.computed += len(batch.parts)

    def shared_texts(self, batch: MicroBatch) -> list[int]:
        return [self.number_of(job, index) for job, index in batch.parts if job.keys is not None]

    def number_of(self, job: Job, index: int) -> int:
        item = job.items[index]
        assert isinstance(item, Text)
        return item.number

    def ended(self, data: st.DataObject) -> MicroBatch:
        batch = data.draw(st.sampled_from(self.on_lanes))
        self.on_lanes.remove(batch)
        self.overdue.discard(batch)
        self.queue.end(batch)
        return batch

    @precondition(lambda self: self.on_lanes)
    @rule(data=st.data())
    def run(self, data: st.DataObject) -> None:
        self.finish(self.ended(data))

    def finish(self, batch: MicroBatch) -> None:
        numbers = [self.number_of(job, index) for job, index in batch.parts]
        if POISON in numbers:
            self.outcomes.fail_or_isolate(batch, ValueError())
        else:
            self.outcomes.deliver(batch, np.array([[number] for number in numbers], dtype=np.float32))

    @precondition(lambda self: self.on_lanes)
    @rule(data=st.data(), error=st.sampled_from([MemoryError(), LaneLostError("The thread has died.")]))
    def fail(self, data: st.DataObject, error: Exception) -> None:
        batch = self.ended(data)
        kind = LaneLostError if isinstance(error, LaneLostError) else InferenceError
        self.may_fail.update({job: kind for job in batch.rows_by_job if not job.result.done()})
        self.outcomes.fail_or_isolate(batch, error)

    @precondition(lambda self: self.on_lanes)
    @rule(data=st.data())
    def become_overdue(self, data: st.DataObject) -> None:
        self.overdue.add(data.draw(st.sampled_from(self.on_lanes)))

    @precondition(lambda self: self.on_lanes)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        batches = data.draw(st.lists(st.sampled_from(self.on_lanes), min_size=1, unique=True))
        for batch in batches:
            self.on_lanes.remove(batch)
            self.overdue.discard(batch)
        self.outcomes.requeue(batches)

    @invariant()
    def sums_are_exact(self) -> None:
        waiting = [(job, index) for job in self.jobs for index in job.waiting]
        assert {job for job, _ in waiting} == set(self.queue)
        small = sum(job.items[index].length for job, index in waiting if job.is_small)
        assert self.queue.small_tokens == small
        for is_bulk, account in self.accounts.items():
            jobs = [job for job in self.jobs if job.is_bulk is is_bulk and job.waiting]
            counted = sum(job.counted_s(job.waiting if is_bulk else range(len(job.items))) for job in jobs)
            assert account.held == pytest.approx(counted)
            assert account.callers == len({job.caller for job in jobs})

    @invariant()
    def every_text_of_an_open_request_is_somewhere_once(self) -> None:
        places = {job: list(job.waiting) for job in self.jobs}
        for batch in self.on_lanes:
            for job, rows in batch.rows_by_job.items():
                places[job] += [index for _, index in rows]
        for job in self.jobs:
            if not job.result.done():
                assert len(places[job]) == len(set(places[job])) == job.unfinished

    def teardown(self) -> None:
        runs = 0
        while self.queue or self.on_lanes:
            while self.queue:
                self.put_on_lane(self.queue.take(lambda _: MAX_SMALL_TOKENS))
            batch = self.on_lanes.pop()
            self.queue.end(batch)
            self.finish(batch)
            self.sums_are_exact()
            self.every_text_of_an_open_request_is_somewhere_once()
            runs += 1
            assert runs < 20 * (len(self.jobs) + 5)
        for job in self.jobs:
            self.check_answer(job)
        assert not self.queue.equal_texts
        assert not self.queue.equal_texts.are_waiting
        assert [account.held for account in self.accounts.values()] == [0.0, 0.0]
        self.loop.close()

    def check_answer(self, job: Job) -> None:
        assert job.result.done()
        numbers = [self.number_of(job, index) for index in range(len(job.items))]
        if job.result.cancelled():
            return
        if (error := job.result.exception()) is None:
            assert job.result.result()[:, 0].tolist() == numbers
            assert POISON not in numbers
        else:
            assert isinstance(error, self.may_fail.get(job, InferenceError))
            assert POISON in numbers or job in self.may_fail


Interleavings.TestCase.settings = settings(deadline=None, max_examples=50, stateful_step_count=40, derandomize=True)
test_any_interleaving_answers_every_caller_exactly_once = Interleavings.TestCase
