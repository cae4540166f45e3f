"""The result cache as the settings describe it: who finds which result, how many fit, and what metrics say."""

import asyncio
import re
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from api.metric_types import TextSources
from api.result_cache_admin import ClearedResults
from assembly.cache_admin import ServiceCache
from assembly.result_cache import ProcessCache, open_result_cache, results_that_fit
from config import SettingsError
from engine.fair_queue import Caller
from engine.fingerprint import ModelFingerprint
from engine.model_cards import EMPTY_CARD
from engine.options import EmbedOptions
from engine.runtime import Runtime
from engine.text_results import TextResult, pack
from tests.support.apps import settings_of
from tests.support.redis_servers import RedisServer
from tests.support.servers import ROOT

SECRET, OTHER_SECRET = "s" * 32, "o" * 32
API_KEY = "alice:0123456789-alice-key"
ALICE: Caller = ("alice",)
BOB: Caller = ("bob",)
FINGERPRINT = ModelFingerprint("", "", "0123456789abcdef", Runtime("1", "1", "1", "x86_64"))
NAMESPACE = "fingerprint:runtime"
KEY, RESULT = b"k" * 16, b"r" * 1000


def key_of(cache: ProcessCache, caller: Caller = ALICE) -> bytes:
    [key] = cache.keys.keys(FINGERPRINT, EMPTY_CARD, ["text"], EmbedOptions(), caller)
    return key


def keep(cache: ProcessCache, key: bytes = KEY) -> None:
    cache.store.put(NAMESPACE, {key: RESULT}, generation=cache.store.generation)


def with_redis(url: str, *, secret: str = SECRET, **variables: str) -> ProcessCache:
    needed = {"REDIS_URL": url, "RESULT_CACHE_REDIS": "true", "CACHE_KEY_SECRET": secret}
    return open_result_cache(settings_of(**needed, RESULT_CACHE_REDIS_TIMEOUT="5", **variables))


@pytest.mark.parametrize(
    ("settings", "is_shared"),
    [
        pytest.param({}, True, id="no keys"),
        pytest.param({"API_KEYS": API_KEY}, False, id="keys"),
        pytest.param({"API_KEYS": API_KEY, "CACHE_SCOPE": "shared"}, True, id="keys, shared"),
        pytest.param({"CACHE_SCOPE": "caller"}, False, id="no keys, by caller"),
    ],
)
def test_callers_share_results_unless_they_have_keys(settings: dict[str, str], *, is_shared: bool) -> None:
    cache = open_result_cache(settings_of(**settings))
    assert (key_of(cache, ALICE) == key_of(cache, BOB)) is is_shared


def test_processes_find_each_others_results_only_if_they_have_the_same_secret(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    one = key_of(open_result_cache(settings_of(CACHE_KEY_SECRET=SECRET)))
    assert key_of(open_result_cache(settings_of(CACHE_KEY_SECRET_FILE=str(tmp_path / "secret")))) == one
    assert key_of(open_result_cache(settings_of(CACHE_KEY_SECRET=OTHER_SECRET))) != one
    random_ones = {key_of(open_result_cache(settings_of())) for _ in range(2)}
    assert len(random_ones | {one}) == 3


def test_all_of_a_long_secret_counts() -> None:
    one, other = (open_result_cache(settings_of(CACHE_KEY_SECRET=f"{'s' * 64}{end}")) for end in "ab")
    assert key_of(one) != key_of(other)


async def test_nothing_is_kept_without_memory_and_redis() -> None:
    cache = open_result_cache(settings_of(RESULT_CACHE_MB="0"))
    keep(cache)
    assert cache.store.get([KEY]) == [None]
    assert not cache.store.has_shared_tier
    assert cache.metrics({}).limit_bytes == 0
    assert await ServiceCache(cache, clear_memory=cache.clear_memory).clear() == ClearedResults()


async def test_deleted_results_are_gone_and_counted() -> None:
    cache = open_result_cache(settings_of())
    keep(cache)
    before = cache.metrics({})
    assert (before.entries, before.limit_bytes < 64_000_000) == (1, True)
    cleared = await ServiceCache(cache, clear_memory=cache.clear_memory).clear()
    assert cleared == ClearedResults(1, before.bytes)
    assert cache.store.get([KEY]) == [None]
    assert cache.metrics({}).entries == cache.metrics({}).bytes == 0


def test_sums_of_all_models_are_part_of_the_metrics() -> None:
    metrics = open_result_cache(settings_of()).metrics({"a": TextSources(1, 2, 3), "b": TextSources(10, 20, 30)})
    assert (metrics.hits, metrics.misses, metrics.coalesced) == (11, 22, 33)
    assert metrics.redis.state == "off"


def test_guide_says_how_many_results_fit() -> None:
    guide = (ROOT / "docs/production/result-cache.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| ([\d,]+) \| ([\d,]+) \|$", guide, re.MULTILINE)
    assert len(rows) == 3
    for dim, in_one, in_default in rows:
        size = len(pack(TextResult(np.ones((1, int(dim)), np.float32), (1, 1, 0))))
        assert results_that_fit(settings_of(), int(dim)) == pytest.approx(int(in_default.replace(",", "")), rel=0.01)
        assert int(in_one.replace(",", "")) == pytest.approx(int(in_default.replace(",", "")) / 64, rel=0.01)
        cache = open_result_cache(settings_of(RESULT_CACHE_MB="1"))
        keys = [number.to_bytes(16) for number in range(1000)]
        cache.store.put(NAMESPACE, dict.fromkeys(keys, bytes(size)), generation=cache.store.generation)
        assert cache.metrics({}).entries == pytest.approx(int(in_one.replace(",", "")), rel=0.01)


@pytest.mark.redis
async def test_replicas_with_the_same_secret_share_results_in_redis_until_they_expire(redis: RedisServer) -> None:
    one, two, stranger = (
        with_redis(redis.url, secret=secret, RESULT_CACHE_REDIS_TTL="60") for secret in (SECRET, SECRET, OTHER_SECRET)
    )
    async with one.running():
        keep(one)
    async with two.running(), stranger.running():
        assert await two.store.fetch(NAMESPACE, [KEY], may_keep=True) == [RESULT]
        assert await stranger.store.fetch(NAMESPACE, [KEY], may_keep=True) == [None]
        metrics = two.metrics({}).redis
    assert (metrics.state, metrics.lookups, metrics.hits, metrics.fetches) == ("reachable", 1, 1, 1)
    assert sum(metrics.fetch_buckets.values()) == 1
    [name] = redis.stored()
    assert 0 < int(redis.run("TTL", name).removeprefix(":")) <= 60


@pytest.mark.redis
async def test_results_in_redis_are_deleted_too_and_what_waits_is_not_written_afterwards(redis: RedisServer) -> None:
    cache = with_redis(redis.url)
    async with cache.running():
        keep(cache)
        cleared = await ServiceCache(cache, clear_memory=cache.clear_memory).clear()
        assert (cleared.entries, cleared.redis) == (1, "deleted")
        assert redis.stored() == []
        keep(cache)
    assert len(redis.stored()) == 1, "what waits is written at the end"


@pytest.mark.redis
async def test_redis_that_is_gone_is_reported_until_it_is_back_and_memory_is_used(own_redis: RedisServer) -> None:
    cache = with_redis(own_redis.url)
    own_redis.kill()
    async with cache.running():
        keep(cache)
        assert cache.store.get([KEY]) == [RESULT]
        assert await cache.store.fetch(NAMESPACE, [KEY], may_keep=True) == [None]
        metrics = cache.metrics({}).redis
        assert (metrics.state, metrics.dropped) == ("unreachable", 1)
        assert sum(metrics.errors.values()) >= 1
        with capture_logs() as events:
            cleared = await ServiceCache(cache, clear_memory=cache.clear_memory).clear()
        assert (cleared.entries, cleared.redis) == (1, "unreachable")
        assert "result_cache_not_cleared" in [event["event"] for event in events]
        assert cache.store.get([KEY]) == [None]
        own_redis.start()
        while cache.metrics({}).redis.state != "reachable":  # noqa: ASYNC110 - reading metrics is what has it checked
            await asyncio.sleep(0)


@pytest.mark.redis
async def test_redis_may_be_the_only_place_for_results(redis: RedisServer) -> None:
    cache = with_redis(redis.url, RESULT_CACHE_MB="0")
    async with cache.running():
        keep(cache)
    assert (cache.store.get([KEY]), cache.metrics({}).limit_bytes) == ([None], 0)
    assert len(redis.stored()) == 1


def test_unknown_option_of_the_address_is_reported_without_the_password() -> None:
    with pytest.raises(SettingsError) as error:
        with_redis("redis://:hush@host?nonsense=1")
    assert str(error.value) == "REDIS_URL is not allowed: it has an option that the Redis client does not know."
