"""Results in memory: the bound in bytes, what stays, what expires, and how much the process grows."""

import json
import random
import subprocess
import sys
from collections.abc import Iterable
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.text_results import HEADER, NUMBERS
from result_cache.memory_results import (
    ENTRY_BYTES,
    EXPIRY_ENTRY_BYTES,
    FRAGMENTS,
    MAX_ENTRY_SHARE,
    PROTECTED_SHARE,
    MemoryResults,
)
from tests.support.clock import ManualClock
from tests.support.servers import ROOT

LIMIT = 1 << 20
ROW = bytes(HEADER.size + 384 * NUMBERS.itemsize)
"""A result of 384 dimensions."""
FITS = 400
"""Fewer results of this size than fit."""
ARENA_BYTES = 1 << 20
"""CPython takes memory for objects of up to 512 bytes in such pieces, and gives back those that are empty."""


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


def look_up(memory: MemoryResults, wanted: Iterable[bytes]) -> None:
    """Do what a request does for each text: look it up, and compute and keep what is not found."""
    for key in wanted:
        if memory.get(key) is None:
            memory.put(key, ROW)


def test_bulk_work_does_not_wash_out_what_queries_use(memory: MemoryResults) -> None:
    queries = keys(FITS // 2)
    look_up(memory, queries * 2)
    look_up(memory, keys(20 * FITS, seed=2))
    assert found(memory, queries) == len(queries)
    assert memory.counts().evictions > 0


def test_queries_enter_a_memory_that_bulk_work_has_filled(memory: MemoryResults) -> None:
    queries, bulk = keys(100), iter(keys(100 * FITS, seed=2))
    look_up(memory, islice(bulk, 2 * FITS))
    for number, key in enumerate(queries * 4):  # each text comes again after as many others as fit twice
        look_up(memory, [key])
        look_up(memory, islice(bulk, 2 * FITS // 100))
        if number >= 2 * len(queries):
            assert memory.get(key) == ROW
    assert found(memory, queries) == len(queries)


def test_a_text_that_comes_again_soon_is_found_in_a_full_memory(memory: MemoryResults) -> None:
    look_up(memory, keys(FITS) * 3)
    for key in keys(5 * FITS, seed=2):
        memory.put(key, ROW)
        assert memory.get(key) == ROW


def test_documents_that_take_less_than_half_are_found_again_whatever_was_used_before(memory: MemoryResults) -> None:
    look_up(memory, keys(FITS) * 5)
    documents = keys(int(0.45 * FITS), seed=2)
    look_up(memory, documents)
    assert found(memory, documents) == len(documents)


def test_a_part_of_documents_that_do_not_fit_is_found_again(memory: MemoryResults) -> None:
    documents = keys(2 * FITS)
    for _ in range(4):
        look_up(memory, documents)
    assert memory.counts().rejections > 0
    again = 0
    for key in documents:
        again += memory.get(key) is not None
        look_up(memory, [key])
    assert again > 0.1 * len(documents)


def test_what_was_used_long_ago_makes_room_in_the_end(memory: MemoryResults) -> None:
    old, new = keys(FITS), keys(FITS, seed=2)
    look_up(memory, old * 20)
    for _ in range(10):
        look_up(memory, new)
    assert found(memory, new) == len(new)


def test_a_large_result_replaces_small_ones_only_if_it_was_used_more_often(memory: MemoryResults) -> None:
    memory.put(bytes(16), ROW)
    counts = memory.counts()
    small = keys(int(0.95 * PROTECTED_SHARE * counts.limit_bytes / counts.bytes))  # they nearly fill what is protected
    look_up(memory, small * 3)
    look_up(memory, keys(2 * FITS, seed=2))
    [large] = keys(1, seed=3)
    room = bytes(int(LIMIT * MAX_ENTRY_SHARE / 2))
    for seed in (4, 5):
        look_up(memory, small)
        memory.put(large, room)
        look_up(memory, keys(FITS, seed=seed))
    assert memory.get(large) is None
    assert found(memory, small) == len(small)


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


@pytest.mark.parametrize(
    ("limit_mb", "smallest", "largest", "number"),
    [
        pytest.param(64, 300, 200_000, 30_000, id="random-sizes"),
        pytest.param(32, len(ROW), len(ROW), 30_000, id="one-size"),
        pytest.param(12, 300, 500, 35_000, id="small"),
        pytest.param(32, 20_000, 200_000, 4000, id="large"),
    ],
)
def test_the_process_grows_by_the_limit_and_shrinks_after_a_clear(
    limit_mb: int, smallest: int, largest: int, number: int
) -> None:
    limit_bytes = limit_mb << 20
    command = [sys.executable, "-m", "tests.result_cache.memory_growth"]
    arguments = map(str, (limit_bytes, smallest, largest, number))
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    growth = json.loads(done.stdout)
    assert growth["evictions"] > 0  # it was full
    assert growth["grown_bytes"] == pytest.approx(limit_bytes, rel=0.2)
    assert growth["left_bytes"] < 0.1 * limit_bytes + 4 * ARENA_BYTES
