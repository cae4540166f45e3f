"""The findings of `check` on the result cache: what fits into memory, who finds what, and whether Redis can be used."""

import asyncio
from collections.abc import Iterator

from api.metric_types import RedisResultMetrics
from assembly.result_cache import ProcessCache, open_result_cache, results_that_fit
from cli.check_workers import Processes
from cli.findings import Finding
from config import Settings, SettingsError
from engine.catalog import Catalog

REDIS_ONLY = ("result_cache_redis_ttl", "result_cache_redis_timeout")
"""Settings that have no effect without RESULT_CACHE_REDIS."""
REASONS = {
    "connection": "no connection; check REDIS_URL",
    "timeout": "it does not answer in time; check REDIS_URL and RESULT_CACHE_REDIS_TIMEOUT",
    "refused": "it rejects the password, or the user may not use these commands and keys",
    "read-only": "it is a replica, which accepts no results",
    "full": "it is full, and accepts no results",
}
"""What the errors of the start mean, by kind. All others are those of another program."""


def check_results(settings: Settings, catalog: Catalog, processes: Processes) -> Iterator[Finding]:
    """Yield the findings."""
    try:
        cache = open_result_cache(settings)
    except SettingsError as error:
        yield Finding("settings", "FAIL", "result cache", str(error))
        return
    yield _check_memory(processes.settings_of_each or settings, catalog, workers=processes.workers)
    unused = [name.upper() for name in REDIS_ONLY if name in settings.model_fields_set]
    if settings.result_cache_redis:
        yield _check_redis(settings, cache)
    elif unused:
        detail = f"RESULT_CACHE_REDIS is false, so {', '.join(unused)} has no effect"
        yield Finding("settings", "warn", "results in Redis", detail)


def _check_memory(settings: Settings, catalog: Catalog, *, workers: int) -> Finding:
    """Say how many results of the default model fit, and who finds them. *settings* are those of one worker."""
    megabytes = settings.result_cache_mb
    facts: dict[str, object] = {"megabytes": megabytes, "scope": "caller" if settings.is_cache_per_caller else "shared"}
    if not megabytes:
        unused = settings.result_cache_ttl is not None
        detail = "none in memory (RESULT_CACHE_MB=0)" + ("; RESULT_CACHE_TTL has no effect" if unused else "")
        return Finding("settings", "warn" if unused else "ok", "result cache", detail, facts)
    whose = "for the caller who sent the text" if settings.is_cache_per_caller else "for all callers"
    detail = f"{megabytes} MB{' for each worker' if workers > 1 else ''}, {whose} (CACHE_SCOPE)"
    if (model := catalog.find(settings.required_models[0])) is not None:
        results = facts["results"] = results_that_fit(settings, model.dim)
        detail = f"{detail}: about {results:,} results with {model.dim} dimensions"
    return Finding("settings", "ok", "result cache", detail, facts)


def _check_redis(settings: Settings, cache: ProcessCache) -> Finding:
    """Ask Redis as a start of the service would."""
    redis = asyncio.run(_ask(cache))
    errors = [kind for kind, count in redis.errors.items() if count]
    facts = {"state": redis.state, "errors": errors, "ttl_seconds": settings.result_cache_redis_ttl}
    if redis.state == "reachable":
        detail = f"Redis answers; results expire after {settings.result_cache_redis_ttl:g} s"
        return Finding("settings", "ok", "results in Redis", detail, facts)
    reason = next((REASONS[kind] for kind in errors if kind in REASONS), "it does not answer as a Redis does")
    detail = f"Redis is not used until it works: {reason}"
    return Finding("settings", "warn", "results in Redis", detail, facts)


async def _ask(cache: ProcessCache) -> RedisResultMetrics:
    async with cache.running():
        return cache.metrics({}).redis
