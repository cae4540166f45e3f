"""Makes metric families for Prometheus; their names begin with `fast_embedding_`."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

from api.metric_types import MetricsAnswer
from api.prometheus_slots import Slot

PREFIX = "fast_embedding_"
Amount = Callable[[str, str, Callable[[MetricsAnswer], float]], Metric]
"""Makes a gauge of what a function returns of the answer of each worker."""
Amounts = Callable[[str, str, list[str], Callable[[MetricsAnswer], Mapping[tuple[str, ...], float]]], Metric]
"""Makes a gauge with labels of what a function returns of the answer of each worker."""
Infos = Callable[[str, str, list[str], Callable[[Slot], Iterable[list[str]]]], Metric]
"""Makes an info of what a function returns of each worker."""


def gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, documentation, value)


def labelled(name: str, documentation: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, documentation, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def counter(name: str, documentation: str, value: float) -> Metric:
    return CounterMetricFamily(PREFIX + name, documentation, value)


def counters(name: str, documentation: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(PREFIX + name, documentation, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def info(name: str, documentation: str, labels: list[str], rows: Iterable[list[str]]) -> Metric:
    family = InfoMetricFamily(PREFIX + name, documentation, labels=labels)
    for row in rows:
        family.add_metric(row, {})
    return family
