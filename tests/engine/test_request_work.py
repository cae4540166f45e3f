"""What the engine notes of a request while it works for it."""

import pytest

from telemetry.request_work import RequestWork, Stage
from tests.support.clock import ManualClock


def test_slices_of_a_request_extend_its_run() -> None:
    work = RequestWork()
    work.add_run(1.0, 2.0, 3.0)
    work.add_run(1.5, 2.5, 4.0)
    assert work.stages == [Stage("queue", 1.0, 2.0), Stage("run", 2.0, 4.0)]
    assert work.seconds("queue") == 1.0
    assert work.seconds("load") is None


def test_request_that_was_dropped_has_waited_unless_a_part_of_it_ran() -> None:
    work = RequestWork()
    work.add_unfinished(1.0, 0.0, 4.0)
    work.add_unfinished(1.0, 0.0, 5.0)  # another slice of it
    assert work.stages == [Stage("queue", 1.0, 4.0)]
    work = RequestWork()
    work.add_run(1.0, 2.0, 3.0)
    work.add_unfinished(1.0, 0.0, 4.0)
    assert work.stages == [Stage("queue", 1.0, 2.0), Stage("run", 2.0, 3.0)]


def test_text_that_joins_a_run_that_has_begun_did_not_wait() -> None:
    work = RequestWork()
    work.add_run(2.0, 1.0, 3.0)
    assert work.stages == [Stage("queue", 2.0, 2.0), Stage("run", 2.0, 3.0)]


def test_stage_that_fails_counts_until_its_failure() -> None:
    work, clock = RequestWork(), ManualClock()

    def fail() -> None:
        with work.timed("tokenize", clock):
            clock.now_s = 3.0
            raise TimeoutError

    with pytest.raises(TimeoutError):
        fail()
    assert work.stages == [Stage("tokenize", 0.0, 3.0)]


def test_stage_that_takes_less_than_is_worth_noting_is_left_out() -> None:
    work, clock = RequestWork(), ManualClock()
    with work.timed("load", clock, least_s=0.5):
        clock.now_s = 0.25
    assert work.stages == []


@pytest.mark.parametrize(
    ("started_s", "stages"),
    [
        pytest.param(0.0, [Stage("queue", 1.0, 5.0)], id="waits"),
        pytest.param(3.0, [Stage("queue", 1.0, 3.0), Stage("run", 3.0, 5.0)], id="runs"),
    ],
)
def test_slice_that_is_given_up_has_waited_or_run_until_then(started_s: float, stages: list[Stage]) -> None:
    work = RequestWork()
    work.add_unfinished(1.0, started_s, 5.0)
    work.add_unfinished(2.0, 0.0, 5.0)  # another slice of the same request, which has not run
    assert work.stages == stages
