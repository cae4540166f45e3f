import asyncio
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from engine import watchdog as watchdog_module
from engine.jobs import Matrix, Run
from engine.lane import Lane
from engine.watchdog import StuckRun, Watchdog
from tests.engine.test_lane import begun, run_of
from tests.support.clock import ManualClock
from tests.support.gated import GatedModel

STUCK_S = 60.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def model() -> Iterator[GatedModel]:
    model = GatedModel()
    yield model
    model.open()


@pytest.fixture
def lanes(clock: ManualClock, model: GatedModel) -> Iterator[list[Lane]]:
    lanes = [Lane("lane-0", clock=clock), Lane("lane-1", clock=clock)]
    yield lanes
    model.open()
    for lane in lanes:
        lane.close()


class Watched:
    """Lanes and their watchdog, put together as the scheduler does."""

    def __init__(self, lanes: list[Lane], clock: ManualClock) -> None:
        self.overdue: list[Lane] = []
        self.dog = Watchdog(lanes, stuck_s=STUCK_S, on_overdue=self.overdue.append, clock=clock)
        self.ended: asyncio.Queue[Run] = asyncio.Queue()

    def start(self, lane: Lane, run: Run) -> None:
        lane.start(run, self._end)

    def _end(self, lane: Lane, run: Run, _: Matrix | Exception, seconds: float) -> None:
        self.dog.note_end(lane, run, seconds)
        self.ended.put_nowait(run)


@pytest.fixture
def watched(lanes: list[Lane], clock: ManualClock) -> Watched:
    return Watched(lanes, clock)


async def test_run_is_stuck_from_the_given_time_on_and_no_more_once_it_has_ended(
    watched: Watched, lanes: list[Lane], model: GatedModel, clock: ManualClock
) -> None:
    watched.start(lanes[0], run_of(model))
    await begun(model, 1)
    clock.now_s = STUCK_S
    assert watched.dog.stuck == []
    clock.now_s = STUCK_S + 1
    assert watched.dog.stuck == [StuckRun("gated", STUCK_S + 1)]
    clock.now_s = STUCK_S + 5
    assert watched.dog.stuck == [StuckRun("gated", STUCK_S + 5)]
    model.open()
    await watched.ended.get()
    assert watched.dog.stuck == []


async def test_stuck_run_is_told_once_and_its_end_once(
    watched: Watched, lanes: list[Lane], model: GatedModel, clock: ManualClock
) -> None:
    watched.start(lanes[0], run_of(model))
    await begun(model, 1)
    facts = {"lane": "lane-0", "model": "gated", "texts": 1, "longest": 10}
    with capture_logs() as logs:
        watched.dog.look()
        for now_s in (61.0, 62.0, 63.0):
            clock.now_s = now_s
            watched.dog.look()
        model.open()
        await watched.ended.get()
        watched.start(lanes[0], run_of(model))
        await watched.ended.get()
        watched.dog.look()
    assert logs == [
        {"event": "lane_stuck", "log_level": "error", "seconds": 61.0, **facts},
        {"event": "lane_freed", "log_level": "warning", "seconds": 63.0, **facts},
    ]


async def test_lane_whose_run_is_overdue_is_told_at_each_look(
    watched: Watched, lanes: list[Lane], model: GatedModel, clock: ManualClock
) -> None:
    watched.start(lanes[0], run_of(model, ends=1.0))
    watched.start(lanes[1], run_of(model, ends=30.0))
    watched.dog.look()
    assert watched.overdue == []
    clock.now_s = 3.0
    watched.dog.look()
    watched.dog.look()
    assert watched.overdue == [lanes[0], lanes[0]]


async def test_it_looks_by_itself_as_long_as_a_lane_is_at_work(
    watched: Watched, lanes: list[Lane], model: GatedModel, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog_module, "LOOK_S", 0.0)
    watched.start(lanes[0], run_of(model))
    await begun(model, 1)
    clock.now_s = 100.0
    with capture_logs() as logs:
        watched.dog.watch()
        watched.dog.watch()
        while len(watched.overdue) < 3:  # noqa: ASYNC110 - its timer is the loop's
            await asyncio.sleep(0)
        model.open()
        await watched.ended.get()
        looks = len(watched.overdue)
        for _ in range(5):
            await asyncio.sleep(0)
    assert [entry["event"] for entry in logs] == ["lane_stuck", "lane_freed"]
    assert len(watched.overdue) == looks
    watched.dog.close()


async def test_closed_watchdog_looks_no_more(
    watched: Watched, lanes: list[Lane], model: GatedModel, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog_module, "LOOK_S", 0.0)
    watched.start(lanes[0], run_of(model))
    clock.now_s = 100.0
    watched.dog.watch()
    watched.dog.close()
    for _ in range(5):
        await asyncio.sleep(0)
    assert watched.overdue == []
