"""Connects this process with the others of the service, if there are any, and builds what reports on all of them."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

from litestar import Litestar

from assembly.cache_admin import ServiceCache, WorkerCaches
from assembly.process_reporter import ProcessReporter
from assembly.processes import OneOfWorkers, OneProcess, Processes
from assembly.reports import FullMetricsReport, MetricsReport, NoMetricsReport, ServiceReport
from assembly.running import RunningService
from assembly.worker_channel import WorkerChannel
from config import Settings
from telemetry.metrics import Metrics

Lifespan = Callable[[Litestar], AbstractAsyncContextManager[None]]
Providers = dict[str, Callable[[], Any]]


@dataclass(frozen=True, slots=True)
class Peers:
    """What an app needs of the other processes of its service.

    Attributes:
        providers: of the dependencies of routes that report on all processes, by name.
        first: lifespans that begin before all others of the app.
        last: lifespans that begin after all others.
    """

    providers: Providers
    first: tuple[Lifespan, ...] = ()
    last: tuple[Lifespan, ...] = ()


def find_peers(
    reporter: ProcessReporter,
    service: RunningService,
    settings: Settings,
    *,
    metrics: Metrics,
    channel: WorkerChannel | None,
    version: str,
) -> Peers:
    """Return the peers of the process of *service*.

    Args:
        reporter: of this process.
        service: of this process.
        settings: of this process.
        metrics: of this process; a change is reported to the supervisor.
        channel: to the supervisor; None: there is no other process.
        version: of the service.
    """

    def providers(processes: Processes, cache: ServiceCache) -> Providers:
        return _providers(processes, reporter, settings, version=version) | {"result_cache": lambda: cache}

    results = service.results
    if channel is None:
        cache = ServiceCache(results, clear_memory=results.clear_memory)
        return Peers(providers(OneProcess(reporter, service.lifecycle), cache))
    workers = OneOfWorkers(reporter, service.lifecycle, number=channel.number, channel=channel.channel)
    caches = WorkerCaches(results, channel=channel.channel, workers=channel.workers)
    channel.handlers |= workers.handlers | caches.handlers
    metrics.on_change = workers.report_soon
    cache = ServiceCache(results, clear_memory=caches.clear_memory)
    return Peers(providers(workers, cache), first=(partial(channel.lifespan, service),), last=(workers.lifespan,))


def _providers(processes: Processes, reporter: ProcessReporter, settings: Settings, *, version: str) -> Providers:
    service_report = ServiceReport(processes, reporter)
    metrics_report: MetricsReport = (
        FullMetricsReport(
            processes,
            max_queue_s=settings.max_queue_seconds,
            max_request_s=settings.request_timeout,
            has_rate_limits=settings.enable_rate_limit,
            version=version,
        )
        if settings.enable_metrics
        else NoMetricsReport()
    )
    return {
        "in_memory": lambda: processes,
        "service_report": lambda: service_report,
        "metrics_report": lambda: metrics_report,
    }
