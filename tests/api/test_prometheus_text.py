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
from api.answer_types import CacheInfo, ModelUsage
from api.metric_types import (
    BacklogMetrics,
    ConnectionMetrics,
    DialectMetrics,
    EndpointMetrics,
    LimitMetrics,
    LogMetrics,
    MetricsAnswer,
    MicroBatchMetrics,
    ModelLoadMetrics,
    QueueMetrics,
)
from api.prometheus import Families, text_answer
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
    limits=LimitMetrics("redis", fallbacks=71),
    log=LogMetrics(lines_dropped=72),
    connections=ConnectionMetrics(
        open=306, idle=101, receiving=102, processing=103, body_bytes=104, closed_for_others=105
    ),
)
FACTS = Families(
    answer=ANSWER,
    latencies={
        ("POST /embed", "native"): Latencies((4, 0, 3, *[0] * (len(BUCKET_BOUNDS_S) - 3), 24), total_s=91.25),
        ("(no route)", "native"): Latencies((32, *[0] * len(BUCKET_BOUNDS_S)), total_s=92.25),
    },
    fingerprints={"tiny/one": "d232dbe4e7fddd67"},
    max_queue_s=81.0,
    version="1.2.3",
    is_ready=True,
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
    assert samples(read_back(wanted, replace(FACTS, is_ready=False)))["fast_embedding_ready", ()] == 0


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


def test_guide_lists_exactly_these_metrics() -> None:
    guide = (ROOT / "docs/production/monitoring.md").read_text(encoding="utf-8")
    rows = [line for line in guide.splitlines() if line.startswith(("| `fast_embedding_", "| `process_"))]
    suffixes = {"counter": "_total", "info": "_info"}
    named = [name for row in rows for name in re.findall(r"`((?:fast_embedding|process)_\w+)`", row.split("|")[1])]
    assert sorted(named) == sorted(metric.name + suffixes.get(metric.type, "") for metric in read_back(OPEN_METRICS))


@each_format
def test_content_type_has_the_version_of_the_format(wanted: str) -> None:
    assert text_answer(wanted, FACTS).media_type == TEXT_TYPES[wanted]


@each_format
def test_model_name_with_special_characters_is_escaped(wanted: str) -> None:
    name = 'a"b\\c\nd'
    values = samples(read_back(wanted, replace(FACTS, answer=replace(ANSWER, models={name: ModelUsage(1, 2, 3)}))))
    assert values["fast_embedding_model_texts_total", (("model", name),)] == 2
