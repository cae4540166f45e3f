"""Histograms: buckets, and bounds up to the longest request."""

import pytest

from telemetry.histograms import DURATIONS_S, Buckets, Histogram, shortened, up_to

BOUNDS = (1.0, 2.5)


@pytest.mark.parametrize(
    ("amount", "counts"),
    [
        pytest.param(0.0, (1, 0, 0), id="zero"),
        pytest.param(1.0, (1, 0, 0), id="first-bound"),
        pytest.param(1.1, (0, 1, 0), id="above-the-first-bound"),
        pytest.param(2.5, (0, 1, 0), id="last-bound"),
        pytest.param(2.6, (0, 0, 1), id="above-the-last-bound"),
    ],
)
def test_amount_is_counted_in_the_bucket_with_the_smallest_sufficient_bound(
    amount: float, counts: tuple[int, ...]
) -> None:
    histogram = Histogram(BOUNDS)
    assert histogram.observe(amount) == counts.index(1)
    assert histogram.read() == Buckets(counts, amount)


@pytest.mark.parametrize(
    ("timeout_s", "last"),
    [
        pytest.param(5.0, 60.0, id="short"),
        pytest.param(60.0, 60.0, id="bound"),
        pytest.param(90.0, 120.0, id="between"),
        pytest.param(300.0, 300.0, id="default"),
    ],
)
def test_bounds_reach_up_to_the_longest_request(timeout_s: float, last: float) -> None:
    assert DURATIONS_S[up_to(timeout_s) - 1] == last


def test_timeout_above_all_bounds_needs_all_of_them() -> None:
    assert up_to(1e9) == len(DURATIONS_S)


def test_buckets_above_the_last_bound_are_counted_together() -> None:
    assert shortened(Buckets((1, 2, 3, 4), 9.5), 2) == Buckets((1, 2, 7), 9.5)
    assert shortened(Buckets((1, 2, 3), 9.5), 2) == Buckets((1, 2, 3), 9.5)
