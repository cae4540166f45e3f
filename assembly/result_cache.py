"""Builds the result cache of a process from the settings: which callers share results, and where they are kept."""

import asyncio
import hmac
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from api.metric_types import RedisResultMetrics, RedisResultState, ResultCacheMetrics, TextSources
from assembly.result_clearing import ClearedMemory
from assembly.secret_files import cache_key_secret, redis_url, unknown_redis_option
from config import Settings, SettingsError
from engine.ledger import Account
from engine.result_keys import ResultKeys
from engine.result_store import NoResults, ResultStore
from engine.text_results import HEADER, NUMBERS
from host.memory import trim_memory
from result_cache.answer_cache import AnswerCache
from result_cache.memory_results import MemoryResults
from result_cache.tiered_results import NO_MEMORY, TieredResults

if TYPE_CHECKING:  # 0.2 s of import, only paid with Redis
    from result_cache.redis_counts import RedisCounts
    from result_cache.redis_results import RedisResults

MEGABYTE: Final = 1_000_000
SECRET_BYTES = 32


def cache_bytes_of(settings: Settings) -> int:
    """Return how much memory of this process results may take."""
    return settings.result_cache_mb * MEGABYTE


def results_that_fit(settings: Settings, dim: int) -> int:
    """Return about how many results of texts with *dim* numbers fit into the memory of this process."""
    memory = MemoryResults(limit_bytes=cache_bytes_of(settings), ttl_s=settings.result_cache_ttl)
    return memory.capacity(HEADER.size + dim * NUMBERS.itemsize)


class ProcessCache:
    """The result cache of one process: what its embedder uses, and what `DELETE /cache` and `/metrics` see of it."""

    def __init__(self, keys: ResultKeys, tiers: TieredResults | None, redis: "RedisResults | None" = None) -> None:
        """Keep nothing yet.

        Args:
            keys: of results, and of equal texts in flight.
            tiers: where results are kept; None: nowhere.
            redis: the shared one of *tiers*, if there is one.
        """
        self.keys = keys
        self.store: ResultStore = NoResults() if tiers is None else tiers
        self._tiers = tiers
        self._redis = redis

    @property
    def answers(self) -> AnswerCache[Any] | None:
        """Answers that are made of results in memory; None: no memory."""
        return None if self._tiers is None else self._tiers.answers

    def clear_answers(self) -> None:
        """Delete the answers, and leave the results of which they are made."""
        if (answers := self.answers) is not None:
            answers.clear()

    @property
    def has_redis(self) -> bool:
        return self._redis is not None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Connect to Redis; at the end, write what waits, and close all connections."""
        if self._redis is None:
            yield
            return
        async with self._redis.running():
            yield

    async def clear_memory(self) -> ClearedMemory:
        """Delete what this process has in memory, and what it has not written to Redis yet."""
        if self._tiers is None:
            return ClearedMemory(workers=1)
        counts = self._tiers.counts()
        self._tiers.clear_memory()
        if self._redis is not None:
            await self._redis.drop_waiting()
        asyncio.get_running_loop().run_in_executor(None, trim_memory)  # not awaited: it may take long
        return ClearedMemory(counts.entries, counts.bytes, workers=1)

    async def clear_redis(self) -> bool:
        """Delete all results in Redis; return whether that was possible."""
        assert self._tiers is not None, "there is no Redis without tiers"  # noqa: S101 - for the type checker
        from result_cache.redis_results import RedisUnreachableError  # noqa: PLC0415 - see above

        try:
            await self._tiers.clear()
        except RedisUnreachableError:
            return False
        return True

    def metrics(self, models: dict[str, TextSources], *, held: Account | None = None) -> ResultCacheMetrics:
        """Return the metrics of this process.

        Args:
            models: where the results of texts came from, by model.
            held: the texts of long answers that are not sent yet; None: none.
        """
        counts = NO_MEMORY if self._tiers is None else self._tiers.counts()
        if self._redis is not None:
            self._redis.check_if_due()
        return ResultCacheMetrics(
            hits=sum(sources.hits for sources in models.values()),
            misses=sum(sources.misses for sources in models.values()),
            coalesced=sum(sources.coalesced for sources in models.values()),
            entries=counts.entries,
            bytes=counts.bytes,
            limit_bytes=counts.limit_bytes,
            evictions=counts.evictions,
            rejections=counts.rejections,
            expirations=counts.expirations,
            held_texts=0 if held is None else round(held.held),
            held_limit_texts=0 if held is None else round(held.limit),
            models=models,
            redis=NO_REDIS if self._redis is None else _redis_metrics(self._redis.counts),
        )


def open_result_cache(settings: Settings) -> ProcessCache:
    """Build the result cache of *settings*, including the API keys: whether there are any decides which callers share.

    Raises:
        SettingsError: a file with a secret cannot be used, or REDIS_URL has an option that does not exist.
    """
    given = cache_key_secret(settings)
    secret = secrets.token_bytes(SECRET_BYTES) if given is None else given.encode()
    keys = ResultKeys(hmac.digest(secret, b"result cache: keys", "sha256"), per_caller=settings.is_cache_per_caller)
    if not settings.result_cache_mb and not settings.result_cache_redis:
        return ProcessCache(keys, None)
    memory = None
    if settings.result_cache_mb:
        memory = MemoryResults(limit_bytes=cache_bytes_of(settings), ttl_s=settings.result_cache_ttl)
    redis = _open_redis(settings, secret) if settings.result_cache_redis else None
    return ProcessCache(keys, TieredResults(memory, redis), redis)


def _open_redis(settings: Settings, secret: bytes) -> "RedisResults":
    from result_cache.redis_results import RedisResults  # noqa: PLC0415 - see above

    url = redis_url(settings)
    assert url is not None, "the settings were checked"  # noqa: S101 - for the type checker
    try:
        return RedisResults(
            url=url,
            secret=secret,
            ttl_s=settings.result_cache_redis_ttl,
            timeout_s=settings.result_cache_redis_timeout,
        )
    except ValueError:
        raise SettingsError(unknown_redis_option(settings)) from None


NO_REDIS: Final = RedisResultMetrics(
    "off",
    fetches=0,
    fetch_seconds=0.0,
    fetch_buckets={},
    lookups=0,
    hits=0,
    writes=0,
    dropped=0,
    queue_bytes=0,
    errors={},
)


def _redis_metrics(counts: "RedisCounts") -> RedisResultMetrics:
    from result_cache.redis_counts import LATENCY_BOUNDS_S  # noqa: PLC0415 - see above

    state: RedisResultState = "reachable" if counts.writing == "closed" else "read-only"
    bounds = [*map(str, LATENCY_BOUNDS_S), "+Inf"]
    return RedisResultMetrics(
        state if counts.reading == "closed" else "unreachable",
        fetches=counts.latencies.count,
        fetch_seconds=counts.latencies.total,
        fetch_buckets=dict(zip(bounds, counts.latencies.counts, strict=True)),
        lookups=counts.lookups,
        hits=counts.hits,
        writes=counts.writes,
        dropped=counts.dropped,
        queue_bytes=counts.queue_bytes,
        errors=dict(counts.errors),
    )
