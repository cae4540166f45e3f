"""Lanes with real threads, some of which die."""

import asyncio
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from engine.errors import LaneLostError
from engine.job_queue import MicroBatch
from engine.lane import LANE_NICENESS, OVERDUE_S, PREFETCH_S, Lane, _Assignment, open_lanes
from engine.vectors import Matrix
from tests.support.clock import ManualClock
from tests.support.garbage import collect_garbage
from tests.support.gated import DyingModel, GatedModel, Text, batch_of
from tests.support.servers import ROOT

linux_only = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux has a niceness per thread")

Outcome = Matrix | Exception


class Outcomes:
    """An `OnDone` callback that records the micro-batches that are done, in order; their outcomes can be awaited."""

    def __init__(self) -> None:
        self.done: list[MicroBatch] = []
        self._futures: dict[MicroBatch, asyncio.Future[Outcome]] = {}

    def __call__(self, _: Lane, batch: MicroBatch, outcome: Outcome, seconds: float) -> None:
        assert seconds >= 0
        self.done.append(batch)
        self.of(batch).set_result(outcome)

    def of(self, batch: MicroBatch) -> asyncio.Future[Outcome]:
        return self._futures.setdefault(batch, asyncio.get_running_loop().create_future())

    async def numbers(self, batch: MicroBatch) -> list[float]:
        """Wait for the vectors of *batch*, and return the numbers of its texts."""
        outcome = await self.of(batch)
        assert isinstance(outcome, np.ndarray)
        return [float(number) for number in outcome[:, 0]]

    async def lost(self, batch: MicroBatch) -> LaneLostError:
        outcome = await self.of(batch)
        assert isinstance(outcome, LaneLostError)
        return outcome


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def lane(clock: ManualClock) -> Iterator[Lane]:
    lane = Lane("lane-0", clock=clock)
    yield lane
    lane.close()


@pytest.fixture
def outcomes() -> Outcomes:
    return Outcomes()


async def is_working(lane: Lane, outcomes: Outcomes) -> bool:
    """Run one more micro-batch on *lane*."""
    batch = batch_of(GatedModel(is_open=True), 7)
    lane.submit(batch, outcomes)
    return await outcomes.numbers(batch) == [7.0]


def thread_of(lane: Lane) -> threading.Thread:
    [thread] = [thread for thread in threading.enumerate() if thread.name == lane.name]
    return thread


async def test_micro_batches_run_one_after_the_other_in_order(lane: Lane, outcomes: Outcomes) -> None:
    model = GatedModel()
    batches = [batch_of(model, number) for number in range(3)]
    for batch in batches:
        lane.submit(batch, outcomes)
    assert lane.batches == tuple(batches)
    model.open()
    assert [await outcomes.numbers(batch) for batch in batches] == [[0.0], [1.0], [2.0]]
    assert outcomes.done == batches
    assert lane.batches == ()
    assert lane.running is None


async def test_time_in_runs_is_counted_also_while_one_goes_on(
    lane: Lane, outcomes: Outcomes, clock: ManualClock
) -> None:
    model, batches = GatedModel(), [batch_of(GatedModel()) for _ in range(2)]
    for number, batch in enumerate(batches, start=1):
        batch.model = model
        lane.submit(batch, outcomes)
        await model.started(number)
        clock.now_s += 2.0
        assert lane.busy_s == 2.0 * number
        model.open(1)
        await outcomes.of(batch)
        clock.now_s += 10.0
        assert lane.busy_s == 2.0 * number, "an idle lane is not busy"


async def test_run_that_ends_while_its_time_is_read_counts_until_its_end(outcomes: Outcomes) -> None:
    """A counter that were higher for a moment would look like a restart at the next scrape."""
    model, clock, is_reading = GatedModel(), ManualClock(), False
    lane: Lane

    def read() -> float:
        if is_reading and threading.current_thread() is threading.main_thread():
            model.open(1)
            while lane.running is not None:
                pass
            clock.now_s += 5.0
        return clock()

    lane, batch = Lane("test", clock=read), batch_of(model)
    lane.submit(batch, outcomes)
    await model.started(1)
    clock.now_s += 2.0
    is_reading = True
    assert lane.busy_s == 2.0
    await outcomes.of(batch)
    lane.close()


async def test_time_in_a_run_that_killed_its_thread_stays_counted(
    lane: Lane, outcomes: Outcomes, clock: ManualClock
) -> None:
    model = DyingModel()
    batch = batch_of(model)
    lane.submit(batch, outcomes)
    await model.started(1)
    clock.now_s += 2.0
    model.open()
    await outcomes.lost(batch)
    clock.now_s += 10.0
    assert lane.busy_s == 2.0


async def test_each_lane_has_its_own_thread(outcomes: Outcomes) -> None:
    lanes, model = open_lanes(3), GatedModel()
    for lane in lanes:
        lane.submit(batch_of(model), outcomes)
    await model.started(3)
    assert len({thread_of(lane).ident for lane in lanes} - {threading.get_ident()}) == 3
    model.open()
    for lane in lanes:
        lane.close()


@linux_only
@pytest.mark.parametrize("niceness", [0, 5])
def test_lanes_have_a_lower_priority_than_the_process(niceness: int) -> None:
    """In another process: its niceness is raised first, as by `nice`, and cannot be lowered again."""
    code = f"""
import asyncio, os, threading
import numpy as np
from engine.lane import open_lanes
from tests.engine.test_lane import GatedModel, Outcomes, batch_of
def niceness():
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
class NicenessModel(GatedModel):
    def encode(self, items, *, is_lone=False):
        return np.array([[niceness()]])
async def main():
    [lane], outcomes, batch = open_lanes(1), Outcomes(), batch_of(NicenessModel())
    lane.submit(batch, outcomes)
    [lowered] = await outcomes.numbers(batch)
    print(int(lowered), niceness())
    lane.close()
os.nice({niceness})
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    lane, others = map(int, done.stdout.split())
    assert lane == min(others + LANE_NICENESS, 19)  # Linux has no higher niceness


@pytest.mark.parametrize("error", [ValueError("x"), MemoryError()], ids=["value", "memory"])
async def test_model_error_is_the_outcome_and_the_thread_goes_on(
    lane: Lane, outcomes: Outcomes, error: Exception
) -> None:
    class FailingModel(GatedModel):
        def encode(self, items: Sequence[Text], *, is_lone: bool = False) -> Matrix:
            super().encode(items, is_lone=is_lone)
            raise error

    failing = batch_of(FailingModel(is_open=True))
    lane.submit(failing, outcomes)
    assert await outcomes.of(failing) is error
    thread = thread_of(lane)
    assert await is_working(lane, outcomes)
    assert thread_of(lane) is thread
    assert lane.restarts == 0


async def test_wrong_number_of_vectors_is_an_error(lane: Lane, outcomes: Outcomes) -> None:
    model = GatedModel(is_open=True)
    model.omitted_vectors = 1
    batch = batch_of(model)
    lane.submit(batch, outcomes)
    assert str(await outcomes.of(batch)) == "the model returned an array of shape (0, 1) instead of (1, 1)"


async def test_thread_that_dies_fails_its_micro_batch_and_is_replaced(lane: Lane, outcomes: Outcomes) -> None:
    dying = DyingModel()
    fatal, next_one = batch_of(dying), batch_of(GatedModel(is_open=True), 2)
    with capture_logs() as logs:
        lane.submit(fatal, outcomes)
        await dying.started(1)
        lane.submit(next_one, outcomes)
        dying.open()
        assert isinstance((await outcomes.lost(fatal)).__cause__, SystemExit)
        assert await outcomes.numbers(next_one) == [2.0]  # not started yet, so the next thread runs it
    assert (lane.restarts, lane.batches) == (1, ())
    assert [entry for entry in logs if entry["log_level"] == "error"] == [
        {
            "event": "lane_died",
            "log_level": "error",
            "lane": "lane-0",
            "models": ["gated"],
            "error": "SystemExit",
            "restarts": 1,
        }
    ]


async def test_thread_that_dies_between_two_micro_batches_loses_none(
    lane: Lane, outcomes: Outcomes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when memory runs out in the few lines around the model run."""
    assert await is_working(lane, outcomes)
    thread, claim = thread_of(lane), _Assignment.claim

    def fail_once(_: _Assignment) -> bool:
        monkeypatch.setattr(_Assignment, "claim", claim)
        raise MemoryError

    monkeypatch.setattr(_Assignment, "claim", fail_once)
    assert await is_working(lane, outcomes)
    assert lane.restarts == 1
    assert thread_of(lane) is not thread


@pytest.mark.parametrize("finder", ["check", "submit"])
async def test_thread_whose_death_is_not_reported_yet_is_found_by_a_check_or_the_next_submit(
    lane: Lane, outcomes: Outcomes, monkeypatch: pytest.MonkeyPatch, finder: str
) -> None:
    fatal, late_calls = batch_of(DyingModel(is_open=True)), list[tuple[Any, ...]]()
    with monkeypatch.context() as late:
        late.setattr(lane, "_call_on_loop", lambda *call: late_calls.append(call))
        lane.submit(fatal, outcomes)
        await asyncio.to_thread(thread_of(lane).join, 10)
    assert lane.batches == (fatal,)
    if finder == "check":
        lane.check_thread()
    assert await is_working(lane, outcomes)
    await outcomes.lost(fatal)
    for report, *arguments in late_calls:
        report(*arguments)
    assert lane.restarts == 1


class UnstartableThread(threading.Thread):
    """A thread on a machine that cannot run one more."""

    def start(self) -> None:
        raise RuntimeError("can't start new thread")


async def test_lane_that_cannot_start_a_thread_fails_its_micro_batch_and_tries_again_for_the_next(
    lane: Lane, outcomes: Outcomes, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = batch_of(GatedModel(is_open=True), 1)
    with monkeypatch.context() as full, capture_logs() as logs:
        full.setattr(threading, "Thread", UnstartableThread)
        lane.submit(failing, outcomes)
        assert isinstance((await outcomes.lost(failing)).__cause__, RuntimeError)
    assert [entry["event"] for entry in logs] == ["lane_not_started"]
    assert await is_working(lane, outcomes)
    assert lane.restarts == 0


async def test_micro_batches_that_have_not_started_can_be_withdrawn(lane: Lane, outcomes: Outcomes) -> None:
    model = GatedModel()
    first, second = batch_of(model, 1), batch_of(model, 2)
    lane.submit(first, outcomes)
    await model.started(1)
    lane.submit(second, outcomes)
    assert lane.withdraw() == [second]
    assert lane.withdraw() == []
    assert lane.batches == (first,)
    model.open()
    assert await outcomes.numbers(first) == [1.0]
    assert await is_working(lane, outcomes)
    assert model.runs == [[1]]
    assert second not in outcomes.done


async def test_lane_reports_its_running_micro_batch_and_since_when(
    lane: Lane, outcomes: Outcomes, clock: ManualClock
) -> None:
    model, clock.now_s = GatedModel(), 5.0
    batch = batch_of(model)
    lane.submit(batch, outcomes)
    await model.started(1)
    clock.now_s = 9.0
    assert lane.running == (batch, 5.0)
    model.open()
    await outcomes.of(batch)
    assert lane.running is None


async def test_lane_accepts_one_more_micro_batch_shortly_before_the_current_one_ends(
    lane: Lane, outcomes: Outcomes
) -> None:
    model = GatedModel()
    assert lane.accepts_work(0.0)
    lane.submit(batch_of(model, expected_end=2.0), outcomes)
    assert [lane.accepts_work(now) for now in (1.9, 2.0 - PREFETCH_S, 2.0 + OVERDUE_S)] == [False, True, True]
    assert not lane.accepts_work(2.1 + OVERDUE_S)  # the current one may never end
    lane.submit(batch_of(model, expected_end=3.0), outcomes)
    assert not lane.accepts_work(3.0)
    model.open()


@pytest.mark.parametrize("is_small", [True, False])
async def test_small_requests_do_not_wait_for_large_or_overdue_work(
    lane: Lane, outcomes: Outcomes, *, is_small: bool
) -> None:
    model = GatedModel()
    assert not lane.is_busy_with_large(9.0)
    assert not lane.is_overdue(9.0)
    lane.submit(batch_of(model, expected_end=2.0, is_small=is_small), outcomes)
    assert lane.is_busy_with_large(2.0) is not is_small
    assert lane.is_busy_with_large(2.1 + OVERDUE_S)
    assert lane.is_overdue(2.1 + OVERDUE_S)
    model.open()


async def test_closing_does_not_wait_for_a_thread_that_hangs(outcomes: Outcomes) -> None:
    lane, model = Lane("hanging"), GatedModel()
    lane.submit(batch_of(model), outcomes)
    await model.started(1)
    thread = thread_of(lane)
    with capture_logs() as logs:
        lane.close()
    assert logs == [{"event": "lane_left_running", "log_level": "warning", "lane": "hanging"}]
    assert thread.daemon  # so Python does not wait for it either
    model.open()
    await asyncio.to_thread(thread.join, 10)


async def test_closing_ends_an_idle_thread(lane: Lane, outcomes: Outcomes) -> None:
    assert await is_working(lane, outcomes)
    thread = thread_of(lane)
    lane.close()
    assert not thread.is_alive()
    Lane("never used").close()


async def test_idle_lane_does_not_keep_a_model_in_memory(lane: Lane) -> None:
    model, outcomes = GatedModel(is_open=True), Outcomes()
    reference = weakref.ref(model)
    batch = batch_of(model)
    lane.submit(batch, outcomes)
    await outcomes.of(batch)
    del model, batch, outcomes
    assert await is_working(lane, Outcomes())  # so the thread has passed its first run
    collect_garbage()
    assert reference() is None


def test_result_that_arrives_after_the_loop_has_closed_is_dropped() -> None:
    lane, model, outcomes = Lane("late"), GatedModel(), Outcomes()

    async def leave() -> threading.Thread:
        lane.submit(batch_of(model), outcomes)
        await model.started(1)
        return thread_of(lane)

    thread = asyncio.run(leave())
    model.open()
    lane.close()
    thread.join(10)
    assert not thread.is_alive()
    assert (lane.restarts, outcomes.done) == (0, [])
