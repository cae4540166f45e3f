"""Lanes are real threads here, and they die real deaths."""

import asyncio
import gc
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
from engine.jobs import Job, Matrix, Run
from engine.lane import LANE_NICENESS, LEAD_S, OVERDUE_S, Lane, _Given, open_lanes
from tests.support.clock import ManualClock
from tests.support.gated import GatedModel, Text
from tests.support.servers import ROOT

linux_only = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux keeps a niceness per thread")

Outcome = Matrix | Exception


class Dying(GatedModel):
    """A model that ends the thread which runs it."""

    def encode(self, items: Sequence[Text], *, is_lone: bool = False) -> Matrix:
        super().encode(items, is_lone=is_lone)
        raise SystemExit("not the failure of a model")


class Told:
    """What a lane has told of its runs, in order; each may be awaited."""

    def __init__(self) -> None:
        self.of: list[Run] = []
        self._futures: dict[Run, asyncio.Future[Outcome]] = {}

    def __call__(self, _: Lane, run: Run, outcome: Outcome, seconds: float) -> None:
        assert seconds >= 0
        self.of.append(run)
        self.outcome_of(run).set_result(outcome)

    def outcome_of(self, run: Run) -> asyncio.Future[Outcome]:
        return self._futures.setdefault(run, asyncio.get_running_loop().create_future())


def run_of(model: GatedModel, number: int = 0, *, length: int = 10, ends: float = 0.0, is_small: bool = True) -> Run:
    job = Job(model, [Text(length, number)], asyncio.Future(), token_s=1.0, order=0.0, is_small=is_small)
    return Run(model, [(job, 0)], ends=ends)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def lane(clock: ManualClock) -> Iterator[Lane]:
    lane = Lane("lane-0", clock=clock)
    yield lane
    lane.close()


@pytest.fixture
def told() -> Told:
    return Told()


async def begun(model: GatedModel, runs: int) -> None:
    await asyncio.to_thread(model.wait_for_runs, runs)


async def vectors_of(lane: Lane, told: Told, run: Run) -> Matrix:
    lane.start(run, told)
    outcome = await told.outcome_of(run)
    assert isinstance(outcome, np.ndarray)
    return outcome


async def lost(told: Told, run: Run) -> LaneLostError:
    outcome = await told.outcome_of(run)
    assert isinstance(outcome, LaneLostError)
    return outcome


def thread_of(lane: Lane) -> threading.Thread:
    [thread] = [thread for thread in threading.enumerate() if thread.name == lane.name]
    return thread


async def test_runs_are_done_one_after_the_other_in_the_order_given(lane: Lane, told: Told) -> None:
    model = GatedModel()
    runs = [run_of(model, number) for number in range(3)]
    for run in runs:
        lane.start(run, told)
    assert lane.runs == tuple(runs)
    model.open()
    assert [(await told.outcome_of(run)).tolist() for run in runs] == [[[0.0]], [[1.0]], [[2.0]]]  # type: ignore[union-attr]
    assert told.of == runs
    assert lane.runs == ()
    assert lane.begun is None


async def test_lanes_are_threads_of_their_own(told: Told) -> None:
    lanes, model = open_lanes(3), GatedModel()
    for lane in lanes:
        lane.start(run_of(model), told)
    await begun(model, 3)
    assert len({thread_of(lane).ident for lane in lanes} - {threading.get_ident()}) == 3
    model.open()
    for lane in lanes:
        lane.close()


@linux_only
@pytest.mark.parametrize("niceness", [0, 5])
def test_lanes_yield_to_the_rest_of_the_process_whatever_its_niceness(niceness: int) -> None:
    """Somebody may start the service with `nice`, which cannot be taken back: so it is a process of its own."""
    code = f"""
import asyncio, os, threading
import numpy as np
from engine.lane import open_lanes
from tests.engine.test_lane import GatedModel, Told, run_of
def niceness():
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
class Telling(GatedModel):
    def encode(self, items, *, is_lone=False):
        return np.array([[niceness()]])
async def main():
    [lane], told, run = open_lanes(1), Told(), run_of(Telling())
    lane.start(run, told)
    [[lowered]] = await told.outcome_of(run)
    print(lowered, niceness())
    lane.close()
os.nice({niceness})
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    lane, others = map(int, done.stdout.split())
    assert lane == min(others + LANE_NICENESS, 19)  # Linux knows no more


@pytest.mark.parametrize("error", [ValueError("x"), MemoryError()], ids=["value", "memory"])
async def test_failure_of_a_model_is_told_and_the_thread_lives(lane: Lane, told: Told, error: Exception) -> None:
    class Failing(GatedModel):
        def encode(self, items: Sequence[Text], *, is_lone: bool = False) -> Matrix:
            super().encode(items, is_lone=is_lone)
            raise error

    failing = run_of(Failing(is_open=True))
    lane.start(failing, told)
    assert await told.outcome_of(failing) is error
    thread = thread_of(lane)
    assert (await vectors_of(lane, told, run_of(GatedModel(is_open=True), 7))).tolist() == [[7.0]]
    assert thread_of(lane) is thread
    assert lane.deaths == 0


async def test_model_that_returns_another_number_of_vectors_has_failed(lane: Lane, told: Told) -> None:
    model = GatedModel(is_open=True)
    model.missing_vectors = 1
    run = run_of(model)
    lane.start(run, told)
    assert str(await told.outcome_of(run)) == "the model returned an array of shape (0, 1) where (1, 1) was due"


async def test_thread_that_dies_in_a_run_is_replaced_and_its_caller_told(lane: Lane, told: Told) -> None:
    dying, sound = Dying(), GatedModel(is_open=True)
    fatal, behind = run_of(dying), run_of(sound, 2)
    with capture_logs() as logs:
        lane.start(fatal, told)
        await begun(dying, 1)
        lane.start(behind, told)
        dying.open()
        failure = await lost(told, fatal)
        assert isinstance(failure.__cause__, SystemExit)
        outcome = await told.outcome_of(behind)
        assert isinstance(outcome, np.ndarray)  # it had not begun, so the next thread has it
    assert (lane.deaths, lane.runs) == (1, ())
    assert [entry for entry in logs if entry["log_level"] == "error"] == [
        {
            "event": "lane_died",
            "log_level": "error",
            "lane": "lane-0",
            "models": ["gated"],
            "error": "SystemExit",
            "deaths": 1,
        }
    ]


async def test_thread_that_dies_between_two_runs_loses_none(
    lane: Lane, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No memory is left for the few lines around the model."""
    model = GatedModel(is_open=True)
    await vectors_of(lane, told, run_of(model, 1))
    thread, take = thread_of(lane), _Given.take

    def take_at_the_second_try(given: _Given) -> bool:
        del given
        monkeypatch.setattr(_Given, "take", take)
        raise MemoryError

    monkeypatch.setattr(_Given, "take", take_at_the_second_try)
    assert (await vectors_of(lane, told, run_of(model, 2))).tolist() == [[2.0]]
    assert lane.deaths == 1
    assert thread_of(lane) is not thread


async def test_thread_that_is_gone_without_a_word_is_noticed(
    lane: Lane, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying, sound = Dying(is_open=True), GatedModel(is_open=True)
    fatal = run_of(dying)
    with monkeypatch.context() as silent:
        silent.setattr(lane, "_tell", lambda *_: None)
        lane.start(fatal, told)
        await asyncio.to_thread(thread_of(lane).join, 10)
    assert lane.runs == (fatal,)
    lane.look()
    await lost(told, fatal)
    assert (await vectors_of(lane, told, run_of(sound, 3))).tolist() == [[3.0]]
    lane.look()
    assert lane.deaths == 1


async def test_thread_that_was_found_gone_by_the_next_run_costs_it_nothing(
    lane: Lane, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    fatal = run_of(Dying(is_open=True))
    with monkeypatch.context() as silent:
        silent.setattr(lane, "_tell", lambda *_: None)
        lane.start(fatal, told)
        await asyncio.to_thread(thread_of(lane).join, 10)
    assert (await vectors_of(lane, told, run_of(GatedModel(is_open=True), 4))).tolist() == [[4.0]]
    await lost(told, fatal)


class Unstartable(threading.Thread):
    """As on a machine that has no room for one more thread."""

    def start(self) -> None:
        raise RuntimeError("can't start new thread")


async def test_lane_without_a_thread_tells_its_caller_at_once_and_tries_again_for_the_next_run(
    lane: Lane, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = GatedModel(is_open=True)
    unlucky = run_of(model, 1)
    with monkeypatch.context() as full, capture_logs() as logs:
        full.setattr(threading, "Thread", Unstartable)
        lane.start(unlucky, told)
        assert isinstance((await lost(told, unlucky)).__cause__, RuntimeError)
    assert [entry["event"] for entry in logs] == ["lane_not_started"]
    assert (await vectors_of(lane, told, run_of(model, 2))).tolist() == [[2.0]]
    assert lane.deaths == 0


async def test_runs_that_have_not_begun_can_be_had_back(lane: Lane, told: Told) -> None:
    model = GatedModel()
    first, second = run_of(model, 1), run_of(model, 2)
    lane.start(first, told)
    await begun(model, 1)
    lane.start(second, told)
    assert lane.take_back() == [second]
    assert lane.take_back() == []
    assert lane.runs == (first,)
    model.open()
    await told.outcome_of(first)
    assert (await vectors_of(lane, told, run_of(model, 3))).tolist() == [[3.0]]
    assert model.runs == [[1], [3]]
    assert second not in told.of


async def test_lane_tells_which_run_it_is_in_and_since_when(lane: Lane, told: Told, clock: ManualClock) -> None:
    model, clock.now_s = GatedModel(), 5.0
    run = run_of(model)
    lane.start(run, told)
    await begun(model, 1)
    clock.now_s = 9.0
    assert lane.begun == (run, 5.0)
    model.open()
    await told.outcome_of(run)
    assert lane.begun is None


async def test_lane_takes_its_next_run_shortly_before_the_end_of_the_current_one(lane: Lane, told: Told) -> None:
    model = GatedModel()
    assert lane.takes_work(0.0)
    lane.start(run_of(model, ends=2.0), told)
    assert [lane.takes_work(now) for now in (1.9, 2.0 - LEAD_S, 2.0 + OVERDUE_S)] == [False, True, True]
    assert not lane.takes_work(2.1 + OVERDUE_S)  # what is behind it might wait for ever
    lane.start(run_of(model, ends=3.0), told)
    assert not lane.takes_work(3.0)
    model.open()


@pytest.mark.parametrize("is_small", [True, False])
async def test_small_requests_do_not_wait_for_big_work_nor_for_what_is_overdue(
    lane: Lane, told: Told, *, is_small: bool
) -> None:
    model = GatedModel()
    assert not lane.is_at_big_work(9.0)
    assert not lane.is_overdue(9.0)
    lane.start(run_of(model, ends=2.0, is_small=is_small), told)
    assert lane.is_at_big_work(2.0) is not is_small
    assert lane.is_at_big_work(2.1 + OVERDUE_S)
    assert lane.is_overdue(2.1 + OVERDUE_S)
    model.open()


async def test_closing_leaves_a_thread_alone_that_hangs(told: Told) -> None:
    lane, model = Lane("hanging"), GatedModel()
    lane.start(run_of(model), told)
    await begun(model, 1)
    thread = thread_of(lane)
    with capture_logs() as logs:
        lane.close()
    assert logs == [{"event": "lane_left_running", "log_level": "warning", "lane": "hanging"}]
    assert thread.daemon  # so Python does not wait for it
    model.open()
    await asyncio.to_thread(thread.join, 10)


async def test_closing_ends_an_idle_thread_and_a_lane_that_never_had_one(lane: Lane, told: Told) -> None:
    await vectors_of(lane, told, run_of(GatedModel(is_open=True)))
    thread = thread_of(lane)
    lane.close()
    assert not thread.is_alive()
    Lane("never used").close()


async def test_idle_lane_keeps_no_model_alive(lane: Lane, told: Told) -> None:
    model = GatedModel(is_open=True)
    left = weakref.ref(model)
    await vectors_of(lane, told, run_of(model))
    del model
    told.__init__()  # type: ignore[misc]
    await vectors_of(lane, told, run_of(GatedModel(is_open=True)))  # the thread is past its first run for sure
    gc.collect()
    assert left() is None


def test_result_that_comes_after_the_loop_was_closed_ends_nothing() -> None:
    lane, model, told = Lane("late"), GatedModel(), Told()
    seen: list[Any] = []

    async def leave() -> None:
        lane.start(run_of(model), told)
        await begun(model, 1)
        seen.append(thread_of(lane))

    asyncio.run(leave())
    model.open()
    lane.close()
    seen[0].join(10)
    assert not seen[0].is_alive()
    assert (lane.deaths, told.of) == (0, [])
