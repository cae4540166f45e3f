import pytest

from telemetry.answered_request import NATIVE
from telemetry.metrics import MAX_RECENT_LATENCIES, Metrics, percentiles_ms
from telemetry.request_work import RequestWork, Stage
from tests.support.answered_requests import answered


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def test_nothing_is_counted_before_the_first_answer(metrics: Metrics) -> None:
    assert (metrics.requests, metrics.errors, metrics.endpoints(), metrics.statuses()) == (0, {}, {}, {})
    assert metrics.counts().answers == {}


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
    histogram = metrics.counts().durations["", "a", NATIVE, "served"]
    assert histogram.count == 2 * MAX_RECENT_LATENCIES
    assert histogram.total == pytest.approx(9.001 * MAX_RECENT_LATENCIES)


def test_percentiles_are_those_of_served_requests(metrics: Metrics) -> None:
    for status, seconds in ((200, 0.5), (429, 0.0), (503, 0.0), (400, 0.001), (504, 30.0)):
        metrics.observe(answered("POST /embed", seconds, status=status))
    metrics.observe(answered("POST /tokenize", 0.0, status=503))
    assert metrics.recent_s() == {"POST /embed": [0.5]}
    assert metrics.endpoints() == {"POST /embed": 5, "POST /tokenize": 1}


def test_answers_are_counted_by_method_route_status_and_dialect(metrics: Metrics) -> None:
    for status, dialect in ((200, "native"), (200, "native"), (400, "native"), (200, "tei")):
        metrics.observe(answered("POST /embed", 0.5, dialect=dialect, status=status))
    assert metrics.counts().answers == {
        ("POST", "/embed", "200", "native"): 2,
        ("POST", "/embed", "400", "native"): 1,
        ("POST", "/embed", "200", "tei"): 1,
    }
    assert metrics.statuses() == {"200": 3, "400": 1}


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        pytest.param(200, "served", id="200"),
        pytest.param(304, "served", id="304"),
        pytest.param(400, "failed", id="400"),
        pytest.param(429, "refused", id="429"),
        pytest.param(499, "failed", id="caller-left"),
        pytest.param(500, "failed", id="500"),
        pytest.param(503, "refused", id="503"),
        pytest.param(0, "failed", id="no-answer"),
    ],
)
def test_durations_of_refused_requests_are_apart_from_those_of_served_ones(
    metrics: Metrics, *, status: int, outcome: str
) -> None:
    metrics.observe(answered("POST /embed", 0.5, status=status))
    assert [labels[3] for labels in metrics.counts().durations] == [outcome]


def test_methods_and_statuses_that_are_not_ours_share_a_series(metrics: Metrics) -> None:
    for number in range(1000):
        metrics.observe(answered(f"INVENTED{number} /embed", 0.5, status=1000 + number))
    assert metrics.counts().answers == {("_OTHER", "/embed", "other", "native"): 1000}
    assert metrics.endpoints() == {"_OTHER /embed": 1000}


def test_stages_of_a_request_are_counted_once_each(metrics: Metrics) -> None:
    """A request may look up cached results twice: before its model is loaded, and after."""
    work = RequestWork(texts=3, tokens=12)
    work.stages += [Stage("cache", 1.0, 1.25), Stage("load", 1.25, 2.25), Stage("cache", 2.25, 2.5)]
    metrics.observe(answered("POST /embed", 2.0, work=work))
    counts = metrics.counts()
    found = {name: (stage.count, stage.total) for name, stage in counts.stages.items() if stage.count}
    assert found == {"cache": (1, 0.5), "load": (1, 1.0)}
    assert (counts.texts.total, counts.tokens.total) == (3, 12)


def test_requests_without_work_count_in_no_stage(metrics: Metrics) -> None:
    metrics.observe(answered("GET /health", 0.5, work=RequestWork()))
    metrics.observe(answered("POST /embed", 0.5, "overloaded", status=503, work=RequestWork(texts=2)))
    counts = metrics.counts()
    assert (counts.texts.count, counts.tokens.count) == (1, 0)
    assert sum(stage.count for stage in counts.stages.values()) == 0


def test_latest_request_with_a_trace_is_the_exemplar_of_its_bucket() -> None:
    metrics = Metrics(time_of_day=lambda: 1800000000.5)
    for seconds, trace_id in ((0.5, "a" * 32), (0.45, "b" * 32), (0.46, ""), (0.002, "c" * 32)):
        metrics.observe(answered("POST /embed", seconds, trace_id=trace_id))
    [found] = metrics.exemplars().values()
    assert sorted(found.values()) == [("b" * 32, 0.45, 1800000000.5), ("c" * 32, 0.002, 1800000000.5)]


def test_rejections_are_counted_by_quota(metrics: Metrics) -> None:
    metrics.count_rate_limited(["requests", "network-requests"])
    metrics.count_rate_limited(["requests"])
    assert metrics.rate_limited == {"requests": 2, "network-requests": 1}


def test_what_was_read_does_not_change(metrics: Metrics) -> None:
    metrics.observe(answered("a", 0.5))
    before = metrics.counts()
    metrics.observe(answered("a", 0.5))
    assert before.durations["", "a", NATIVE, "served"].count == 1


def test_a_dialect_has_its_own_answers_and_errors_but_shares_the_endpoint(metrics: Metrics) -> None:
    metrics.observe(answered("POST /embed", 0.001))
    metrics.observe(answered("POST /embed", 0.003, "invalid-input", "tei"))
    assert metrics.dialects() == {"native": (1, 0), "tei": (1, 1)}
    assert metrics.endpoints() == {"POST /embed": 2}
    assert metrics.recent_s() == {"POST /embed": [0.001, 0.003]}
    assert {key: found.count for key, found in metrics.counts().durations.items()} == {
        ("POST", "/embed", "native", "served"): 1,
        ("POST", "/embed", "tei", "served"): 1,
    }
