"""Metrics of requests, model runs and lanes, for Prometheus."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.samples import Exemplar as PrometheusExemplar

from api.process_reports import Counts
from api.prometheus_families import PREFIX, counter, counters
from telemetry.histograms import DURATIONS_S, RATIOS, RUN_TEXTS, TEXTS, TOKENS, Buckets, shortened, up_to
from telemetry.metrics import STAGE_BOUNDS, Exemplar
from telemetry.request_work import StageName

POLICIES = ("requests", "tokens", "network-requests", "network-tokens")
"""The quotas that can reject a request; see `access.quotas`."""
STAGES: tuple[tuple[StageName, str, str], ...] = (
    ("load", "request_load_seconds", "Per request: until its model was in memory, if it was not."),
    ("cache", "cache_lookup_seconds", "Per request: looking up cached results."),
    ("tokenize", "tokenize_seconds", "Per request: tokenising, with the wait for the tokenizer thread."),
    ("queue", "queue_wait_seconds", "Per request: from its admission until its first text ran."),
    ("run", "request_run_seconds", "Per request: from there until its last text had its vector."),
)
"""The parts of a request's time, with the names of their histograms and their documentation."""


def request_families(
    whole: Counts,
    *,
    error_codes: Collection[str],
    has_rate_limits: bool,
    longest_s: float,
    exemplars: Mapping[tuple[str, str, str, str], Mapping[int, Exemplar]],
) -> Iterator[Metric]:
    """Yield the metrics of requests.

    Args:
        whole: what all processes have counted.
        error_codes: all codes that an error can have.
        has_rate_limits: whether callers have quotas.
        longest_s: REQUEST_TIMEOUT.
        exemplars: of durations, by their labels and bucket.
    """
    answer, requests = whole.answer, whole.requests
    answers = CounterMetricFamily(
        f"{PREFIX}requests",
        "Requests answered, health checks included. A dialect is another server's API.",
        labels=["method", "route", "status", "dialect"],
    )
    for values, count in requests.answers.items():
        answers.add_metric(values, count)
    yield answers
    # With 0 from the start: Prometheus cannot see the first increase of a series that begins with it.
    errors = dict.fromkeys(sorted(error_codes), 0) | answer.errors
    yield counters("errors", "Problems answered, by code.", "code", errors)
    failed = {name: dialect.errors for name, dialect in answer.dialects.items()}
    yield counters("dialect_errors", "Requests answered with an error, by dialect.", "dialect", failed)
    limited = dict.fromkeys(POLICIES if has_rate_limits else (), 0) | answer.rate_limited
    yield counters("rate_limited", "Requests rejected because of quotas, by policy.", "policy", limited)
    bounds = up_to(longest_s)
    durations = HistogramMetricFamily(
        f"{PREFIX}request_duration_seconds",
        "From a request's head to the end of its answer.",
        labels=["method", "route", "dialect", "outcome"],
    )
    for labels, found in requests.durations.items():
        _add(durations, labels, DURATIONS_S[:bounds], shortened(found, bounds), exemplars.get(labels, {}))
    yield durations
    for stage, name, documentation in STAGES:
        stage_bounds = STAGE_BOUNDS[stage]
        most = bounds if stage_bounds is DURATIONS_S else len(stage_bounds)
        yield _histogram(name, documentation, stage_bounds[:most], shortened(requests.stages[stage], most))
    yield _histogram("request_texts", "Texts per request.", TEXTS, requests.texts)
    yield _histogram("request_tokens", "Tokens per request, without padding.", TOKENS, requests.tokens)


def run_families(whole: Counts, *, longest_s: float) -> Iterator[Metric]:
    """Yield the metrics of model runs."""
    batches, runs, bounds = whole.answer.micro_batches, whole.runs, up_to(longest_s)
    yield counter("micro_batches", "Model runs.", batches.runs)
    yield counter("micro_batch_texts", "Texts in model runs.", batches.texts)
    yield counter("micro_batch_padded_tokens", "Tokens in model runs, padding included.", batches.padded_tokens)
    yield counter("dropped_texts", "Texts dropped before a run because their callers left.", batches.dropped_texts)
    seconds = HistogramMetricFamily(f"{PREFIX}model_run_seconds", "Per model run.", labels=["model"])
    for model, found in runs.seconds.items():
        _add(seconds, [model], DURATIONS_S[:bounds], shortened(found, bounds))
    yield seconds
    yield _histogram("run_texts", "Texts per model run.", RUN_TEXTS, runs.texts)
    yield _histogram("run_padding_ratio", "Share of padding in the tokens of a run, 0 to 1.", RATIOS, runs.padding)


def lane_family(busy_s: Mapping[tuple[str, ...], float], worker_label: Sequence[str]) -> Metric:
    """Return the metric of lanes; *busy_s* is by lane, and by worker if there is a *worker_label*."""
    family = CounterMetricFamily(
        f"{PREFIX}lane_busy_seconds", "Time in model runs, by inference thread.", labels=["lane", *worker_label]
    )
    for values, seconds in busy_s.items():
        family.add_metric(values, seconds)
    return family


def _histogram(name: str, documentation: str, bounds: Sequence[float], found: Buckets) -> Metric:
    family = HistogramMetricFamily(PREFIX + name, documentation, labels=[])
    _add(family, [], bounds, found)
    return family


def _add(
    family: HistogramMetricFamily,
    labels: Sequence[str],
    bounds: Sequence[float],
    found: Buckets,
    exemplars: Mapping[int, Exemplar] | None = None,
) -> None:
    """Add the series with *labels* to *family*."""
    edges = [*map(str, bounds), "+Inf"]
    latest: dict[int, Exemplar] = {}
    for bucket, exemplar in (exemplars or {}).items():
        place = min(bucket, len(bounds))  # those above the last bound share a bucket
        latest[place] = max(latest.get(place, exemplar), exemplar, key=lambda one: one[2])
    buckets: list[Any] = [
        (edge, count, PrometheusExemplar({"trace_id": latest[place][0]}, *latest[place][1:]))
        if place in latest
        else (edge, count)
        for place, (edge, count) in enumerate(zip(edges, accumulate(found.counts), strict=True))
    ]
    family.add_metric(labels, buckets, found.total)
