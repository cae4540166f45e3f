"""Quotas: what is admitted, what comes back, and when."""

import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from access.quotas import MemoryQuotas, NoQuotas, QuotaState, RateLimitedError, quotas_of
from tests.support.clock import ManualClock

REQUESTS, WINDOW_S = 3, 60


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def allowances(clock: ManualClock) -> MemoryQuotas:
    """Three requests per minute: one comes back every 20 s."""
    return MemoryQuotas(quotas_of(requests=REQUESTS, tokens=None, window_s=WINDOW_S), clock=clock)


@pytest.fixture
def of_tokens(clock: ManualClock) -> MemoryQuotas:
    """A hundred requests and 600 tokens per minute: ten tokens come back every second."""
    return MemoryQuotas(quotas_of(requests=100, tokens=600, window_s=WINDOW_S), clock=clock)


def admitted(allowances: MemoryQuotas, times: int, caller: str = "a") -> int:
    """How many of so many requests at once are admitted."""
    return sum(allowances.take_now(caller).is_admitted for _ in range(times))


def left(allowance: QuotaState) -> list[int]:
    return [quota.left(used) for quota, used in zip(allowance.quotas, allowance.used, strict=True)]


def pace_s(allowance: QuotaState) -> list[int]:
    return [quota.spread_s(used) for quota, used in zip(allowance.quotas, allowance.used, strict=True)]


def test_whole_quota_may_be_used_at_once_and_not_more(allowances: MemoryQuotas) -> None:
    assert admitted(allowances, 10) == REQUESTS


def test_each_caller_has_its_own(allowances: MemoryQuotas) -> None:
    assert admitted(allowances, 10, "a") == admitted(allowances, 10, "b") == REQUESTS


def test_requests_come_back_one_by_one(allowances: MemoryQuotas, clock: ManualClock) -> None:
    admitted(allowances, 10)
    for now_s, expected in [(19.999999, 0), (20.0, 1), (39.999999, 0), (40.0, 1), (100.0, 3)]:
        clock.now_s = now_s
        assert (now_s, admitted(allowances, 10)) == (now_s, expected)


def test_quota_never_grows_beyond_itself(allowances: MemoryQuotas, clock: ManualClock) -> None:
    clock.now_s = 1e6
    assert admitted(allowances, 10) == REQUESTS


def test_refusals_cost_nothing(allowances: MemoryQuotas, clock: ManualClock) -> None:
    admitted(allowances, 1000)
    clock.now_s = 20.0
    assert admitted(allowances, 1) == 1


@pytest.mark.parametrize(("requests", "window_s"), [(1, 86_400), (7, 59), (997, 1), (99_991, 86_399)])
def test_sums_are_exact(requests: int, window_s: int, clock: ManualClock) -> None:
    """A quota of any size is admitted to the last unit, and after the window once more."""
    allowances = MemoryQuotas(quotas_of(requests=requests, tokens=None, window_s=window_s), clock=clock)
    assert admitted(allowances, requests + 1) == requests
    clock.now_s = float(window_s)
    assert admitted(allowances, requests + 1) == requests


@given(
    requests=st.integers(1, 50),
    window_s=st.integers(1, 100),
    pauses_s=st.lists(st.floats(0, 30), min_size=1, max_size=200),
)
@settings(deadline=None)
def test_no_stretch_of_time_has_more_than_the_quota_and_what_comes_back(
    requests: int, window_s: int, pauses_s: list[float]
) -> None:
    clock = ManualClock()
    allowances = MemoryQuotas(quotas_of(requests=requests, tokens=None, window_s=window_s), clock=clock)
    times_us = []
    for pause_s in pauses_s:
        clock.now_s += pause_s
        if allowances.take_now("a").is_admitted:
            times_us.append(round(clock.now_s * 1e6))
    for first, begin_us in enumerate(times_us):
        for last, end_us in enumerate(times_us[first:], start=1):
            assert (last - requests) * window_s * 1_000_000 <= (end_us - begin_us) * requests


@given(
    requests=st.integers(1, 1000),
    tokens=st.integers(1, 10_000),
    window_s=st.integers(1, 10_000),
    charges=st.lists(st.integers(0, 100_000), max_size=20),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_after_the_seconds_that_are_told_a_request_is_admitted_and_one_second_before_it_is_not(
    requests: int, tokens: int, window_s: int, charges: list[int], seed: int
) -> None:
    clock, chance = ManualClock(), random.Random(seed)  # noqa: S311 - nothing secret
    allowances = MemoryQuotas(quotas_of(requests=requests, tokens=tokens, window_s=window_s), clock=clock)
    for charge in charges:
        clock.now_s += chance.random()
        allowances.charge("a", charge)
    while (allowance := allowances.take_now("a")).is_admitted:
        allowances.charge("a", tokens)
    assert allowance.retry_after_s >= 1
    begin_s = clock.now_s
    clock.now_s = begin_s + allowance.retry_after_s - 1
    if allowance.retry_after_s > 1:
        assert not allowances.take_now("a").is_admitted
    clock.now_s = begin_s + allowance.retry_after_s
    assert allowances.take_now("a").is_admitted


def test_big_request_is_admitted_and_paid_for_afterwards(of_tokens: MemoryQuotas, clock: ManualClock) -> None:
    assert of_tokens.take_now("a").is_admitted
    of_tokens.charge("a", 6000)  # ten times the quota
    refused = of_tokens.take_now("a")
    assert (refused.is_admitted, refused.retry_after_s) == (False, 541)
    clock.now_s = 540.0
    assert not of_tokens.take_now("a").is_admitted  # nothing is owed any more, and nothing is left
    clock.now_s = 541.0
    assert of_tokens.take_now("a").is_admitted


def test_tokens_are_charged_to_the_caller_alone(of_tokens: MemoryQuotas) -> None:
    of_tokens.charge("a", 6000)
    assert of_tokens.take_now("b").is_admitted


def test_refused_request_takes_of_no_quota(of_tokens: MemoryQuotas) -> None:
    of_tokens.charge("a", 600)
    assert left(of_tokens.take_now("a")) == left(of_tokens.take_now("a")) == [100, 0]


def test_what_is_left_is_told_in_whole_units(of_tokens: MemoryQuotas, clock: ManualClock) -> None:
    assert left(of_tokens.take_now("a")) == [99, 600]
    of_tokens.charge("a", 100)
    clock.now_s = 0.55
    assert left(of_tokens.take_now("a")) == [98, 505]


def test_allowance_can_tell_what_will_be_left(of_tokens: MemoryQuotas) -> None:
    told = of_tokens.take_now("a").after(250)
    of_tokens.charge("a", 250)
    assert (left(told), left(of_tokens.take_now("a"))) == ([99, 350], [98, 350])


def test_who_spreads_what_is_left_over_the_time_told_is_never_refused(
    of_tokens: MemoryQuotas, clock: ManualClock
) -> None:
    allowance = of_tokens.take_now("a")
    assert (left(allowance), pace_s(allowance)) == ([99, 600], [60, 60])
    of_tokens.charge("a", 590)
    for _ in range(200):
        allowance = of_tokens.take_now("a")
        assert allowance.is_admitted
        of_tokens.charge("a", 5)
        clock.now_s += max(
            wait_s / max(1, units) for wait_s, units in zip(pace_s(allowance), left(allowance), strict=True)
        )


def test_pace_of_a_refused_request_is_the_time_until_the_next(allowances: MemoryQuotas, clock: ManualClock) -> None:
    admitted(allowances, 3)
    clock.now_s = 4.5
    refused = allowances.take_now("a")
    assert (pace_s(refused), refused.retry_after_s) == ([16], 16)


def test_refusal_names_the_limits_that_are_used_up(of_tokens: MemoryQuotas) -> None:
    of_tokens.charge("a", 700)
    error = RateLimitedError(of_tokens.take_now("a"))
    assert error.detail == (
        "No more than 600 tokens per 60 s are allowed per caller; the next request is admitted in 11 s."
    )
    assert error.extensions == {"limit": 600, "window_seconds": 60, "violated-policies": ["tokens"]}
    assert error.retry_after_s == 11


def test_refusal_names_both_limits_and_the_longer_wait(clock: ManualClock) -> None:
    allowances = MemoryQuotas(quotas_of(requests=1, tokens=600, window_s=60), clock=clock)
    allowances.take_now("a")
    allowances.charge("a", 1500)
    error = RateLimitedError(allowances.take_now("a"))
    assert "1 requests per 60 s and 600 tokens per 60 s" in error.detail
    assert error.extensions["violated-policies"] == ["requests", "tokens"]
    assert error.retry_after_s == 91


def test_number_of_callers_is_bounded_and_the_latest_are_kept(clock: ManualClock) -> None:
    allowances = MemoryQuotas(quotas_of(requests=1, tokens=None, window_s=60), max_callers=100, clock=clock)
    allowances.take_now("busy")
    for number in range(1000):
        assert allowances.take_now(f"caller {number}").is_admitted
        assert not allowances.take_now("busy").is_admitted  # even if it is refused, it is not forgotten
    assert allowances.callers == 100


def test_a_remembered_caller_costs_little_memory(of_tokens: MemoryQuotas) -> None:
    tracemalloc.start()
    for number in range(10_000):
        of_tokens.take_now(f"address 10.0.{number // 256}.{number % 256}")
        of_tokens.charge(f"address 10.0.{number // 256}.{number % 256}", 10)
    per_caller, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert per_caller / of_tokens.callers < 600


async def test_who_counts_nothing_refuses_nothing() -> None:
    nothing = NoQuotas()
    async with nothing.running():
        nothing.charge("a", 10**9)
        assert (await nothing.take("a")).is_admitted
    assert nothing.store == "off"


async def test_memory_answers_at_once_and_needs_no_start(allowances: MemoryQuotas) -> None:
    async with allowances.running():
        assert [(await allowances.take("a")).is_admitted for _ in range(4)] == [True, True, True, False]
    assert allowances.store == "memory"
