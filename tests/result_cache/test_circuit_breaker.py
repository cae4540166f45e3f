"""The circuit breaker: open after a failure, one trial after each pause, and longer pauses while trials fail."""

import pytest

from result_cache.circuit_breaker import CircuitBreaker
from tests.support.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def breaker(clock: ManualClock) -> CircuitBreaker:
    return CircuitBreaker(first_pause_s=1, max_pause_s=4, clock=clock)


def test_calls_are_allowed_until_the_first_failure(breaker: CircuitBreaker) -> None:
    assert [breaker.allows() for _ in range(3)] == [True] * 3
    assert breaker.fail(), "it opens"
    assert not breaker.allows()
    assert not breaker.may_allow
    assert breaker.state == "open"


def test_one_call_is_allowed_after_the_pause(breaker: CircuitBreaker, clock: ManualClock) -> None:
    breaker.fail()
    clock.now_s = 0.99
    assert not breaker.allows()
    clock.now_s = 1.0
    assert breaker.may_allow
    assert [breaker.allows() for _ in range(3)] == [True, False, False]
    breaker.succeed()
    assert breaker.allows()


def pauses(breaker: CircuitBreaker, clock: ManualClock, trials: int) -> list[float]:
    """Let trials fail, and return how long each had to wait."""
    waited = []
    for _ in range(trials):
        begin = clock.now_s
        while not breaker.allows():
            clock.now_s += 0.5
        waited.append(clock.now_s - begin)
        assert not breaker.fail(), "it was open before"
    return waited


def test_pauses_double_while_trials_fail(breaker: CircuitBreaker, clock: ManualClock) -> None:
    breaker.fail()
    assert pauses(breaker, clock, 4) == [1, 2, 4, 4]


def test_pause_is_short_again_only_after_a_success_that_was_no_trial(
    breaker: CircuitBreaker, clock: ManualClock
) -> None:
    breaker.fail()
    pauses(breaker, clock, 2)
    clock.now_s += 4
    assert breaker.allows()
    breaker.succeed()  # the trial
    breaker.fail()
    assert pauses(breaker, clock, 1) == [4]
    clock.now_s += 4
    assert breaker.allows()
    breaker.succeed()
    breaker.succeed()
    breaker.fail()
    assert pauses(breaker, clock, 1) == [1]


def test_calls_that_began_before_do_not_matter_while_it_is_open(breaker: CircuitBreaker, clock: ManualClock) -> None:
    breaker.fail()
    assert not breaker.fail()
    breaker.succeed()
    assert breaker.state == "open"
    clock.now_s = 1.0
    assert breaker.allows(), "the second failure did not make the pause longer"
