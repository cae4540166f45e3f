"""Results in memory: the bound in bytes, what stays, what expires, and how much the process grows."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from result_cache.memory_results import ENTRY_BYTES, EXPIRY_ENTRY_BYTES, FRAGMENTS, MAX_ENTRY_SHARE, MemoryResults
from tests.support.clock import ManualClock

LIMIT = 1 << 20
ROW = bytes(1544)
"""A result of 384 dimensions."""
FITS = 400
"""Fewer results of this size than fit."""


def keys(number: int, *, seed: int = 1) -> list[bytes]:
    """Return distinct keys that are as uniform as keyed hashes are."""
    source = random.Random(seed)  # noqa: S311 - the same keys in every run
    return [source.randbytes(16) for _ in range(number)]


@pytest.fixture
def memory() -> MemoryResults:
    return MemoryResults(limit_bytes=LIMIT)


def found(memory: MemoryResults, wanted: list[bytes]) -> int:
    return sum(memory.get(key) is not None for key in wanted)


def test_what_is_put_is_found_as_it_was(memory: MemoryResults) -> None:
    results = {key: bytes([number]) * number for number, key in enumerate(keys(200))}
    for key, result in results.items():
        memory.put(key, result)
    assert {key: memory.get(key) for key in results} == results
    assert memory.get(bytes(16)) is None


def test_a_result_replaces_the_one_with_the_same_key(memory: MemoryResults) -> None:
    [key] = keys(1)
    memory.put(key, ROW)
    memory.put(key, b"new")
    assert memory.get(key) == b"new"
    memory.put(key, b"newer")  # the one before is protected now
    assert memory.get(key) == b"newer"
    assert memory.counts().entries == 1


def test_free_room_is_always_used(memory: MemoryResults) -> None:
    documents = keys(FITS)
    for key in documents:
        memory.put(key, ROW)
    assert found(memory, documents) == FITS
    assert memory.counts().rejections == memory.counts().evictions == 0


def test_bulk_work_does_not_wash_out_what_queries_use(memory: MemoryResults) -> None:
    queries = keys(FITS // 2)
    for key in queries * 2:
        memory.get(key)
        memory.put(key, ROW)
    for document in keys(20 * FITS, seed=2):
        memory.put(document, ROW)
    assert found(memory, queries) == len(queries)
    assert memory.counts().evictions > 0


def test_what_is_used_again_and_again_enters_a_full_memory(memory: MemoryResults) -> None:
    for key in keys(2 * FITS):
        memory.get(key)
        memory.put(key, ROW)
        memory.get(key)
    queries = keys(20, seed=2)
    for _ in range(10):
        for key in queries:
            if memory.get(key) is None:
                memory.put(key, ROW)
    assert found(memory, queries) == len(queries)


def test_what_was_used_long_ago_makes_room_in_the_end(memory: MemoryResults) -> None:
    old, new = keys(FITS), keys(FITS, seed=2)
    for key in old * 20:
        memory.get(key)
        memory.put(key, ROW)
    for _ in range(200):
        for key in new:
            if memory.get(key) is None:
                memory.put(key, ROW)
    assert found(memory, new) > 0.9 * len(new)


def test_a_large_result_is_not_kept(memory: MemoryResults) -> None:
    small, large = keys(2)
    memory.put(small, ROW)
    memory.put(large, bytes(int(LIMIT * MAX_ENTRY_SHARE)))
    assert memory.get(large) is None
    assert memory.get(small) == ROW
    assert memory.counts().rejections == 1


def test_a_result_too_large_to_keep_removes_the_one_it_replaces(memory: MemoryResults) -> None:
    [key] = keys(1)
    memory.put(key, ROW)
    memory.put(key, bytes(LIMIT))
    assert memory.get(key) is None
    assert memory.counts().bytes == 0


def test_without_room_nothing_is_kept() -> None:
    memory = MemoryResults(limit_bytes=0)
    memory.put(bytes(16), b"")
    assert memory.get(bytes(16)) is None


def test_results_expire_by_age_however_often_they_are_used() -> None:
    clock = ManualClock()
    memory = MemoryResults(limit_bytes=LIMIT, ttl_s=60, clock=clock)
    old, new = keys(2)
    memory.put(old, ROW)
    clock.now_s = 59.9
    memory.put(new, ROW)
    assert memory.get(old) == ROW
    clock.now_s = 60
    assert memory.get(old) is None
    assert memory.get(new) == ROW
    clock.now_s = 120
    counts = memory.counts()
    assert (counts.entries, counts.bytes, counts.expirations) == (0, 0, 2)


def test_a_result_put_again_lives_for_its_whole_time() -> None:
    clock = ManualClock()
    memory = MemoryResults(limit_bytes=LIMIT, ttl_s=60, clock=clock)
    [key] = keys(1)
    memory.put(key, ROW)
    clock.now_s = 50
    memory.put(key, ROW)
    clock.now_s = 100
    assert memory.get(key) == ROW


def test_no_expired_result_is_found_even_if_all_expire_at_once() -> None:
    clock = ManualClock()
    memory = MemoryResults(limit_bytes=LIMIT, ttl_s=60, clock=clock)
    results = keys(FITS)
    for key in results:
        memory.put(key, ROW)
    clock.now_s = 60
    assert memory.get(results[-1]) is None
    assert found(memory, results) == 0
    assert memory.counts().expirations == FITS


def test_nothing_is_left_after_a_clear(memory: MemoryResults) -> None:
    results = keys(FITS)
    for key in results:
        memory.put(key, ROW)
    memory.clear()
    assert found(memory, results) == 0
    assert (memory.counts().entries, memory.counts().bytes) == (0, 0)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 5000), st.booleans(), st.integers(0, 30))))
def test_any_sequence_keeps_the_bound_and_returns_what_was_put_last(
    steps: list[tuple[int, int, bool, int]],
) -> None:
    clock = ManualClock()
    memory = MemoryResults(limit_bytes=60_000, ttl_s=100, clock=clock)
    names = keys(41)
    latest: dict[bytes, tuple[bytes, float]] = {}
    counts = memory.counts()
    for number, (name, size, is_put, seconds) in enumerate(steps):
        clock.now_s += seconds
        key = names[name]
        if is_put:
            latest[key] = (number.to_bytes(4) + bytes(size), clock.now_s)
            memory.put(key, latest[key][0])
        elif (result := memory.get(key)) is not None:
            put, at_s = latest[key]
            assert result == put
            assert clock.now_s < at_s + 100
        counts = memory.counts()
        assert counts.bytes <= counts.limit_bytes
    kept = [result for key in names if (result := memory.get(key)) is not None]
    assert counts.entries == len(kept)
    assert counts.bytes == sum(
        len(result) + len(result) // FRAGMENTS + ENTRY_BYTES + EXPIRY_ENTRY_BYTES for result in kept
    )
