"""Admission of bulk work: its own limit, and the deadline of its caller."""

from contextlib import suppress

import pytest

from engine.admission import Admission, Work
from engine.errors import DeadlineError, OverloadedError
from engine.fair_queue import Caller

LANES = 2
BULK_TOKENS = 10_000


@pytest.fixture
def admission() -> Admission:
    return Admission(lanes=LANES, micro_batch_tokens=256, max_queue_s=10.0, max_bulk_queue_s=120.0)


def bulk(seconds: float) -> Work:
    """Return bulk work that takes all lanes for this time."""
    return Work(BULK_TOKENS, seconds * LANES)


def callers(count: int) -> list[Caller]:
    return [(f"caller {number}",) for number in range(count)]


def test_request_larger_than_both_limits_is_accepted_while_its_deadline_allows(admission: Admission) -> None:
    admission.reserve(("caller",), bulk(250), deadline_s=300)
    assert admission.bulk.backlog.seconds == pytest.approx(250)
    assert admission.interactive.held == 0.0


def test_request_that_cannot_end_in_time_is_rejected_at_once(admission: Admission) -> None:
    with pytest.raises(DeadlineError):
        admission.reserve(("caller",), bulk(31), deadline_s=30)
    assert admission.bulk.held == 0.0


def test_deadline_covers_what_the_caller_has_queued_already(admission: Admission) -> None:
    admission.reserve(("caller",), bulk(20), deadline_s=300)
    with pytest.raises(OverloadedError, match="deadline") as error:
        admission.reserve(("caller",), bulk(20), deadline_s=30)
    assert error.value.retry_after_s == pytest.approx(10)


def test_caller_with_a_lot_queued_does_not_shorten_the_deadline_of_another(admission: Admission) -> None:
    admission.reserve(("flood",), bulk(90), deadline_s=300)
    admission.reserve(("other",), bulk(10), deadline_s=30)  # an equal part of the lanes: 20 s


def test_callers_that_share_the_lanes_need_more_time(admission: Admission) -> None:
    for caller in callers(4):
        admission.reserve(caller, bulk(10), deadline_s=300)
    with pytest.raises(OverloadedError, match="deadline"):
        admission.reserve(("fifth",), bulk(10), deadline_s=45)


def test_caller_may_hold_their_share_of_the_bulk_limit(admission: Admission) -> None:
    for _ in range(9):
        admission.reserve(("caller",), bulk(10), deadline_s=300)
    with pytest.raises(OverloadedError, match="MAX_BULK_QUEUE_SECONDS"):
        admission.reserve(("caller",), bulk(10), deadline_s=300)
    admission.reserve(("newcomer",), bulk(60), deadline_s=300)


def test_bulk_work_does_not_use_up_the_limit_of_interactive_work(admission: Admission) -> None:
    admission.reserve(("caller",), bulk(100), deadline_s=300)
    assert admission.class_of(100) == "large"
    admission.reserve(("caller",), Work(100, 0.1), deadline_s=1)
    assert admission.interactive.held == pytest.approx(0.1)


def test_four_callers_in_a_loop_are_always_accepted(admission: Admission) -> None:
    """Each sends a batch of 32 long texts, and the next one when it is answered."""
    for _ in range(20):
        reservations = [admission.reserve(caller, bulk(2), deadline_s=300) for caller in callers(4)]
        for reservation in reservations:
            reservation.resize(0.0)
    assert admission.bulk.held == 0.0


def test_callers_are_counted_once_however_many_keys_and_kinds_of_work_they_have(admission: Admission) -> None:
    addresses = [(f"2001:db8:{number}::/64", f"2001:db8:{number}::/48") for number in range(3)]
    for address, seconds in zip(addresses, [10, 40, 40], strict=True):
        admission.reserve(address, bulk(seconds), deadline_s=300)
        admission.reserve(address, Work(100, 0.1), deadline_s=300)
    assert admission.bulk.callers == len(addresses)
    with pytest.raises(OverloadedError, match="deadline"):
        admission.reserve(addresses[0], bulk(5), deadline_s=44)
    admission.reserve(addresses[0], bulk(4), deadline_s=43)  # an equal part: 3 x (10 + 4) s, and what is interactive


def fill(admission: Admission, caller: Caller, work: Work) -> None:
    with suppress(OverloadedError):
        while True:
            admission.reserve(caller, work, deadline_s=300)


def test_newcomer_is_accepted_beside_a_flood_of_large_and_then_small_requests(admission: Admission) -> None:
    fill(admission, ("flood",), Work(900, 0.1))
    fill(admission, ("flood",), Work(60, 0.01))
    assert admission.interactive.held > admission.interactive.limit
    admission.reserve(("newcomer",), Work(900, 0.1), deadline_s=300)
    with pytest.raises(OverloadedError):
        admission.reserve(("flood",), Work(900, 0.1), deadline_s=300)


@pytest.mark.parametrize(("estimated", "actual"), [(1_400, 900), (900, 1_400), (100, 60), (60, 100), (1_400, 60)])
def test_requests_of_another_class_than_estimated_fill_no_account_beyond_its_limit(
    estimated: int, actual: int, admission: Admission
) -> None:
    s_per_token = 0.001
    with suppress(OverloadedError):
        for _ in range(10_000):
            estimate = admission.reserve(("flood",), Work(estimated, estimated * s_per_token), deadline_s=300)
            admission.correct(estimate, Work(actual, actual * s_per_token))
    assert admission.small.held <= admission.small.limit
    assert admission.interactive.held - admission.small.held <= admission.interactive.limit
    assert admission.bulk.held <= admission.bulk.limit
    for tokens in (60, 900, 1_400):
        admission.reserve(("newcomer",), Work(tokens, tokens * s_per_token), deadline_s=300)
