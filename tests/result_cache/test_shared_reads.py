"""Reads that several requests share."""

import asyncio
import weakref
from collections.abc import Sequence

import pytest

from result_cache.shared_reads import SharedReads

LONG_S = 30.0
SHORT_S = 0.01


class HeldStore:
    """A store whose reads end when the test says so. The value of a key is twice the key."""

    def __init__(self) -> None:
        self.reads: list[list[bytes]] = []
        self.go = asyncio.Semaphore(0)

    async def read(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        self.reads.append(list(keys))
        await self.go.acquire()
        return [key * 2 for key in keys]

    async def end_read(self) -> None:
        self.go.release()
        await settle()


async def settle() -> None:
    """Let all tasks run until they wait."""
    for _ in range(10):
        await asyncio.sleep(0)


def opened(store: HeldStore, *, max_reads: int = 2, max_keys: int = 4, timeout_s: float = LONG_S) -> SharedReads:
    return SharedReads(store.read, max_reads=max_reads, max_keys=max_keys, timeout_s=timeout_s)


async def test_lone_request_is_read_at_once() -> None:
    store = HeldStore()
    waiting = opened(store).values([b"a", b"b"])
    await settle()
    assert store.reads == [[b"a", b"b"]]
    store.go.release()
    assert await waiting == [b"aa", b"bb"]


async def test_requests_that_come_meanwhile_are_read_together_in_their_order() -> None:
    store = HeldStore()
    reads = opened(store, max_reads=1)
    wanted = [[b"a"], [b"b"], [b"c"], [b"d", b"e", b"f"], [b"g"]]
    waiting = [reads.values(keys) for keys in wanted]
    await settle()
    assert store.reads == [[b"a"]]
    for _ in range(3):
        await store.end_read()
    assert store.reads == [[b"a"], [b"b", b"c"], [b"d", b"e", b"f", b"g"]]
    assert [await values for values in waiting] == [[key * 2 for key in keys] for keys in wanted]


async def test_requests_that_do_not_fill_a_read_wait_for_the_one_in_flight() -> None:
    store = HeldStore()
    reads = opened(store)
    waiting = [reads.values([key]) for key in (b"a", b"b", b"c", b"d")]
    await settle()
    assert store.reads == [[b"a"]]
    await store.end_read()
    assert store.reads == [[b"a"], [b"b", b"c", b"d"]]
    await store.end_read()
    assert [await values for values in waiting] == [[b"aa"], [b"bb"], [b"cc"], [b"dd"]]


async def test_full_reads_are_in_flight_together_up_to_a_limit() -> None:
    store = HeldStore()
    reads = opened(store, max_reads=2, max_keys=2)
    waiting = [reads.values([key, key]) for key in (b"a", b"b", b"c")]
    await settle()
    assert store.reads == [[b"a", b"a"], [b"b", b"b"]]
    await store.end_read()
    assert store.reads == [[b"a", b"a"], [b"b", b"b"], [b"c", b"c"]]
    await store.end_read()
    await store.end_read()
    assert [await values for values in waiting] == [[b"aa"] * 2, [b"bb"] * 2, [b"cc"] * 2]


async def test_caller_that_leaves_takes_nothing_from_others() -> None:
    store = HeldStore()
    reads = opened(store)
    first, leaves, stays = (reads.values([key]) for key in (b"a", b"b", b"c"))
    leaves.cancel()
    await settle()
    first.cancel()
    await store.end_read()
    await store.end_read()
    assert await stays == [b"cc"]
    assert store.reads == [[b"a"], [b"c"]], "no request waits for b any more"


@pytest.mark.parametrize("is_in_flight", [False, True])
async def test_wait_is_bounded(*, is_in_flight: bool) -> None:
    store = HeldStore()
    reads = opened(store, max_reads=1, timeout_s=SHORT_S)
    held = reads.values([b"a"])
    last = held if is_in_flight else reads.values([b"b"])
    assert await last == [None]
    assert await held == [None]
    await store.end_read()
    assert store.reads == [[b"a"]], "no request waits for b any more"


async def test_released_callers_get_no_values_and_reads_in_flight_go_on() -> None:
    store = HeldStore()
    reads = opened(store, max_reads=1)
    first, second = reads.values([b"a"]), reads.values([b"b", b"c"])
    reads.release()
    assert await second == [None, None]
    store.go.release()
    assert await first == [b"aa"]
    await settle()
    assert store.reads == [[b"a"]]


async def test_nothing_is_left_over_when_it_is_closed() -> None:
    store = HeldStore()
    before = asyncio.all_tasks()
    reads = opened(store, max_reads=1)
    in_flight, waiting = reads.values([b"a"]), reads.values([b"b"])
    await settle()
    assert (len(asyncio.all_tasks() - before), store.reads) == (1, [[b"a"]])
    await reads.aclose()
    assert asyncio.all_tasks() == before
    assert [await in_flight, await waiting] == [[None], [None]]


async def test_values_are_not_kept_until_the_timer_ends() -> None:
    store = HeldStore()
    reads = opened(store, max_reads=1)
    first = reads.values([b"a"])
    store.go.release()
    assert await first == [b"aa"]
    value = weakref.ref(first)
    del first
    await settle()
    assert value() is None, "the timer has not ended its slice yet"
