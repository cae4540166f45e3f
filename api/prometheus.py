"""Metrics as text for Prometheus and compatible scrapers, with the numbers of the JSON answer."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.openmetrics.exposition import generate_latest as generate_open_metrics

from api.answer_formats import OPEN_METRICS, TEXT_TYPES
from api.metric_types import (
    MetricsAnswer,
)
from telemetry.metrics import BUCKET_BOUNDS_S, Latencies
from web.responses import PlainAnswer

PREFIX = "fast_embedding_"


def text_answer(text_format: str, families: "Families") -> PlainAnswer:
    """Answer in *text_format*, a key of TEXT_TYPES, with *families* and the process metrics of the operating system."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(families)
    ProcessCollector(registry=registry)
    write: Callable[[CollectorRegistry], bytes] = (
        generate_open_metrics if text_format == OPEN_METRICS else generate_latest
    )
    return PlainAnswer(write(registry), media_type=TEXT_TYPES[text_format])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Families:
    """The metrics of one moment as Prometheus metric families, for one registry.

    Attributes:
        answer: the JSON answer.
        latencies: of each endpoint and dialect.
        fingerprints: of the models in memory, by name.
        max_queue_s: seconds of work that may wait (MAX_QUEUE_SECONDS).
        version: that of the service.
        is_ready: whether the service accepts work.
        error_codes: all codes that an error can have; those that have not occurred are written with 0.
    """

    answer: MetricsAnswer
    latencies: Mapping[tuple[str, str], Latencies]
    fingerprints: Mapping[str, str]
    max_queue_s: float
    version: str
    is_ready: bool
    error_codes: Collection[str] = ()

    def collect(self) -> Iterator[Metric]:
        answer = self.answer
        yield _info("build", "The service's version.", ["version"], [[self.version]])
        yield _gauge("ready", "Whether the service accepts work: 1, or 0 while it starts or shuts down.", self.is_ready)
        yield _gauge("uptime_seconds", "Seconds since the service was started.", answer.uptime_seconds)
        yield from self._requests()
        yield from self._queue()
        yield from self._backlog()
        yield from self._micro_batches()
        yield from self._models()
        yield from self._connections()
        yield _info("limits", "Where quotas are counted.", ["store"], [[answer.limits.store]])
        yield _counter("limits_fallbacks", "Times that memory replaced an unreachable Redis.", answer.limits.fallbacks)
        yield _counter("log_lines_dropped", "Lines of the log that could not be written.", answer.log.lines_dropped)

    def _requests(self) -> Iterator[Metric]:
        answer = self.answer
        requests = CounterMetricFamily(
            f"{PREFIX}requests",
            "Requests answered, health checks included. A dialect is another server's API.",
            labels=["endpoint", "dialect"],
        )
        for labels, latencies in self.latencies.items():
            requests.add_metric(labels, sum(latencies.counts))
        yield requests
        # With 0 from the start: Prometheus cannot see the first increase of a series that begins with it.
        errors = dict.fromkeys(sorted(self.error_codes), 0) | answer.errors
        yield _counters("errors", "Problems answered, by code.", "code", errors)
        failed = {name: dialect.errors for name, dialect in answer.dialects.items()}
        yield _counters("dialect_errors", "Requests answered with an error, by dialect.", "dialect", failed)
        durations = HistogramMetricFamily(
            f"{PREFIX}request_duration_seconds",
            "From a request's head to the end of its answer.",
            labels=["endpoint", "dialect"],
        )
        for labels, latencies in self.latencies.items():
            bounds = [*map(str, BUCKET_BOUNDS_S), "+Inf"]
            durations.add_metric(
                labels, list(zip(bounds, accumulate(latencies.counts), strict=True)), latencies.total_s
            )
        yield durations

    def _queue(self) -> Iterator[Metric]:
        queue = self.answer.queue
        yield _gauge(
            "queue_seconds", "Seconds until the lanes have done what waits, without bulk.", queue.waiting_seconds
        )
        yield _gauge("queue_limit_seconds", "Seconds of work that may wait (MAX_QUEUE_SECONDS).", self.max_queue_s)
        yield _gauge("queue_requests", "Requests that wait.", queue.waiting_requests)
        yield _gauge("queue_texts", "Texts that wait.", queue.waiting_texts)
        yield _gauge("micro_batches_running", "Model runs given to lanes and not finished.", queue.running)
        yield _gauge("lanes", "Inference threads, without the one for small requests.", queue.lanes)
        yield _gauge("lanes_stuck", "Lanes in one run for longer than LANE_STUCK_SECONDS.", queue.lanes_stuck)
        yield _counter("lanes_died", "Lane threads that ended unexpectedly.", queue.lanes_died)

    def _backlog(self) -> Iterator[Metric]:
        backlog = self.answer.backlog
        for name, documentation, attribute in (
            ("backlog_seconds", "Seconds until the work of this kind that waits is done.", "seconds"),
            ("backlog_limit_seconds", "Limit of it; one caller may hold 80 %.", "limit_seconds"),
            ("backlog_callers", "Callers who hold some of it.", "callers"),
        ):
            family = GaugeMetricFamily(PREFIX + name, documentation, labels=["kind"])
            for kind, waiting in backlog.items():
                family.add_metric([kind], getattr(waiting, attribute))
            yield family

    def _micro_batches(self) -> Iterator[Metric]:
        batches = self.answer.micro_batches
        yield _counter("micro_batches", "Model runs.", batches.runs)
        yield _counter("micro_batch_texts", "Texts in model runs.", batches.texts)
        yield _counter("micro_batch_padded_tokens", "Tokens in model runs, padding included.", batches.padded_tokens)
        yield _counter("dropped_texts", "Texts dropped before a run because their callers left.", batches.dropped_texts)

    def _connections(self) -> Iterator[Metric]:
        connections = self.answer.connections
        states = {state: getattr(connections, state) for state in ("idle", "receiving", "processing")}
        yield _gauges("connections", "Open connections, by what they do.", "state", states)
        yield _gauge("request_body_bytes", "Request bodies in memory that have no answer yet.", connections.body_bytes)
        yield _counter("connections_closed_for_others", "Connections closed for others.", connections.closed_for_others)

    def _models(self) -> Iterator[Metric]:
        cache = self.answer.cache_info
        loaded = [[name, self.fingerprints.get(name, "")] for name in cache.cached_models]
        yield _info("model", "The models in memory.", ["model", "fingerprint"], loaded)
        yield _gauge("models_loaded", "Models in memory.", cache.num_cached)
        yield _gauge("models_limit", "Models in memory at most (MAX_CACHED_MODELS).", cache.max_cached)
        yield _gauge("model_ttl_seconds", "An unused model is evicted after this time.", cache.cache_ttl)
        yield _gauge("model_cleanup_interval_seconds", "Seconds between searches.", cache.cleanup_interval)
        loads = self.answer.model_loads
        yield _gauge("model_loads_running", "Models that are being loaded, downloads included.", loads.loads)
        yield _gauge("model_downloads_running", "Downloads of models that run.", loads.downloads_running)
        yield _gauge("model_downloads_waiting", "Downloads of models that wait.", loads.downloads_waiting)
        yield _counter("model_downloads_refused", "Downloads refused: too many waited.", loads.downloads_refused)
        for kind, documentation in (
            ("requests", "Requests answered with vectors."),
            ("texts", "Texts embedded."),
            ("tokens", "Tokens of texts embedded, without padding."),
        ):
            counts = {name: getattr(usage, kind) for name, usage in self.answer.models.items()}
            yield _counters(f"model_{kind}", documentation, "model", dict.fromkeys(cache.cached_models, 0) | counts)


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, documentation, value)


def _gauges(name: str, documentation: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, documentation, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _counter(name: str, documentation: str, value: float) -> Metric:
    return CounterMetricFamily(PREFIX + name, documentation, value)


def _counters(name: str, documentation: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(PREFIX + name, documentation, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _info(name: str, documentation: str, labels: list[str], rows: Iterable[list[str]]) -> Metric:
    family = InfoMetricFamily(PREFIX + name, documentation, labels=labels)
    for row in rows:
        family.add_metric(row, {})
    return family
