"""The metrics as text for Prometheus: names, numbers and labels, in both text formats."""

import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from types import MappingProxyType

import pytest
from prometheus_client import REGISTRY, Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_open_metrics
from prometheus_client.parser import text_string_to_metric_families as read_plain

from api.answer_formats import OPEN_METRICS, PLAIN, TEXT_TYPES
from api.metric_types import (
    BacklogMetrics,
    CacheInfo,
    ConnectionMetrics,
    DialectMetrics,
    EndpointMetrics,
    LimitMetrics,
    LogMetrics,
    MetricsAnswer,
    MicroBatchMetrics,
    ModelLoadMetrics,
    ModelUsage,
    QueueMetrics,
    RedisResultMetrics,
    ResultCacheMetrics,
    TextSources,
)
from api.process_reports import Collected, Counts, Phase, ProcessReport, Restarts, ServiceView, WorkerPart
from api.prometheus import Families, text_answer
from host.process_usage import ProcessUsage
from telemetry.merging import merge
from telemetry.metrics import BUCKET_BOUNDS_S, Latencies
from tests.support.servers import ROOT

READERS: MappingProxyType[str, Callable[[str], Iterable[Metric]]] = MappingProxyType(
    {PLAIN: read_plain, OPEN_METRICS: read_open_metrics}
)
ANSWER = MetricsAnswer(  # each number occurs once
    total_requests=31 + 32,
    total_embeddings=52,
    uptime_seconds=11.5,
    cache_info=CacheInfo(["tiny/one", "tiny/two"], num_cached=2, max_cached=12, cache_ttl=13.0, cleanup_interval=14.0),
    errors={"invalid-input": 21, "overloaded": 22},
    endpoints={
        "POST /embed": EndpointMetrics(31, {"p50": 1.0, "p95": 2.0, "p99": 3.0}),
        "(no route)": EndpointMetrics(32, {"p50": 4.0, "p95": 5.0, "p99": 6.0}),
    },
    dialects={"native": DialectMetrics(63, 43)},
    queue=QueueMetrics(
        waiting_requests=41, waiting_texts=42, waiting_seconds=43.5, running=44, lanes=45, lanes_stuck=46, lanes_died=47
    ),
    backlog={
        "tokenize": BacklogMetrics(101.5, 102.0, callers=103),
        "bulk": BacklogMetrics(104.5, 105.0, callers=106),
    },
    micro_batches=MicroBatchMetrics(runs=61, texts=62, padded_tokens=63, dropped_texts=64),
    models={"tiny/one": ModelUsage(requests=51, texts=52, tokens=53)},
    model_loads=ModelLoadMetrics(loads=91, downloads_running=92, downloads_waiting=93, downloads_refused=94),
    result_cache=ResultCacheMetrics(
        hits=201,
        misses=202,
        coalesced=203,
        entries=204,
        bytes=205,
        limit_bytes=206,
        evictions=207,
        rejections=208,
        expirations=209,
        models={"tiny/one": TextSources(hits=201, misses=202, coalesced=203)},
        redis=RedisResultMetrics(
            "reachable",
            fetches=211,
            fetch_seconds=212.5,
            fetch_buckets={"0.001": 211, "+Inf": 0},
            lookups=213,
            hits=214,
            writes=215,
            dropped=216,
            queue_bytes=217,
            errors={"timeout": 218, "connection": 0},
        ),
    ),
    limits=LimitMetrics("redis", fallbacks=71),
    log=LogMetrics(lines_dropped=72),
    connections=ConnectionMetrics(
        open=306, idle=101, receiving=102, processing=103, body_bytes=104, closed_for_others=105
    ),
)
LATENCIES = {
    ("POST /embed", "native"): Latencies((4, 0, 3, *[0] * (len(BUCKET_BOUNDS_S) - 3), 24), total_s=91.25),
    ("(no route)", "native"): Latencies((32, *[0] * len(BUCKET_BOUNDS_S)), total_s=92.25),
}


def facts_of(answer: MetricsAnswer = ANSWER, *, phase: Phase = "healthy") -> Families:
    """Return what is written about the only process, with this *answer*."""
    counts = Counts(answer=answer, latencies=LATENCIES, recent_s={})
    report = ProcessReport(pid=1, phase=phase, stuck=[], counts=counts, fingerprints={"tiny/one": "d232dbe4e7fddd67"})
    return Families(
        whole=counts,
        collected=Collected(workers=[WorkerPart(0, report)], restarts=[]),
        view=None,
        uptime_s=answer.uptime_seconds,
        max_queue_s=81.0,
        version="1.2.3",
    )


FACTS = facts_of()
USAGE = ProcessUsage(
    pid=7,
    cpu_seconds=401.5,
    resident_bytes=402,
    proportional_bytes=403,
    virtual_bytes=404,
    open_files=405,
    max_files=406,
    started_s=407.5,
)
VIEW = ServiceView(phase="healthy", started_s=0.0, workers=3, ready=2, restarts=5, stuck=[], cached_models=[])


def part_of(number: int, *, texts: int = 42, started_s: float = 1.0, is_stale: bool = False) -> WorkerPart:
    """Return the report of a worker in which *texts* texts wait, and which has counted what `ANSWER` says."""
    answer = replace(ANSWER, queue=replace(ANSWER.queue, waiting_texts=texts))
    report = ProcessReport(
        pid=number,
        phase="healthy",
        stuck=[],
        counts=Counts(answer=answer, latencies=LATENCIES, recent_s={}),
        fingerprints={"tiny/one": f"fingerprint-{number}"},
        usage=replace(USAGE, pid=number, started_s=started_s),
    )
    return WorkerPart(number, report, is_stale=is_stale)


PARTS = [part_of(1), part_of(2, texts=3, started_s=5.0), part_of(2, texts=4, is_stale=True)]
"""Two workers: the second one drains, and has a replacement in the same place."""
OF_WORKERS = Families(
    whole=merge([part.report.counts for part in PARTS]),
    collected=Collected(
        workers=PARTS, restarts=[Restarts(2, "hung", 5)], supervisor=replace(USAGE, resident_bytes=502)
    ),
    view=VIEW,
    uptime_s=11.5,
    max_queue_s=81.0,
    version="1.2.3",
)
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]

each_format = pytest.mark.parametrize("wanted", TEXT_TYPES)


def read_back(wanted: str, facts: Families = FACTS) -> list[Metric]:
    text: bytes = text_answer(wanted, facts).body
    return list(READERS[wanted](text.decode()))


def samples(metrics: Iterable[Metric]) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for metric in metrics
        for sample in metric.samples
    }


@each_format
def test_text_has_all_numbers_and_labels_of_the_json_answer(wanted: str) -> None:
    values = samples(read_back(wanted))
    labels = {value for _, pairs in values for _, value in pairs}
    sums = {"total_requests": 0, "total_embeddings": 0, "connections": {**asdict(ANSWER.connections), "open": 0}}
    numbers, words = leaves({**asdict(ANSWER), **sums, "endpoints": {}})
    assert numbers - {0.0} <= set(values.values())
    assert words <= labels
    assert {"POST /embed", "(no route)", "invalid-input", "overloaded", "tiny/one"} <= labels


def leaves(tree: object) -> tuple[set[float], set[str]]:
    if isinstance(tree, dict | list):
        below = [leaves(value) for value in (tree.values() if isinstance(tree, dict) else tree)]
        return set().union(*(numbers for numbers, _ in below)), set().union(*(words for _, words in below))
    return (set(), {tree}) if isinstance(tree, str) else ({float(str(tree))}, set())


@each_format
def test_totals_are_the_sums_of_their_parts(wanted: str) -> None:
    values = samples(read_back(wanted))

    def total(name: str) -> float:
        return sum(value for (sample, _), value in values.items() if sample == name)

    assert total("fast_embedding_requests_total") == ANSWER.total_requests
    assert total("fast_embedding_model_texts_total") == ANSWER.total_embeddings
    assert total("fast_embedding_connections") == ANSWER.connections.open


@each_format
def test_latencies_are_a_histogram(wanted: str) -> None:
    values = samples(read_back(wanted))
    name, labels_of = "fast_embedding_request_duration_seconds", (("dialect", "native"), ("endpoint", "POST /embed"))
    buckets = {
        dict(labels)["le"]: value
        for (sample, labels), value in values.items()
        if sample == f"{name}_bucket" and set(labels_of) <= set(labels)
    }
    assert buckets["0.001"] == buckets["0.0025"] == 4
    assert buckets["0.005"] == buckets["60.0"] == 7
    assert buckets["+Inf"] == values[f"{name}_count", labels_of] == 31
    assert values[f"{name}_sum", labels_of] == 91.25


@each_format
def test_text_has_what_the_json_answer_lacks(wanted: str) -> None:
    values = samples(read_back(wanted))
    assert values["fast_embedding_ready", ()] == 1
    assert values["fast_embedding_build_info", (("version", "1.2.3"),)] == 1
    assert values["fast_embedding_queue_limit_seconds", ()] == 81
    assert values["fast_embedding_model_info", (("fingerprint", "d232dbe4e7fddd67"), ("model", "tiny/one"))] == 1
    assert values["process_resident_memory_bytes", ()] > 1e7
    assert values["process_cpu_seconds_total", ()] > 0
    assert values["process_open_fds", ()] > 0
    assert samples(read_back(wanted, facts_of(phase="draining")))["fast_embedding_ready", ()] == 0


@each_format
def test_names_follow_the_conventions_and_each_metric_has_a_help_text(wanted: str) -> None:
    metrics = read_back(wanted)
    assert len(metrics) == len({metric.name for metric in metrics}) > 30
    for metric in metrics:
        assert metric.name.startswith(("fast_embedding_", "process_"))
        assert metric.documentation.endswith(".")
        assert metric.type in {"counter", "gauge", "histogram", "info"}
        assert not metric.name.endswith(("_ms", "_milliseconds", "_mb", "_count", "_sum", "_bucket"))


def test_answer_leaves_nothing_in_the_global_registry() -> None:
    assert [metric.name for metric in read_back(PLAIN)] == [metric.name for metric in read_back(PLAIN)]
    assert not [metric.name for metric in REGISTRY.collect() if metric.name.startswith("fast_embedding_")]


def labels(**values: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(values.items()))


@each_format
def test_counters_of_workers_are_sums_and_gauges_have_the_label_of_the_worker(wanted: str) -> None:
    values = samples(read_back(wanted, OF_WORKERS))
    assert values["fast_embedding_requests_total", labels(endpoint="POST /embed", dialect="native")] == 3 * 31
    assert values["fast_embedding_model_texts_total", labels(model="tiny/one")] == 3 * 52
    assert values["fast_embedding_lanes_died_total", ()] == 3 * 47
    assert values["fast_embedding_queue_texts", labels(worker="1")] == 42
    assert values["fast_embedding_queue_texts", labels(worker="2")] == 3 + 4
    assert values["fast_embedding_queue_seconds", labels(worker="2")] == 43.5
    assert values["fast_embedding_connections", labels(worker="2", state="idle")] == 2 * 101
    assert values["fast_embedding_backlog_seconds", labels(worker="1", kind="bulk")] == 104.5
    assert values["fast_embedding_limits_info", labels(worker="1", store="redis")] == 1
    assert values["fast_embedding_result_cache_texts_total", labels(model="tiny/one", source="hit")] == 3 * 201
    assert values["fast_embedding_result_cache_entries", labels(worker="2")] == 2 * 204
    assert values["fast_embedding_result_cache_redis_info", labels(worker="1", state="reachable")] == 1
    assert values["fast_embedding_result_cache_redis_fetch_duration_seconds_count", ()] == 3 * 211
    assert values["fast_embedding_uptime_seconds", ()] == 11.5
    model = labels(model="tiny/one", fingerprint="fingerprint-2", worker="2")
    assert values["fast_embedding_model_info", model] == 1


@each_format
def test_each_place_of_a_worker_is_reported_also_if_none_runs_there(wanted: str) -> None:
    values = samples(read_back(wanted, OF_WORKERS))
    ready = {pairs: value for (name, pairs), value in values.items() if name == "fast_embedding_ready"}
    assert ready == {labels(worker="1"): 1, labels(worker="2"): 1, labels(worker="3"): 0}
    assert values["fast_embedding_workers", ()] == 3
    assert values["fast_embedding_worker_restarts_total", labels(worker="2", reason="hung")] == 5
    assert values["fast_embedding_worker_restarts_total", labels(worker="3", reason="signal")] == 0
    assert values["fast_embedding_worker_stale", labels(worker="2")] == 0, "that of the process started last"


@each_format
def test_all_processes_report_what_they_take(wanted: str) -> None:
    values = samples(read_back(wanted, OF_WORKERS))
    for worker in ("1", "2", "supervisor"):
        assert values["process_cpu_seconds_total", labels(worker=worker)] == 401.5
    assert values["process_resident_memory_bytes", labels(worker="supervisor")] == 502
    assert values["process_start_time_seconds", labels(worker="2")] == 5
    assert values["fast_embedding_worker_memory_bytes", labels(worker="1")] == 403


def test_workers_have_the_metrics_of_one_process_and_no_other_ones_without_a_word() -> None:
    alone, together = ({metric.name for metric in read_back(PLAIN, facts)} for facts in (FACTS, OF_WORKERS))
    assert alone <= together
    assert all("worker" in name for name in together - alone)


def test_guide_lists_exactly_these_metrics() -> None:
    guide = (ROOT / "docs/MONITORING.md").read_text(encoding="utf-8")
    rows = [line for line in guide.splitlines() if line.startswith(("| `fast_embedding_", "| `process_"))]
    suffixes = {"counter": "_total", "info": "_info"}
    named = [name for row in rows for name in re.findall(r"`((?:fast_embedding|process)_\w+)`", row.split("|")[1])]
    assert sorted(named) == sorted(
        metric.name + suffixes.get(metric.type, "") for metric in read_back(OPEN_METRICS, OF_WORKERS)
    )


@each_format
def test_content_type_has_the_version_of_the_format(wanted: str) -> None:
    assert text_answer(wanted, FACTS).media_type == TEXT_TYPES[wanted]


@each_format
def test_model_name_with_special_characters_is_escaped(wanted: str) -> None:
    name = 'a"b\\c\nd'
    values = samples(read_back(wanted, facts_of(replace(ANSWER, models={name: ModelUsage(1, 2, 3)}))))
    assert values["fast_embedding_model_texts_total", (("model", name),)] == 2
