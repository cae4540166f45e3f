"""Metrics of the worker processes of one service, for Prometheus."""

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from api.process_reports import Collected, ServiceView
from api.prometheus_families import PREFIX, gauge, labelled
from api.prometheus_slots import Slot
from host.process_usage import ProcessUsage

RESTART_REASONS = ("exit", "signal", "hung", "stuck", "draining", "reload")
"""The reasons of `Supervisor.replaced`. Prometheus cannot see the first increase of a series that begins with it."""


def worker_families(view: ServiceView, slots: Sequence[Slot], collected: Collected) -> Iterator[Metric]:
    """Yield what there is only with several workers."""
    yield gauge("workers", "Worker processes (WORKERS).", view.workers)
    restarts = CounterMetricFamily(
        f"{PREFIX}worker_restarts", "Workers replaced, by reason.", labels=["worker", "reason"]
    )
    counts = {(number, reason): 0 for number in range(1, view.workers + 1) for reason in RESTART_REASONS}
    counts |= {(found.number, found.reason): found.count for found in collected.restarts}
    for (number, reason), count in counts.items():
        restarts.add_metric([str(number), reason], count)
    yield restarts
    stale = {slot.label: slot.latest.is_stale for slot in slots}
    yield labelled("worker_stale", "Whether the worker did not answer, so its last report is used.", "worker", stale)
    memory = {
        slot.label: usage.proportional_bytes
        for slot in slots
        if (usage := slot.latest.report.usage) is not None and usage.proportional_bytes is not None
    }
    documentation = "Memory, with the worker's part of pages that it shares (Pss)."
    yield labelled("worker_memory_bytes", documentation, "worker", memory)


def process_families(slots: Sequence[Slot], supervisor: ProcessUsage | None) -> Iterator[Metric]:
    """Yield what each process takes, in the names of prometheus_client's `ProcessCollector`."""
    usages = {slot.label: slot.latest.report.usage for slot in slots} | {"supervisor": supervisor}
    cpu = CounterMetricFamily("process_cpu_seconds", "Total user and system CPU time.", labels=["worker"])
    for label, usage in usages.items():
        if usage is not None:
            cpu.add_metric([label], usage.cpu_seconds)
    yield cpu
    reads: tuple[tuple[str, str, Callable[[ProcessUsage], float | None]], ...] = (
        ("resident_memory_bytes", "Resident memory size in bytes.", lambda usage: usage.resident_bytes),
        ("virtual_memory_bytes", "Virtual memory size in bytes.", lambda usage: usage.virtual_bytes),
        ("start_time_seconds", "Start time in seconds since 1970.", lambda usage: usage.started_s),
        ("open_fds", "Number of open file descriptors.", lambda usage: usage.open_files),
        ("max_fds", "Maximum number of open file descriptors.", lambda usage: usage.max_files),
    )
    for name, documentation, read in reads:
        family = GaugeMetricFamily(f"process_{name}", documentation, labels=["worker"])
        for label, usage in usages.items():
            if usage is not None and (value := read(usage)) is not None:
                family.add_metric([label], value)
        yield family
