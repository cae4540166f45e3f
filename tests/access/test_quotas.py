"""Quotas in memory: what is admitted, and what is refilled when."""

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
def quotas(clock: ManualClock) -> MemoryQuotas:
    """Three requests per minute: one is refilled every 20 s."""
    return MemoryQuotas(quotas_of(requests=REQUESTS, tokens=None, window_s=WINDOW_S), clock=clock)


@pytest.fixture
def of_tokens(clock: ManualClock) -> MemoryQuotas:
    """A hundred requests and 600 tokens per minute: ten tokens are refilled every second."""
    return MemoryQuotas(quotas_of(requests=100, tokens=600, window_s=WINDOW_S), clock=clock)


def admitted(quotas: MemoryQuotas, times: int, caller: str = "a") -> int:
    """Return how many of *times* requests at once are admitted."""
    return sum(quotas.take_now((caller,)).is_admitted for _ in range(times))


def left(state: QuotaState) -> list[int]:
    return [quota.left(used) for quota, used in zip(state.quotas, state.used, strict=True)]


def pace_s(state: QuotaState) -> list[int]:
    return [quota.spread_s(used) for quota, used in zip(state.quotas, state.used, strict=True)]


def test_whole_quota_may_be_used_at_once_and_not_more(quotas: MemoryQuotas) -> None:
    assert admitted(quotas, 10) == REQUESTS


def test_each_caller_has_its_own(quotas: MemoryQuotas) -> None:
    assert admitted(quotas, 10, "a") == admitted(quotas, 10, "b") == REQUESTS


def test_requests_are_refilled_one_by_one(quotas: MemoryQuotas, clock: ManualClock) -> None:
    admitted(quotas, 10)
    for now_s, expected in [(19.999999, 0), (20.0, 1), (39.999999, 0), (40.0, 1), (100.0, 3)]:
        clock.now_s = now_s
        assert (now_s, admitted(quotas, 10)) == (now_s, expected)


def test_unused_quota_does_not_accumulate(quotas: MemoryQuotas, clock: ManualClock) -> None:
    clock.now_s = 1e6
    assert admitted(quotas, 10) == REQUESTS


def test_rejections_cost_nothing(quotas: MemoryQuotas, clock: ManualClock) -> None:
    admitted(quotas, 1000)
    clock.now_s = 20.0
    assert admitted(quotas, 1) == 1


@pytest.mark.parametrize(("requests", "window_s"), [(1, 86_400), (7, 59), (997, 1), (99_991, 86_399)])
def test_sums_are_exact(requests: int, window_s: int, clock: ManualClock) -> None:
    """A quota of any size is admitted to the last unit, and once more after the window."""
    quotas = MemoryQuotas(quotas_of(requests=requests, tokens=None, window_s=window_s), clock=clock)
    assert admitted(quotas, requests + 1) == requests
    clock.now_s = float(window_s)
    assert admitted(quotas, requests + 1) == requests


@given(
    requests=st.integers(1, 50),
    window_s=st.integers(1, 100),
    pauses_s=st.lists(st.floats(0, 30), min_size=1, max_size=200),
)
@settings(deadline=None)
def test_no_period_has_more_than_the_quota_and_its_refill(requests: int, window_s: int, pauses_s: list[float]) -> None:
    clock = ManualClock()
    quotas = MemoryQuotas(quotas_of(requests=requests, tokens=None, window_s=window_s), clock=clock)
    times_us = []
    for pause_s in pauses_s:
        clock.now_s += pause_s
        if quotas.take_now(("a",)).is_admitted:
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
def test_request_is_admitted_after_retry_after_and_not_one_second_earlier(
    requests: int, tokens: int, window_s: int, charges: list[int], seed: int
) -> None:
    clock, chance = ManualClock(), random.Random(seed)  # noqa: S311 - nothing secret
    quotas = MemoryQuotas(quotas_of(requests=requests, tokens=tokens, window_s=window_s), clock=clock)
    for charge in charges:
        clock.now_s += chance.random()
        quotas.charge(("a",), charge)
    while (state := quotas.take_now(("a",))).is_admitted:
        quotas.charge(("a",), tokens)
    assert state.retry_after_s >= 1
    begin_s = clock.now_s
    clock.now_s = begin_s + state.retry_after_s - 1
    if state.retry_after_s > 1:
        assert not quotas.take_now(("a",)).is_admitted
    clock.now_s = begin_s + state.retry_after_s
    assert quotas.take_now(("a",)).is_admitted


def test_large_request_is_admitted_and_delays_later_ones(of_tokens: MemoryQuotas, clock: ManualClock) -> None:
    assert of_tokens.take_now(("a",)).is_admitted
    of_tokens.charge(("a",), 6000)  # ten times the quota
    rejected = of_tokens.take_now(("a",))
    assert (rejected.is_admitted, rejected.retry_after_s) == (False, 541)
    clock.now_s = 540.0
    assert not of_tokens.take_now(("a",)).is_admitted  # the debt is gone, but nothing is refilled yet
    clock.now_s = 541.0
    assert of_tokens.take_now(("a",)).is_admitted


def test_tokens_are_charged_to_the_caller_alone(of_tokens: MemoryQuotas) -> None:
    of_tokens.charge(("a",), 6000)
    assert of_tokens.take_now(("b",)).is_admitted


def test_rejected_request_takes_from_no_quota(of_tokens: MemoryQuotas) -> None:
    of_tokens.charge(("a",), 600)
    assert left(of_tokens.take_now(("a",))) == left(of_tokens.take_now(("a",))) == [100, 0]


def test_remaining_quota_is_in_whole_units(of_tokens: MemoryQuotas, clock: ManualClock) -> None:
    assert left(of_tokens.take_now(("a",))) == [99, 600]
    of_tokens.charge(("a",), 100)
    clock.now_s = 0.55
    assert left(of_tokens.take_now(("a",))) == [98, 505]


def test_state_predicts_what_is_left_after_a_charge(of_tokens: MemoryQuotas) -> None:
    predicted = of_tokens.take_now(("a",)).after(250)
    of_tokens.charge(("a",), 250)
    assert (left(predicted), left(of_tokens.take_now(("a",)))) == ([99, 350], [98, 350])


def test_caller_that_spreads_what_is_left_over_the_time_is_never_rejected(
    of_tokens: MemoryQuotas, clock: ManualClock
) -> None:
    state = of_tokens.take_now(("a",))
    assert (left(state), pace_s(state)) == ([99, 600], [60, 60])
    of_tokens.charge(("a",), 590)
    for _ in range(200):
        state = of_tokens.take_now(("a",))
        assert state.is_admitted
        of_tokens.charge(("a",), 5)
        clock.now_s += max(wait_s / max(1, units) for wait_s, units in zip(pace_s(state), left(state), strict=True))


def test_time_of_a_rejected_request_is_that_until_the_next(quotas: MemoryQuotas, clock: ManualClock) -> None:
    admitted(quotas, 3)
    clock.now_s = 4.5
    rejected = quotas.take_now(("a",))
    assert (pace_s(rejected), rejected.retry_after_s) == ([16], 16)


def test_rejection_names_the_quotas_that_are_used_up(of_tokens: MemoryQuotas) -> None:
    of_tokens.charge(("a",), 700)
    error = RateLimitedError(of_tokens.take_now(("a",)))
    assert error.detail == (
        "No more than 600 tokens per 60 s are allowed per caller; the next request is admitted in 11 s."
    )
    assert error.extensions == {"limit": 600, "window_seconds": 60, "violated-policies": ["tokens"]}
    assert error.retry_after_s == 11


def test_rejection_names_both_quotas_and_the_longer_wait(clock: ManualClock) -> None:
    quotas = MemoryQuotas(quotas_of(requests=1, tokens=600, window_s=60), clock=clock)
    quotas.take_now(("a",))
    quotas.charge(("a",), 1500)
    error = RateLimitedError(quotas.take_now(("a",)))
    assert "1 requests per 60 s and 600 tokens per 60 s" in error.detail
    assert error.extensions["violated-policies"] == ["requests", "tokens"]
    assert error.retry_after_s == 91


NETWORK = "address 2001:db8::/48"


def neighbour(number: int) -> tuple[str, str]:
    """Return the keys of one of the callers of a wide network."""
    return f"address 2001:db8:0:{number:x}::/64", NETWORK


def test_callers_of_a_wide_network_together_get_16_quotas(quotas: MemoryQuotas, clock: ManualClock) -> None:
    states = [quotas.take_now(neighbour(number % 20)) for number in range(100)]
    assert [state.is_admitted for state in states] == [True] * (16 * REQUESTS) + [False] * (100 - 16 * REQUESTS)
    error = RateLimitedError(states[-1])
    assert error.detail == (
        "No more than 48 requests per 60 s are allowed for all callers of the same wide network; "
        "the next request is admitted in 2 s."
    )
    assert error.extensions == {"limit": 48, "window_seconds": 60, "violated-policies": ["network-requests"]}
    assert admitted(quotas, 10, "address 192.0.2.1") == REQUESTS
    clock.now_s = 1.249999
    assert not quotas.take_now(neighbour(30)).is_admitted
    clock.now_s = 1.25
    assert quotas.take_now(neighbour(30)).is_admitted


def test_request_that_the_wide_network_rejects_is_not_charged_to_the_caller(
    quotas: MemoryQuotas, clock: ManualClock
) -> None:
    for number in range(16 * REQUESTS):
        quotas.take_now(neighbour(number))
    for _ in range(100):
        assert left(quotas.take_now(neighbour(99))) == [REQUESTS, 0]
    clock.now_s = 3.75
    assert [quotas.take_now(neighbour(99)).is_admitted for _ in range(4)] == [True, True, True, False]


def test_request_that_the_caller_may_not_make_is_not_charged_to_its_wide_network(quotas: MemoryQuotas) -> None:
    for _ in range(100):
        state = quotas.take_now(neighbour(1))
    assert left(state) == [0, 15 * REQUESTS]
    assert RateLimitedError(state).extensions["violated-policies"] == ["requests"]


def test_rejection_names_all_that_is_used_up_and_the_longest_wait(clock: ManualClock) -> None:
    quotas = MemoryQuotas(quotas_of(requests=100, tokens=600, window_s=60), clock=clock)
    quotas.charge(neighbour(1), 16 * 600 + 1600)
    error = RateLimitedError(quotas.take_now(neighbour(1)))
    assert error.detail == (
        "No more than 600 tokens per 60 s are allowed per caller, and 9600 tokens per 60 s are allowed for all callers "
        "of the same wide network; the next request is admitted in 1061 s."
    )
    assert error.extensions["violated-policies"] == ["tokens", "network-tokens"]
    other = RateLimitedError(quotas.take_now(neighbour(2)))
    assert (other.extensions["violated-policies"], other.retry_after_s) == (["network-tokens"], 11)


@pytest.mark.parametrize(("requests", "window_s"), [(1, 86_400), (7, 59), (997, 1)])
def test_sums_of_a_wide_network_are_exact(requests: int, window_s: int, clock: ManualClock) -> None:
    quotas = MemoryQuotas(quotas_of(requests=requests, tokens=None, window_s=window_s), clock=clock)
    for _ in range(2):
        states = [quotas.take_now(neighbour(number)) for number in range(16 * requests + 1)]
        assert sum(state.is_admitted for state in states) == 16 * requests
        clock.now_s += window_s


def test_callers_that_a_wide_network_rejects_push_no_others_out_of_memory(clock: ManualClock) -> None:
    quotas = MemoryQuotas(quotas_of(requests=1, tokens=None, window_s=60), max_callers=100, clock=clock)
    quotas.take_now(("victim",))
    for number in range(10_000):
        quotas.take_now(neighbour(number))
    assert not quotas.take_now(("victim",)).is_admitted


def test_number_of_callers_is_bounded_and_the_most_recent_are_kept(clock: ManualClock) -> None:
    quotas = MemoryQuotas(quotas_of(requests=1, tokens=None, window_s=60), max_callers=100, clock=clock)
    quotas.take_now(("busy",))
    for number in range(1000):
        assert quotas.take_now((f"caller {number}",)).is_admitted
        assert not quotas.take_now(("busy",)).is_admitted  # a rejected caller is not forgotten
    assert quotas.callers == 100


def test_a_caller_takes_little_memory(of_tokens: MemoryQuotas) -> None:
    tracemalloc.start()
    for number in range(10_000):
        of_tokens.take_now((f"address 10.0.{number // 256}.{number % 256}",))
        of_tokens.charge((f"address 10.0.{number // 256}.{number % 256}",), 10)
    per_caller, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert per_caller / of_tokens.callers < 600


async def test_no_quotas_admit_everything() -> None:
    nothing = NoQuotas()
    async with nothing.running():
        nothing.charge(("a",), 10**9)
        assert (await nothing.take(("a",))).is_admitted
    assert nothing.store == "off"


async def test_store_in_memory_needs_no_start(quotas: MemoryQuotas) -> None:
    async with quotas.running():
        assert [(await quotas.take(("a",))).is_admitted for _ in range(4)] == [True, True, True, False]
    assert quotas.store == "memory"
