"""Connects this process with the others of the service, if there are any, and builds what reports on all of them."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

from litestar import Litestar
from litestar.di import Provide

from assembly.process_reporter import ProcessReporter
from assembly.processes import OneOfWorkers, OneProcess, Processes
from assembly.reports import FullMetricsReport, MetricsReport, NoMetricsReport, ServiceReport
from assembly.running import RunningService
from assembly.worker_channel import WorkerChannel
from config import Settings
from telemetry.metrics import Metrics

Lifespan = Callable[[Litestar], AbstractAsyncContextManager[None]]


@dataclass(frozen=True, slots=True)
class Peers:
    """What an app needs of the other processes of its service.

    Attributes:
        dependencies: of the routes that report on all processes.
        first: lifespans that begin before all others of the app.
        last: lifespans that begin after all others.
    """

    dependencies: dict[str, Provide]
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

    def dependencies(processes: Processes) -> dict[str, Provide]:
        return _dependencies(processes, reporter, settings, version=version)

    if channel is None:
        return Peers(dependencies(OneProcess(reporter, service.lifecycle)))
    workers = OneOfWorkers(reporter, service.lifecycle, number=channel.number, channel=channel.channel)
    channel.handlers |= workers.handlers
    metrics.on_change = workers.report_soon
    return Peers(dependencies(workers), first=(partial(channel.lifespan, service),), last=(workers.lifespan,))


def _dependencies(
    processes: Processes, reporter: ProcessReporter, settings: Settings, *, version: str
) -> dict[str, Provide]:
    service_report = ServiceReport(processes, reporter)
    metrics_report: MetricsReport = (
        FullMetricsReport(processes, max_queue_s=settings.max_queue_seconds, version=version)
        if settings.enable_metrics
        else NoMetricsReport()
    )
    providers: dict[str, Callable[[], Any]] = {
        "in_memory": lambda: processes,
        "service_report": lambda: service_report,
        "metrics_report": lambda: metrics_report,
    }
    return {name: Provide(provider, sync_to_thread=False) for name, provider in providers.items()}
