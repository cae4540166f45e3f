"""Metrics of models, for Prometheus."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily

from api.metric_types import MetricsAnswer, ModelMetrics
from api.prometheus_families import PREFIX, Amount, Amounts, Infos, counter, counters
from engine.load_counters import EVICTION_REASONS

COUNTERS: tuple[tuple[str, str, Callable[[ModelMetrics], float]], ...] = (
    ("requests", "Requests answered with vectors.", lambda found: found.requests),
    ("texts", "Texts embedded.", lambda found: found.texts),
    ("tokens", "Tokens of texts embedded, without padding.", lambda found: found.tokens),
    ("truncated_texts", "Texts embedded of which the model saw only a part.", lambda found: found.truncated),
    ("loads", "Loads that have succeeded.", lambda found: found.loads),
    ("load_failures", "Loads that have failed.", lambda found: found.load_failures),
    ("load_seconds", "Time of loads that have succeeded, without downloads.", lambda found: found.load_seconds),
)
GAUGES: tuple[tuple[str, str, Callable[[MetricsAnswer], float]], ...] = (
    ("models_loaded", "Models in memory.", lambda answer: len(answer.cache_info.cached_models)),
    ("models_limit", "Models in memory at most (MAX_CACHED_MODELS).", lambda answer: answer.cache_info.max_cached),
    ("model_ttl_seconds", "An unused model is evicted after this time.", lambda answer: answer.cache_info.cache_ttl),
    (
        "model_cleanup_interval_seconds",
        "Seconds between searches.",
        lambda answer: answer.cache_info.cleanup_interval,
    ),
    (
        "model_loads_running",
        "Models that are being loaded, downloads included.",
        lambda answer: answer.model_loads.loads,
    ),
    (
        "model_downloads_running",
        "Downloads of models that run.",
        lambda answer: answer.model_loads.downloads_running,
    ),
    (
        "model_downloads_waiting",
        "Downloads of models that wait.",
        lambda answer: answer.model_loads.downloads_waiting,
    ),
)


def model_families(answer: MetricsAnswer, *, amount: Amount, amounts: Amounts, infos: Infos) -> Iterator[Metric]:
    """Yield the metrics of models; *answer* is that of all processes, the functions read that of each."""
    yield infos(
        "model",
        "The models in memory.",
        ["model", "fingerprint"],
        lambda slot: [[name, slot.fingerprints.get(name, "")] for name in slot.answer.cache_info.cached_models],
    )
    for name, documentation, read in GAUGES:
        yield amount(name, documentation, read)
    yield amounts("model_memory_bytes", "Memory of each model in memory.", ["model"], _memory)
    refused = answer.model_loads.downloads_refused
    yield counter("model_downloads_refused", "Downloads refused: too many waited.", refused)
    for kind, documentation, count in COUNTERS:
        counts = {name: count(found) for name, found in answer.models.items()}
        loaded = dict.fromkeys(answer.cache_info.cached_models, 0.0)
        yield counters(f"model_{kind}", documentation, "model", loaded | counts)
    evictions = CounterMetricFamily(
        f"{PREFIX}model_evictions", "Models removed from memory.", labels=["model", "reason"]
    )
    for model, found in answer.models.items():
        for reason, number in (dict.fromkeys(EVICTION_REASONS, 0) | found.evictions).items():
            evictions.add_metric([model, reason], number)
    yield evictions


def _memory(answer: MetricsAnswer) -> Mapping[tuple[str, ...], float]:
    return {(name,): found.memory_bytes for name, found in answer.models.items() if found.memory_bytes}
