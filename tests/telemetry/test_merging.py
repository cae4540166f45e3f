"""Merging: the whole of several parts is what one process would have counted."""

from collections import Counter
from dataclasses import dataclass
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry.merging import Current, Derived, Highest, Names, Samples, Setting, at_end, first_of, merge
from telemetry.metrics import Metrics, RequestCounts
from telemetry.request_work import RequestWork, Stage
from tests.support.answered_requests import answered


@dataclass(frozen=True, slots=True)
class Inner:
    total: int
    waiting: Current[int]


@dataclass(frozen=True, slots=True)
class Whole:
    total: int
    seconds: float
    by_code: dict[str, int]
    buckets: tuple[int, ...]
    inner: dict[str, Inner]
    waiting: Current[int]
    longest: Highest[float]
    limit: Setting[int]
    models: Names[list[str]]
    recent: Samples[dict[str, list[float]]]
    percentiles: Derived[dict[str, float]]
    store: Annotated[str, first_of("memory", "supervisor", "off")]


ONE = Whole(
    total=1,
    seconds=0.5,
    by_code={"a": 1, "b": 2},
    buckets=(1, 0, 2),
    inner={"x": Inner(5, waiting=6)},
    waiting=7,
    longest=8.5,
    limit=9,
    models=["m", "n"],
    recent={"e": [1.0]},
    percentiles={"p50": 1.0},
    store="supervisor",
)
OTHER = Whole(
    total=10,
    seconds=0.25,
    by_code={"b": 20, "c": 30},
    buckets=(0, 1, 1),
    inner={"x": Inner(50, waiting=60), "y": Inner(1, waiting=2)},
    waiting=70,
    longest=3.5,
    limit=9,
    models=["n", "o"],
    recent={"e": [2.0], "f": [3.0]},
    percentiles={"p50": 2.0},
    store="memory",
)


def test_each_field_merges_by_its_rule() -> None:
    assert merge([ONE, OTHER]) == Whole(
        total=11,
        seconds=0.75,
        by_code={"a": 1, "b": 22, "c": 30},
        buckets=(1, 1, 3),
        inner={"x": Inner(55, waiting=66), "y": Inner(1, waiting=2)},
        waiting=77,
        longest=8.5,
        limit=9,
        models=["m", "n", "o"],
        recent={"e": [1.0, 2.0], "f": [3.0]},
        percentiles={},
        store="memory",
    )


def test_process_that_has_ended_leaves_what_it_has_counted_and_nothing_else() -> None:
    ended = at_end(OTHER)
    assert (ended.total, ended.seconds, ended.by_code, ended.buckets) == (10, 0.25, OTHER.by_code, OTHER.buckets)
    assert ended.inner == {"x": Inner(50, waiting=0), "y": Inner(1, waiting=0)}
    both = merge([ONE, ended])
    assert (both.waiting, both.longest, both.models, both.recent) == (7, 8.5, ["m", "n"], {"e": [1.0]})
    assert (both.store, both.limit) == ("supervisor", 9)


COUNTED = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from(["POST /embed", "GET /health", "(no route)"]),
        st.sampled_from([2.0**-11, 2.0**-9, 0.125, 90.0]),
        st.sampled_from([None, "overloaded", "invalid-input"]),
        st.sampled_from(["native", "openai"]),
        st.sampled_from([200, 400, 503]),
        st.sampled_from([0, 1, 7]),
    ),
    max_size=60,
)


@dataclass(frozen=True, slots=True)
class Counted:
    requests: int
    errors: dict[str, int]
    endpoints: dict[str, int]
    counts: RequestCounts
    recent_s: Samples[dict[str, list[float]]]


def counted_by(metrics: Metrics) -> Counted:
    return Counted(metrics.requests, metrics.errors, metrics.endpoints(), metrics.counts(), metrics.recent_s())


@given(requests=COUNTED, ended=st.sets(st.integers(0, 3)))
def test_merging_parts_equals_counting_all_in_one(
    requests: list[tuple[int, str, float, str | None, str, int, int]], ended: set[int]
) -> None:
    """Also if some of the processes have ended: their counts are those of before."""
    whole, parts = Metrics(), [Metrics() for _ in range(4)]
    for number, endpoint, seconds, problem, dialect, status, texts in requests:
        work = RequestWork(texts=texts, tokens=4 * texts, stages=[Stage("queue", 0.0, seconds)])
        for metrics in (whole, parts[number]):
            metrics.observe(answered(endpoint, seconds, problem, dialect, status=status, work=work))
    kept = [at_end(counted_by(one)) if number in ended else counted_by(one) for number, one in enumerate(parts)]
    merged, expected = merge(kept), counted_by(whole)
    assert (merged.requests, merged.errors, merged.endpoints) == (
        expected.requests,
        expected.errors,
        expected.endpoints,
    )
    assert merged.counts == expected.counts
    alive = [
        (name, seconds) for number, name, seconds, *_, status, _ in requests if number not in ended and status == 200
    ]
    recent = Counter((name, seconds) for name, found in merged.recent_s.items() for seconds in found)
    assert recent == Counter(alive)


def test_histograms_with_other_buckets_are_not_added() -> None:
    with pytest.raises(ValueError, match="zip"):
        merge([ONE, Whole(**{**{name: getattr(ONE, name) for name in ONE.__slots__}, "buckets": (1,)})])
