"""Which free lanes wait for the next texts of the callers that they have just answered, and for how long."""

import asyncio
from collections.abc import Iterator

import pytest

from engine.gathering import MIN_SUCCESS, TRIAL_INTERVAL, Gathering
from engine.lane import Lane


@pytest.fixture
def lane() -> Iterator[Lane]:
    lane = Lane("lane")
    yield lane
    lane.close()


def begin(gathering: Gathering, lane: Lane, *, is_crowded: bool = True, seconds: float = 1.0) -> bool:
    """End the run of one text; return whether the lane waits."""
    gathering.begin(lane, 1, seconds, is_crowded=is_crowded)
    return lane in gathering


def gathering_of_returning_callers(lane: Lane, ended: asyncio.Event) -> Gathering:
    gathering = Gathering(ended.set)
    for _ in range(20 * TRIAL_INTERVAL):
        begin(gathering, lane)
        gathering.count(1)
    return gathering


async def test_lane_waits_until_its_texts_are_replaced(lane: Lane) -> None:
    gathering = gathering_of_returning_callers(lane, asyncio.Event())
    assert begin(gathering, lane, is_crowded=False)
    gathering.count(1)
    assert lane not in gathering


async def test_no_lane_waits_at_first_unless_others_wait(lane: Lane) -> None:
    """Then every eighth lane does, as a trial."""
    gathering = Gathering(lambda: None)
    assert not any(begin(gathering, lane, is_crowded=False) for _ in range(2 * TRIAL_INTERVAL))
    waits = [begin(gathering, lane) for _ in range(TRIAL_INTERVAL)]
    assert waits == [False] * (TRIAL_INTERVAL - 1) + [True]
    gathering.end(lane)


async def test_lane_stops_waiting_when_its_time_is_over(lane: Lane) -> None:
    ended = asyncio.Event()
    gathering = Gathering(ended.set)
    for _ in range(TRIAL_INTERVAL):
        begin(gathering, lane)
    assert lane in gathering
    await asyncio.wait_for(ended.wait(), timeout=10)
    assert lane not in gathering


async def test_lanes_no_longer_wait_once_callers_do_not_return(lane: Lane) -> None:
    ended = asyncio.Event()
    gathering = gathering_of_returning_callers(lane, ended)
    waits = 0
    while begin(gathering, lane, is_crowded=False, seconds=1e-6):
        await asyncio.wait_for(ended.wait(), timeout=10)
        ended.clear()
        waits += 1
    assert 1 <= waits <= 1 / (1 - MIN_SUCCESS)
