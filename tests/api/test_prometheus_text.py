"""The metrics as text for Prometheus: names, numbers and labels, in both text formats."""

import re
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    ModelMetrics,
    QueueMetrics,
    RedisResultMetrics,
    ResultCacheMetrics,
    StageMetrics,
    TextSources,
)
from api.process_reports import Collected, Counts, Phase, ProcessReport, Restarts, ServiceView, WorkerPart
from api.prometheus import Families, text_answer
from engine.run_counters import RunCounts
from host.process_usage import ProcessUsage
from telemetry.histograms import DURATIONS_S, RATIOS, RUN_TEXTS, TEXTS, TOKENS, Buckets
from telemetry.merging import merge
from telemetry.metrics import STAGE_BOUNDS, RequestCounts
from tests.support.redis_servers import needed
from tests.support.servers import ROOT

READERS: MappingProxyType[str, Callable[[str], Iterable[Metric]]] = MappingProxyType(
    {PLAIN: read_plain, OPEN_METRICS: read_open_metrics}
)
ANSWER = MetricsAnswer(  # each number occurs once
    total_requests=31 + 32,
    total_embeddings=52,
    uptime_seconds=11.5,
    in_flight=15,
    event_loop_lag_seconds=16.5,
    lanes_busy_seconds=17.5,
    cache_info=CacheInfo(["tiny/one", "tiny/two"], num_cached=2, max_cached=12, cache_ttl=13.0, cleanup_interval=14.0),
    statuses={"200": 31, "404": 32},
    errors={"invalid-input": 21, "overloaded": 22},
    rate_limited={"requests": 23},
    endpoints={
        "POST /embed": EndpointMetrics(31, {"p50": 1.0, "p95": 2.0, "p99": 3.0}),
        "(no route)": EndpointMetrics(32, {"p50": 4.0, "p95": 5.0, "p99": 6.0}),
    },
    dialects={"native": DialectMetrics(63, 43)},
    stages={
        name: StageMetrics(count, seconds)
        for name, count, seconds in (
            ("load", 24, 24.5),
            ("cache", 25, 25.5),
            ("tokenize", 26, 26.5),
            ("queue", 27, 27.5),
            ("run", 28, 28.5),
        )
    },
    queue=QueueMetrics(
        waiting_requests=41, waiting_texts=42, waiting_seconds=43.5, running=44, lanes=45, lanes_stuck=46, lanes_died=47
    ),
    backlog={
        "tokenize": BacklogMetrics(101.5, 102.0, callers=103),
        "bulk": BacklogMetrics(104.5, 105.0, callers=106),
    },
    micro_batches=MicroBatchMetrics(runs=61, texts=62, padded_tokens=63, dropped_texts=64),
    models={
        "tiny/one": ModelMetrics(
            requests=51,
            texts=52,
            tokens=53,
            truncated=54,
            loads=55,
            load_failures=56,
            load_seconds=57.5,
            evictions={"memory": 58},
            memory_bytes=59,
        )
    },
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
        held_texts=221,
        held_limit_texts=222,
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


def buckets(bounds: Sequence[float], total: float, counts: Mapping[int, int]) -> Buckets:
    """Return what a histogram with *bounds* has counted: *counts* by bucket; -1 is the last one."""
    numbers = range(len(bounds) + 1)
    return Buckets(tuple(counts.get(number, counts.get(number - len(numbers), 0)) for number in numbers), total)


EMBED = "POST", "/embed", "native", "served"
REQUESTS = RequestCounts(
    answers={("POST", "/embed", "200", "native"): 31, ("", "(no route)", "404", "native"): 32},
    durations={
        EMBED: buckets(DURATIONS_S, 91.25, {0: 4, 2: 3, -1: 24}),
        ("", "(no route)", "native", "failed"): buckets(DURATIONS_S, 92.25, {0: 32}),
    },
    stages={
        name: buckets(STAGE_BOUNDS[name], found.seconds, {1: found.count})
        for name, found in ANSWER.stages.items()
        if name in STAGE_BOUNDS
    },
    texts=buckets(TEXTS, 301, {3: 302}),
    tokens=buckets(TOKENS, 303, {4: 304}),
)
RUNS = RunCounts(
    seconds={"tiny/one": buckets(DURATIONS_S, 310.5, {2: 311})},
    texts=buckets(RUN_TEXTS, 312, {0: 313}),
    padding=buckets(RATIOS, 314.5, {0: 315, 3: 1}),
)
BUSY_S = {"lane-0": 17.5, "express": 18.5}
EXEMPLARS = {EMBED: {2: ("a" * 32, 0.004, 1800000000.5), len(DURATIONS_S): ("b" * 32, 9e4, 1800000001.5)}}


def counts_of(answer: MetricsAnswer) -> Counts:
    return Counts(answer=answer, requests=REQUESTS, runs=RUNS, busy_s=BUSY_S, recent_s={}, exemplars=EXEMPLARS)


def facts_of(answer: MetricsAnswer = ANSWER, *, phase: Phase = "healthy") -> Families:
    """Return what is written about the only process, with this *answer*."""
    counts = counts_of(answer)
    report = ProcessReport(pid=1, phase=phase, stuck=[], counts=counts, fingerprints={"tiny/one": "d232dbe4e7fddd67"})
    return Families(
        whole=counts,
        collected=Collected(workers=[WorkerPart(0, report)], restarts=[]),
        view=None,
        uptime_s=answer.uptime_seconds,
        max_queue_s=81.0,
        max_request_s=300.0,
        has_rate_limits=True,
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
        counts=counts_of(answer),
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
    max_request_s=300.0,
    has_rate_limits=True,
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
    assert {
        "POST",
        "/embed",
        "(no route)",
        "200",
        "requests",
        "memory",
        "invalid-input",
        "overloaded",
        "tiny/one",
    } <= labels


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
    assert total("fast_embedding_request_duration_seconds_count") == ANSWER.total_requests
    assert total("fast_embedding_model_texts_total") == ANSWER.total_embeddings
    assert total("fast_embedding_connections") == ANSWER.connections.open


OF_EMBED = (("dialect", "native"), ("method", "POST"), ("outcome", "served"), ("route", "/embed"))
DURATION = "fast_embedding_request_duration_seconds"


@each_format
def test_durations_are_a_histogram(wanted: str) -> None:
    values = samples(read_back(wanted))
    buckets = {
        dict(labels)["le"]: value
        for (sample, labels), value in values.items()
        if sample == f"{DURATION}_bucket" and set(OF_EMBED) <= set(labels)
    }
    assert buckets["0.001"] == buckets["0.0025"] == 4
    assert buckets["0.005"] == buckets["60.0"] == buckets["300.0"] == 7
    assert list(buckets)[-2:] == ["300.0", "+Inf"], "REQUEST_TIMEOUT is 300 s"
    assert buckets["+Inf"] == values[f"{DURATION}_count", OF_EMBED] == 31
    assert values[f"{DURATION}_sum", OF_EMBED] == 91.25


def exemplars_of(facts: Families) -> list[tuple[str, dict[str, str], float]]:
    return [
        (sample.labels["le"], sample.exemplar.labels, sample.exemplar.value)
        for metric in read_back(OPEN_METRICS, facts)
        for sample in metric.samples
        if sample.exemplar
    ]


def test_durations_in_open_metrics_have_traces_as_exemplars() -> None:
    assert exemplars_of(FACTS) == [
        ("0.005", {"trace_id": "a" * 32}, 0.004),
        ("+Inf", {"trace_id": "b" * 32}, 9e4),
    ]


def test_several_workers_have_no_exemplars() -> None:
    assert exemplars_of(OF_WORKERS) == []


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
    assert (
        values["fast_embedding_requests_total", labels(method="POST", route="/embed", status="200", dialect="native")]
        == 3 * 31
    )
    assert values["fast_embedding_model_texts_total", labels(model="tiny/one")] == 3 * 52
    assert values["fast_embedding_lanes_died_total", ()] == 3 * 47
    assert values["fast_embedding_model_run_seconds_count", labels(model="tiny/one")] == 3 * 311
    assert values["fast_embedding_queue_wait_seconds_count", ()] == 3 * 27
    assert values["fast_embedding_requests_in_flight", labels(worker="2")] == 2 * 15
    assert values["fast_embedding_event_loop_lag_seconds", labels(worker="2")] == 16.5
    assert values["fast_embedding_model_memory_bytes", labels(worker="2", model="tiny/one")] == 2 * 59
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
    busy = values["fast_embedding_lane_busy_seconds_total", labels(worker="2", lane="express")]
    assert busy == 18.5, "of the process started last: a counter that falls to less than that looks like a restart"
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


@pytest.mark.prometheus
@pytest.mark.parametrize("facts", [FACTS, OF_WORKERS], ids=["one-process", "workers"])
def test_promtool_accepts_all_metrics(facts: Families) -> None:
    text: bytes = text_answer(PLAIN, facts).body
    done = subprocess.run([needed("promtool"), "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


SUFFIXES = {"counter": "_total", "info": "_info"}
ROW = re.compile(r"\| (?P<names>(?:`(?:fast_embedding|process)_\w+`(?:, )?)+) \| (?P<kind>[^|]+) \|")
Described = dict[str, tuple[str, frozenset[str]]]
"""Type and labels of each metric, by its name."""


def described_by_the_guide() -> Described:
    """Return what the table in docs/MONITORING.md says."""
    found: Described = {}
    for row in map(ROW.match, (ROOT / "docs/MONITORING.md").read_text(encoding="utf-8").splitlines()):
        if row is not None:
            kind, labels = row["kind"].split(",")[0], frozenset(re.findall(r"`(\w+)`", row["kind"]))
            for name in re.findall(r"`(\w+)`", row["names"]):
                assert name not in found, "described twice"
                found[name] = ("info" if kind == "1" else kind, labels)
    return found


def described_by_the_service(facts: Families) -> Described:
    return {
        metric.name + SUFFIXES.get(metric.type, ""): (
            metric.type,
            frozenset(label for sample in metric.samples for label in sample.labels) - {"le"},
        )
        for metric in read_back(OPEN_METRICS, facts)
    }


def test_guide_names_each_metric_with_its_type_and_labels_and_no_other() -> None:
    guide = described_by_the_guide()
    alone, together = described_by_the_service(FACTS), described_by_the_service(OF_WORKERS)
    assert {name for name in guide if "worker" not in name} == set(alone)
    assert {name: guide[name] for name in alone} == alone
    assert set(guide) == set(together)
    assert {name: guide[name] for name in set(together) - set(alone)} == {
        name: together[name] for name in set(together) - set(alone)
    }


def test_with_workers_only_what_the_guide_says_has_their_label() -> None:
    """Gauges, the lanes, and what the operating system says of processes."""
    guide = described_by_the_guide()
    added = {
        name
        for name, (_, labels) in described_by_the_service(OF_WORKERS).items()
        if "worker" in labels and "worker" not in guide[name][1]
    }
    exempt = {"fast_embedding_workers", "fast_embedding_uptime_seconds", "fast_embedding_build_info"}
    assert added == {
        name
        for name, (kind, labels) in guide.items()
        if (kind in {"gauge", "info"} and "worker" not in labels and name not in exempt)
        or name in {"fast_embedding_lane_busy_seconds_total", "process_cpu_seconds_total"}
    }


@each_format
def test_content_type_has_the_version_of_the_format(wanted: str) -> None:
    assert text_answer(wanted, FACTS).media_type == TEXT_TYPES[wanted]


@each_format
def test_model_name_with_special_characters_is_escaped(wanted: str) -> None:
    name = 'a"b\\c\nd'
    values = samples(read_back(wanted, facts_of(replace(ANSWER, models={name: ModelMetrics(1, 2, 3)}))))
    assert values["fast_embedding_model_texts_total", (("model", name),)] == 2
