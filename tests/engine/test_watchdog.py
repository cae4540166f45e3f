import asyncio
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from engine.job_queue import MicroBatch
from engine.lane import Lane
from engine.vectors import Matrix
from engine.watchdog import StuckRun, Watchdog
from tests.support.clock import ManualClock
from tests.support.gated import GatedModel, batch_of

STUCK_S = 60.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def model() -> GatedModel:
    return GatedModel()


class WatchedLanes:
    """Two lanes and their watchdog, connected as the scheduler does."""

    def __init__(self, clock: ManualClock) -> None:
        self.lanes = [Lane("lane-0", clock=clock), Lane("lane-1", clock=clock)]
        self.overdue: list[Lane] = []
        self.watchdog = Watchdog(self.lanes, stuck_s=STUCK_S, on_overdue=self.overdue.append, clock=clock)
        self.ended: asyncio.Queue[MicroBatch] = asyncio.Queue()

    def submit(self, batch: MicroBatch, *, lane: int = 0) -> None:
        self.lanes[lane].submit(batch, self._on_done)

    def _on_done(self, lane: Lane, batch: MicroBatch, _: Matrix | Exception, seconds: float) -> None:
        self.watchdog.record_end(lane, batch, seconds)
        self.ended.put_nowait(batch)


@pytest.fixture
def watched(clock: ManualClock, model: GatedModel) -> Iterator[WatchedLanes]:
    watched = WatchedLanes(clock)
    yield watched
    model.open()
    for lane in watched.lanes:
        lane.close()


async def test_run_is_stuck_from_the_configured_time_until_it_ends(
    watched: WatchedLanes, model: GatedModel, clock: ManualClock
) -> None:
    watched.submit(batch_of(model))
    await model.started(1)
    clock.now_s = STUCK_S
    assert watched.watchdog.stuck == []
    for clock.now_s in (STUCK_S + 1, STUCK_S + 5):
        assert watched.watchdog.stuck == [StuckRun("gated", clock.now_s)]
    model.open()
    await watched.ended.get()
    assert watched.watchdog.stuck == []


def test_run_that_ends_during_a_check_is_not_stuck(model: GatedModel, clock: ManualClock) -> None:
    batch = batch_of(model)

    class EndingLane(Lane):
        """A lane whose thread ends its run as soon as it has been looked at."""

        states = iter([(batch, -2 * STUCK_S), None])

        @property
        def running(self) -> tuple[MicroBatch, float] | None:
            return next(self.states)

    watchdog = Watchdog([EndingLane("ending")], stuck_s=STUCK_S, on_overdue=lambda _: None, clock=clock)
    assert watchdog.stuck == [StuckRun("gated", 2 * STUCK_S)]
    assert watchdog.stuck == []


async def test_stuck_run_is_logged_once_when_found_and_once_when_it_ends(
    watched: WatchedLanes, model: GatedModel, clock: ManualClock
) -> None:
    watched.submit(batch_of(model))
    await model.started(1)
    facts = {"lane": "lane-0", "model": "gated", "texts": 1, "longest": 10}
    with capture_logs() as logs:
        for clock.now_s in (0.0, 61.0, 62.0, 63.0):
            watched.watchdog.check()
        model.open()
        await watched.ended.get()
        watched.submit(batch_of(model))
        await watched.ended.get()
        watched.watchdog.check()
    assert logs == [
        {"event": "lane_stuck", "log_level": "error", "seconds": 61.0, **facts},
        {"event": "lane_freed", "log_level": "warning", "seconds": 63.0, **facts},
    ]


async def test_each_check_reports_the_overdue_lanes(
    watched: WatchedLanes, model: GatedModel, clock: ManualClock
) -> None:
    watched.submit(batch_of(model, expected_end=1.0))
    watched.submit(batch_of(model, expected_end=30.0), lane=1)
    for clock.now_s in (0.0, 3.0, 3.0):
        watched.watchdog.check()
    assert watched.overdue == [watched.lanes[0]] * 2


async def test_timer_checks_as_long_as_a_lane_works(
    watched: WatchedLanes, model: GatedModel, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.watchdog.CHECK_INTERVAL_S", 0.0)
    watched.submit(batch_of(model))
    await model.started(1)
    clock.now_s = 100.0
    with capture_logs() as logs:
        watched.watchdog.watch()
        watched.watchdog.watch()
        while len(watched.overdue) < 3:  # noqa: ASYNC110 - the timer gives no other sign
            await asyncio.sleep(0)
        model.open()
        await watched.ended.get()
        checks = len(watched.overdue)
        for _ in range(5):
            await asyncio.sleep(0)
    assert [entry["event"] for entry in logs] == ["lane_stuck", "lane_freed"]
    assert len(watched.overdue) == checks


async def test_closed_watchdog_checks_no_more(
    watched: WatchedLanes, model: GatedModel, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.watchdog.CHECK_INTERVAL_S", 0.0)
    watched.submit(batch_of(model))
    clock.now_s = 100.0
    watched.watchdog.watch()
    watched.watchdog.close()
    for _ in range(5):
        await asyncio.sleep(0)
    assert watched.overdue == []
