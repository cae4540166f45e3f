"""Pauses between restarts of a worker that fails again and again."""

import pytest

from serving.restart_policy import MAX_PAUSE_S, STEADY_S, RestartPolicy
from tests.support.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def policy(clock: ManualClock) -> RestartPolicy:
    return RestartPolicy(clock=clock)


def pauses(policy: RestartPolicy, count: int) -> list[float]:
    return [policy.pause_after_failure() for _ in range(count)]


def test_first_restart_is_immediate_and_each_further_pause_is_twice_as_long(policy: RestartPolicy) -> None:
    assert pauses(policy, 5) == [0.0, 0.5, 1.0, 2.0, 4.0]
    assert policy.failures == 5


def test_pauses_have_a_maximum(policy: RestartPolicy) -> None:
    assert pauses(policy, 5_000)[-1] == MAX_PAUSE_S


def test_worker_that_ran_for_a_while_ends_the_row_of_failures(policy: RestartPolicy, clock: ManualClock) -> None:
    pauses(policy, 4)
    policy.started()
    clock.now_s += STEADY_S
    assert policy.pause_after_failure() == 0.0
    policy.started()
    assert policy.pause_after_failure() == 0.5


def test_worker_that_ran_for_a_shorter_time_does_not(policy: RestartPolicy, clock: ManualClock) -> None:
    pauses(policy, 4)
    policy.started()
    clock.now_s += STEADY_S - 0.1
    assert pauses(policy, 1) == [4.0]
