"""Metrics of cached results, for Prometheus."""

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

from api.metric_types import RedisResultMetrics, ResultCacheMetrics
from api.prometheus_families import PREFIX, Amount, Infos, counter, counters


def result_families(results: ResultCacheMetrics, *, amount: Amount, infos: Infos) -> Iterator[Metric]:
    """Yield the metrics of *results*, those of all processes; *amount* and *infos* read those of each."""
    texts = CounterMetricFamily(
        f"{PREFIX}result_cache_texts", "Texts embedded, by where their results came from.", labels=["model", "source"]
    )
    for model, sources in results.models.items():
        for source, count in (("hit", sources.hits), ("miss", sources.misses), ("coalesced", sources.coalesced)):
            texts.add_metric([model, source], count)
    yield texts
    yield amount("result_cache_entries", "Results in memory.", lambda answer: answer.result_cache.entries)
    yield amount(
        "result_cache_bytes", "Memory that results and answers take.", lambda answer: answer.result_cache.bytes
    )
    yield amount(
        "result_cache_limit_bytes",
        "Memory that results may take: RESULT_CACHE_MB without the counts of uses.",
        lambda answer: answer.result_cache.limit_bytes,
    )
    yield counter("result_cache_evictions", "Results removed for others.", results.evictions)
    yield counter(
        "result_cache_rejections",
        "Results that were too large to keep, or not used often enough to be protected.",
        results.rejections,
    )
    yield counter("result_cache_expirations", "Results older than RESULT_CACHE_TTL.", results.expirations)
    yield amount(
        "result_cache_held_texts",
        "Texts with cached results in long answers that clients have not received yet.",
        lambda answer: answer.result_cache.held_texts,
    )
    yield amount(
        "result_cache_held_limit_texts",
        "Limit of them; one caller may hold 80 %.",
        lambda answer: answer.result_cache.held_limit_texts,
    )
    redis = results.redis
    yield infos(
        "result_cache_redis",
        "Whether results in Redis can be used.",
        ["state"],
        lambda slot: [[slot.answer.result_cache.redis.state]],
    )
    if redis.state != "off":
        yield from _redis_families(redis, amount)


def _redis_families(redis: RedisResultMetrics, amount: Amount) -> Iterator[Metric]:
    yield _fetch_durations(redis)
    yield counter("result_cache_redis_lookups", "Results looked up in Redis.", redis.lookups)
    yield counter("result_cache_redis_hits", "Results found in Redis.", redis.hits)
    yield counter("result_cache_redis_writes", "Results written to Redis.", redis.writes)
    yield counter("result_cache_redis_dropped", "Results that could not be written to Redis.", redis.dropped)
    yield amount(
        "result_cache_redis_queue_bytes",
        "Results that wait to be written to Redis.",
        lambda answer: answer.result_cache.redis.queue_bytes,
    )
    yield counters("result_cache_redis_errors", "Errors of Redis, by kind.", "kind", redis.errors)


def _fetch_durations(redis: RedisResultMetrics) -> Metric:
    buckets = list(zip(redis.fetch_buckets, accumulate(redis.fetch_buckets.values()), strict=True))
    family = HistogramMetricFamily(
        f"{PREFIX}result_cache_redis_fetch_duration_seconds", "Trips to Redis that read results."
    )
    family.add_metric([], buckets or [("+Inf", 0)], redis.fetch_seconds)
    return family
