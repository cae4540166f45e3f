"""Metrics as text for Prometheus and compatible scrapers, with the numbers of the JSON answer."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.openmetrics.exposition import generate_latest as generate_open_metrics

from api.answer_formats import OPEN_METRICS, TEXT_TYPES
from api.metric_types import MetricsAnswer
from api.process_reports import Collected, Counts, ServiceView
from api.prometheus_families import PREFIX, counter, gauge, info, labelled
from api.prometheus_models import model_families
from api.prometheus_requests import lane_family, request_families, run_families
from api.prometheus_results import result_families
from api.prometheus_slots import Slot, slot_of
from api.prometheus_workers import process_families, worker_families
from web.responses import PlainAnswer


def text_answer(text_format: str, families: "Families") -> PlainAnswer:
    """Answer in *text_format*, a key of TEXT_TYPES, with *families* and the process metrics of the operating system."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(families)
    if families.view is None:
        ProcessCollector(registry=registry)
    write: Callable[[CollectorRegistry], bytes] = (
        generate_open_metrics if text_format == OPEN_METRICS else generate_latest
    )
    return PlainAnswer(write(registry), media_type=TEXT_TYPES[text_format])


@dataclass(frozen=True, kw_only=True, eq=False)
class Families:
    """The metrics of one moment as Prometheus metric families, for one registry.

    With several workers, counters are sums without a label for the worker, and gauges have the label `worker`: what to
    do with several amounts, to add them or to find the highest, is decided by the query.

    Attributes:
        whole: what all processes have counted.
        collected: the report of each process.
        view: what the supervisor knows of the whole; None: there is only one process, and no label for the worker.
        uptime_s: seconds since the service was started.
        max_queue_s: seconds of work that may wait (MAX_QUEUE_SECONDS).
        max_request_s: seconds that a request may take (REQUEST_TIMEOUT).
        has_rate_limits: whether callers have quotas (ENABLE_RATE_LIMIT).
        version: that of the service.
        error_codes: all codes that an error can have; those that have not occurred are written with 0.
    """

    whole: Counts
    collected: Collected
    view: ServiceView | None
    uptime_s: float
    max_queue_s: float
    max_request_s: float
    has_rate_limits: bool
    version: str
    error_codes: Collection[str] = ()

    def collect(self) -> Iterator[Metric]:
        answer = self.whole.answer
        yield info("build", "The service's version.", ["version"], [[self.version]])
        yield gauge("uptime_seconds", "Seconds since the service was started.", self.uptime_s)
        yield self._ready()
        amount, amounts, infos = self._amount, self._amounts, self._infos
        yield amount("requests_in_flight", "Requests without an answer yet.", lambda answer: answer.in_flight)
        yield from request_families(
            self.whole,
            error_codes=self.error_codes,
            has_rate_limits=self.has_rate_limits,
            longest_s=self.max_request_s,
            exemplars={} if self.view is not None else self.collected.workers[0].report.counts.exemplars,
        )
        yield from self._queue()
        yield from self._backlog()
        yield from run_families(self.whole, longest_s=self.max_request_s)
        yield from self._event_loop_and_lanes()
        yield from model_families(answer, amount=amount, amounts=amounts, infos=infos)
        yield from result_families(answer.result_cache, amount=amount, infos=infos)
        yield from self._connections()
        yield infos("limits", "Where quotas are counted.", ["store"], lambda slot: [[slot.answer.limits.store]])
        yield counter("limits_fallbacks", "Times that memory replaced an unreachable store.", answer.limits.fallbacks)
        yield counter("log_lines_dropped", "Lines of the log that could not be written.", answer.log.lines_dropped)
        if self.view is not None:
            yield from worker_families(self.view, self._slots, self.collected)
            yield from process_families(self._slots, self.collected.supervisor)

    @cached_property
    def _slots(self) -> list[Slot]:
        """The slots of workers in which a process runs; one without label if there is only one process."""
        return [
            slot_of("" if self.view is None else str(number), list(parts))
            for number, parts in groupby(self.collected.workers, key=lambda part: part.number)
        ]

    def _amount(self, name: str, documentation: str, read: Callable[[MetricsAnswer], float]) -> Metric:
        """Return a gauge that *read* returns of each worker."""
        return self._amounts(name, documentation, [], lambda answer: {(): read(answer)})

    def _amounts(
        self,
        name: str,
        documentation: str,
        labels: list[str],
        read: Callable[[MetricsAnswer], Mapping[tuple[str, ...], float]],
    ) -> Metric:
        """Return gauges with *labels*, by their values, that *read* returns of each worker."""
        if self.view is None and not labels:
            return gauge(name, documentation, read(self._slots[0].answer)[()])
        family = GaugeMetricFamily(PREFIX + name, documentation, labels=[*labels, *self._worker_label])
        for slot in self._slots:
            for values, value in read(slot.answer).items():
                family.add_metric([*values, *self._label_of(slot)], value)
        return family

    def _infos(
        self, name: str, documentation: str, labels: list[str], read: Callable[[Slot], Iterable[list[str]]]
    ) -> Metric:
        rows = [[*row, *self._label_of(slot)] for slot in self._slots for row in read(slot)]
        return info(name, documentation, [*labels, *self._worker_label], rows)

    @property
    def _worker_label(self) -> list[str]:
        return [] if self.view is None else ["worker"]

    def _label_of(self, slot: Slot) -> list[str]:
        return [] if self.view is None else [slot.label]

    def _ready(self) -> Metric:
        documentation = "Whether the service accepts work: 1, or 0 while it starts or shuts down."
        if self.view is None:
            return gauge("ready", documentation, self._slots[0].is_ready)
        ready = {str(number): False for number in range(1, self.view.workers + 1)}
        return labelled("ready", documentation, "worker", ready | {slot.label: slot.is_ready for slot in self._slots})

    def _queue(self) -> Iterator[Metric]:
        amount = self._amount
        yield amount(
            "queue_seconds",
            "Seconds until the lanes have done what waits, without bulk.",
            lambda answer: answer.queue.waiting_seconds,
        )
        yield amount(
            "queue_limit_seconds", "Seconds of work that may wait (MAX_QUEUE_SECONDS).", lambda _: self.max_queue_s
        )
        yield amount("queue_requests", "Requests that wait.", lambda answer: answer.queue.waiting_requests)
        yield amount("queue_texts", "Texts that wait.", lambda answer: answer.queue.waiting_texts)
        yield amount(
            "micro_batches_running",
            "Model runs given to lanes and not finished.",
            lambda answer: answer.queue.running,
        )
        yield amount(
            "lanes", "Inference threads, without the one for small requests.", lambda answer: answer.queue.lanes
        )
        yield amount(
            "lanes_stuck",
            "Lanes in one run for longer than LANE_STUCK_SECONDS.",
            lambda answer: answer.queue.lanes_stuck,
        )
        yield counter("lanes_died", "Lane threads that ended unexpectedly.", self.whole.answer.queue.lanes_died)

    def _backlog(self) -> Iterator[Metric]:
        for name, documentation, attribute in (
            ("backlog_seconds", "Seconds until the work of this kind that waits is done.", "seconds"),
            ("backlog_limit_seconds", "Limit of it; one caller may hold 80 %.", "limit_seconds"),
            ("backlog_callers", "Callers who hold some of it.", "callers"),
        ):

            def read(answer: MetricsAnswer, attribute: str = attribute) -> Mapping[tuple[str, ...], float]:
                return {(kind,): getattr(waiting, attribute) for kind, waiting in answer.backlog.items()}

            yield self._amounts(name, documentation, ["kind"], read)

    def _event_loop_and_lanes(self) -> Iterator[Metric]:
        yield self._amount(
            "event_loop_lag_seconds",
            "Highest delay of the event loop in the last 15 to 30 seconds.",
            lambda answer: answer.event_loop_lag_seconds,
        )
        busy_s = {
            (lane, *self._label_of(slot)): seconds
            for slot in self._slots
            for lane, seconds in slot.latest.report.counts.busy_s.items()
        }
        yield lane_family(busy_s, self._worker_label)

    def _connections(self) -> Iterator[Metric]:
        def states(answer: MetricsAnswer) -> Mapping[tuple[str, ...], float]:
            return {(state,): getattr(answer.connections, state) for state in ("idle", "receiving", "processing")}

        yield self._amounts("connections", "Open connections, by what they do.", ["state"], states)
        yield self._amount(
            "request_body_bytes",
            "Request bodies in memory that have no answer yet.",
            lambda answer: answer.connections.body_bytes,
        )
        closed = self.whole.answer.connections.closed_for_others
        yield counter("connections_closed_for_others", "Connections closed for others.", closed)
