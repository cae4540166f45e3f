"""Answers what `/health`, `/metrics` and `/models` ask about the whole service, from the reports of its processes."""

import asyncio
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, Protocol, runtime_checkable

from litestar.response.base import ASGIResponse

from api import build_answers
from api.answer_formats import TEXT_TYPES, metrics_format
from api.answer_types import Health, HealthOfWorkers, ModelDetails, ModelDetailsOfWorkers, ModelWorkers, WorkerCounts
from api.metric_types import (
    CacheInfo,
    LogMetrics,
    MetricsAnswer,
    MetricsOfWorkers,
    ModelUsage,
    WorkerMetrics,
    WorkersMetrics,
)
from api.process_reports import Collected, Counts, Phase, ServiceView, StuckModel
from assembly.process_reporter import ProcessReporter, models_of
from assembly.processes import Processes
from engine.catalog import Model
from engine.errors import MetricsDisabledError
from engine.loaded_facts import merge_facts
from telemetry.merging import merge
from telemetry.metrics import percentiles_ms
from web.problems import known_codes
from web.responses import json_answer

UNUSED = ModelUsage(0, 0, 0)


class ServiceReport:
    """Reports the health of the whole service, and its models."""

    def __init__(self, processes: Processes, reporter: ProcessReporter) -> None:
        self._processes = processes
        self._reporter = reporter

    @property
    def phase(self) -> Phase:
        return self._processes.phase

    @property
    def stuck(self) -> list[StuckModel]:
        """Model runs for which an orchestrator must restart the service."""
        return self._processes.stuck

    @property
    def loaded(self) -> list[str]:
        """Names of the models in memory, least recently used first."""
        return self._processes.loaded

    def health(self) -> Health:
        processes = self._processes
        facts = (processes.phase, self._reporter.cache_info(processes.loaded), processes.uptime_s)
        view = processes.view
        return Health(*facts) if view is None else HealthOfWorkers(*facts, _worker_counts(view))

    async def model(self, model: Model) -> ModelDetails:
        """Return what is known of *model*, and what it has done."""
        collected = await self._processes.collect()
        loaded = merge_facts(models_of(part.report) for part in collected.workers).get(model.name)
        found = whole_of(collected).answer.models.get(model.name)
        usage = UNUSED if found is None else ModelUsage(found.requests, found.texts, found.tokens)
        details = build_answers.model_details(model, loaded, usage)
        if (view := self._processes.view) is None:
            return details
        workers = ModelWorkers(view.workers, loaded.workers if loaded else 0)
        return ModelDetailsOfWorkers(**_fields(details), workers=workers)


@runtime_checkable
class MetricsReport(Protocol):
    """Answers `GET /metrics` and `GET /metrics/prometheus`."""

    async def answer(self, accept: str | None, offered: Sequence[str]) -> ASGIResponse:
        """Answer in the format of *offered* that the *accept* header prefers: JSON, or text for Prometheus.

        Raises:
            NotAcceptableError: it accepts none of them.
        """
        ...


class NoMetricsReport:
    """Rejects requests for metrics: the service runs with ENABLE_METRICS=false."""

    async def answer(self, accept: str | None, offered: Sequence[str]) -> ASGIResponse:
        """Reject the request.

        Raises:
            MetricsDisabledError: always.
        """
        del accept, offered
        raise MetricsDisabledError


class FullMetricsReport:
    """Answers with the metrics of all processes."""

    def __init__(
        self, processes: Processes, *, max_queue_s: float, max_request_s: float, has_rate_limits: bool, version: str
    ) -> None:
        """The other arguments are those of `Families`."""
        self._processes = processes
        self._max_queue_s = max_queue_s
        self._max_request_s = max_request_s
        self._has_rate_limits = has_rate_limits
        self._version = version

    async def answer(self, accept: str | None, offered: Sequence[str]) -> ASGIResponse:
        answer_format = metrics_format(accept, offered)
        collected = await self._processes.collect(for_metrics=True)
        if answer_format in TEXT_TYPES:
            return await asyncio.to_thread(self._text, answer_format, collected)
        return json_answer(metrics_of(collected, self._processes))

    def _text(self, text_format: str, collected: Collected) -> ASGIResponse:
        """Write the same numbers for Prometheus. Blocks: the first call imports the library that writes them."""
        from api.prometheus import Families, text_answer  # noqa: PLC0415 - 0.1 s of import, needed for Prometheus only

        families = Families(
            whole=whole_of(collected),
            collected=collected,
            view=self._processes.view,
            uptime_s=self._processes.uptime_s,
            max_queue_s=self._max_queue_s,
            max_request_s=self._max_request_s,
            has_rate_limits=self._has_rate_limits,
            version=self._version,
            error_codes=known_codes(),
        )
        return text_answer(text_format, families)


def whole_of(collected: Collected) -> Counts:
    """Return what all processes have counted, those that have ended included."""
    ended = [] if collected.ended is None else [collected.ended]
    whole = merge([*(part.report.counts for part in collected.workers), *ended])
    answer = whole.answer
    percentiles = {name: percentiles_ms(recent_s) for name, recent_s in whole.recent_s.items() if recent_s}
    endpoints = {
        name: replace(endpoint, latency_ms=percentiles.get(name, {})) for name, endpoint in answer.endpoints.items()
    }
    cache_info: CacheInfo = replace(answer.cache_info, num_cached=len(answer.cache_info.cached_models))
    log = LogMetrics(answer.log.lines_dropped + collected.supervisor_lines_dropped)
    return replace(whole, answer=replace(answer, endpoints=endpoints, cache_info=cache_info, log=log))


def metrics_of(collected: Collected, processes: Processes) -> MetricsAnswer:
    """Return the JSON answer about all processes."""
    answer = replace(whole_of(collected).answer, uptime_seconds=processes.uptime_s)
    if (view := processes.view) is None:
        return answer
    workers = WorkersMetrics(
        number=view.workers,
        ready=view.ready,
        restarts=sum(found.count for found in collected.restarts),
        supervisor_resident_bytes=collected.supervisor.resident_bytes if collected.supervisor else None,
        processes=[
            WorkerMetrics(
                worker=part.number,
                pid=part.report.pid,
                status=part.report.phase,
                stale=part.is_stale,
                uptime_seconds=part.report.counts.answer.uptime_seconds,
                requests=part.report.counts.answer.total_requests,
                embeddings=part.report.counts.answer.total_embeddings,
                queue_seconds=part.report.counts.answer.queue.waiting_seconds,
                lanes=part.report.counts.answer.queue.lanes,
                connections=part.report.counts.answer.connections.open,
                cached_models=part.report.counts.answer.cache_info.cached_models,
                resident_bytes=part.report.usage.resident_bytes if part.report.usage else None,
                proportional_bytes=part.report.usage.proportional_bytes if part.report.usage else None,
                restarts={found.reason: found.count for found in collected.restarts if found.number == part.number},
            )
            for part in collected.workers
        ],
    )
    return MetricsOfWorkers(**_fields(answer), workers=workers)


def _worker_counts(view: ServiceView) -> WorkerCounts:
    return WorkerCounts(view.workers, view.ready, view.restarts)


def _fields(answer: Any) -> dict[str, Any]:
    return {field.name: getattr(answer, field.name) for field in fields(answer)}
