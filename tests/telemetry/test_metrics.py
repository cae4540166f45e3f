import pytest

from telemetry.answered_request import NATIVE
from telemetry.metrics import BUCKET_BOUNDS_S, MAX_RECENT_LATENCIES, Metrics, percentiles_ms
from tests.support.answered_requests import answered


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def test_nothing_is_counted_before_the_first_answer(metrics: Metrics) -> None:
    assert (metrics.requests, metrics.errors, metrics.endpoints(), metrics.latencies()) == (0, {}, {}, {})


def test_answers_are_counted_per_endpoint_and_in_total(metrics: Metrics) -> None:
    for endpoint, seconds in (("POST /embed", 0.001), ("POST /embed", 0.001), ("GET /health", 0.009)):
        metrics.observe(answered(endpoint, seconds))
    assert metrics.requests == 3
    assert metrics.endpoints() == {"POST /embed": 2, "GET /health": 1}
    assert metrics.recent_s() == {"POST /embed": [0.001, 0.001], "GET /health": [0.009]}


def test_errors_are_counted_by_code_and_returned_as_a_copy(metrics: Metrics) -> None:
    for code in ("invalid-input", None, "invalid-input", "overloaded"):
        metrics.observe(answered("POST /embed", 0.001, code))
    metrics.count_error("malformed-request")  # a connection whose request was never complete
    metrics.errors.clear()
    assert metrics.errors == {"invalid-input": 2, "overloaded": 1, "malformed-request": 1}
    assert metrics.requests == 4


def test_percentiles_are_in_milliseconds_and_interpolated() -> None:
    assert percentiles_ms([ms / 1e3 for ms in range(101, 0, -1)]) == {"p50": 51.0, "p95": 96.0, "p99": 100.0}
    assert percentiles_ms([0.0012345]) == {"p50": 1.234, "p95": 1.234, "p99": 1.234}
    assert percentiles_ms([0.001, 0.003]) == {"p50": 2.0, "p95": 2.9, "p99": 2.98}


def test_percentiles_describe_recent_answers_and_counts_all_of_them(metrics: Metrics) -> None:
    for seconds in (9.0, 0.001):
        for _ in range(MAX_RECENT_LATENCIES):
            metrics.observe(answered("a", seconds))
    assert metrics.endpoints()["a"] == 2 * MAX_RECENT_LATENCIES
    assert metrics.recent_s()["a"] == [0.001] * MAX_RECENT_LATENCIES
    histogram = metrics.latencies()["a", NATIVE]
    assert sum(histogram.counts) == 2 * MAX_RECENT_LATENCIES
    assert histogram.total_s == pytest.approx(9.001 * MAX_RECENT_LATENCIES)


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [
        pytest.param(0.0, 0, id="zero"),
        pytest.param(0.001, 0, id="first-bound"),
        pytest.param(0.0011, 1, id="above-the-first-bound"),
        pytest.param(60.0, len(BUCKET_BOUNDS_S) - 1, id="last-bound"),
        pytest.param(60.1, len(BUCKET_BOUNDS_S), id="above-the-last-bound"),
    ],
)
def test_latency_is_counted_in_the_bucket_with_the_smallest_sufficient_bound(
    metrics: Metrics, *, seconds: float, bucket: int
) -> None:
    metrics.observe(answered("a", seconds))
    histogram = metrics.latencies()["a", NATIVE]
    metrics.observe(answered("a", seconds))  # does not change what was returned
    assert [(index, count) for index, count in enumerate(histogram.counts) if count] == [(bucket, 1)]
    assert histogram.total_s == seconds


def test_a_dialect_has_its_own_answers_and_errors_but_shares_the_endpoint(metrics: Metrics) -> None:
    metrics.observe(answered("POST /embed", 0.001))
    metrics.observe(answered("POST /embed", 0.003, "invalid-input", "tei"))
    assert metrics.dialects() == {"native": (1, 0), "tei": (1, 1)}
    assert metrics.endpoints() == {"POST /embed": 2}
    assert metrics.recent_s() == {"POST /embed": [0.001, 0.003]}
    assert {key: sum(found.counts) for key, found in metrics.latencies().items()} == {
        ("POST /embed", "native"): 1,
        ("POST /embed", "tei"): 1,
    }
