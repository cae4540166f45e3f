import pytest

from telemetry.metrics import BOUNDS_S, REMEMBERED_REQUESTS, Metrics


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def test_nothing_was_counted_before_the_first_answer(metrics: Metrics) -> None:
    assert (metrics.requests, metrics.errors, metrics.endpoints(), metrics.latencies()) == (0, {}, {}, {})


def test_answers_are_counted_per_endpoint_and_in_all(metrics: Metrics) -> None:
    for endpoint in ("POST /embed", "POST /embed", "GET /health"):
        metrics.count(endpoint, 0.001, None)
    assert metrics.requests == 3
    assert {name: told[0] for name, told in metrics.endpoints().items()} == {"POST /embed": 2, "GET /health": 1}


def test_problems_are_counted_by_code(metrics: Metrics) -> None:
    for code in ("invalid-input", None, "invalid-input", "overloaded"):
        metrics.count("POST /embed", 0.001, code)
    assert metrics.errors == {"invalid-input": 2, "overloaded": 1}
    assert metrics.requests == 4


def test_percentiles_are_those_of_the_latencies_in_milliseconds(metrics: Metrics) -> None:
    for ms in range(1, 102):
        metrics.count("POST /embed", ms / 1e3, None)
    assert metrics.endpoints()["POST /embed"] == (101, {"p50": 51.0, "p95": 96.0, "p99": 100.0})


def test_one_answer_is_every_percentile(metrics: Metrics) -> None:
    metrics.count("GET /health", 0.0012345, None)
    [(_, percentiles)] = metrics.endpoints().values()
    assert percentiles == {"p50": 1.234, "p95": 1.234, "p99": 1.234}


def test_endpoints_do_not_share_their_latencies(metrics: Metrics) -> None:
    metrics.count("a", 0.001, None)
    metrics.count("b", 0.009, None)
    assert [told[1]["p50"] for told in metrics.endpoints().values()] == [1.0, 9.0]


def test_latencies_of_old_answers_are_forgotten_and_their_number_is_not(metrics: Metrics) -> None:
    for _ in range(REMEMBERED_REQUESTS):
        metrics.count("a", 9.0, None)
    for _ in range(REMEMBERED_REQUESTS):
        metrics.count("a", 0.001, None)
    assert metrics.endpoints()["a"] == (2 * REMEMBERED_REQUESTS, {"p50": 1.0, "p95": 1.0, "p99": 1.0})


def test_errors_are_told_as_a_copy(metrics: Metrics) -> None:
    metrics.count("a", 0.001, "invalid-input")
    metrics.errors.clear()
    assert metrics.errors == {"invalid-input": 1}


@pytest.mark.parametrize(
    ("seconds", "place"),
    [
        pytest.param(0.0, 0, id="none"),
        pytest.param(0.001, 0, id="the-first-bound"),
        pytest.param(0.0011, 1, id="more-than-the-first-bound"),
        pytest.param(60.0, len(BOUNDS_S) - 1, id="the-last-bound"),
        pytest.param(60.1, len(BOUNDS_S), id="more-than-the-last-bound"),
    ],
)
def test_latency_is_counted_under_the_least_bound_that_holds_it(
    metrics: Metrics, *, seconds: float, place: int
) -> None:
    metrics.count("a", seconds, None)
    told = metrics.latencies()["a"]
    assert [index for index, count in enumerate(told.counts) if count] == [place]
    assert told.total_s == seconds


def test_latencies_are_counted_since_the_start(metrics: Metrics) -> None:
    for _ in range(2 * REMEMBERED_REQUESTS):
        metrics.count("a", 0.5, None)
    told = metrics.latencies()["a"]
    assert (sum(told.counts), told.total_s) == (2 * REMEMBERED_REQUESTS, REMEMBERED_REQUESTS)


def test_latencies_told_do_not_grow_any_more(metrics: Metrics) -> None:
    metrics.count("a", 0.5, None)
    told = metrics.latencies()["a"]
    metrics.count("a", 0.5, None)
    assert sum(told.counts) == 1
