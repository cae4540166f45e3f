"""Reads that several requests share."""

import asyncio
from collections.abc import Sequence

import pytest

from result_cache.shared_reads import SharedReads


class HeldStore:
    """A store whose reads end when the test says so. The value of a key is twice the key."""

    def __init__(self) -> None:
        self.reads: list[list[bytes]] = []
        self.go = asyncio.Semaphore(0)

    async def read(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        self.reads.append(list(keys))
        await self.go.acquire()
        return [key * 2 for key in keys]


async def settle() -> None:
    """Let all tasks run until they wait."""
    for _ in range(10):
        await asyncio.sleep(0)


def asked(reads: SharedReads, *keys: bytes) -> asyncio.Task[Sequence[bytes | None]]:
    return asyncio.get_running_loop().create_task(reads.values(keys, timeout_s=30))


async def test_lone_request_is_read_at_once() -> None:
    store = HeldStore()
    reads = SharedReads(store.read, max_reads=2, max_keys=4)
    waiting = asked(reads, b"a", b"b")
    await settle()
    assert store.reads == [[b"a", b"b"]]
    store.go.release()
    assert await waiting == [b"aa", b"bb"]


async def test_requests_that_come_meanwhile_are_read_together_in_their_order() -> None:
    store = HeldStore()
    reads = SharedReads(store.read, max_reads=1, max_keys=4)
    waiting = [asked(reads, key) for key in (b"a", b"b", b"c")] + [asked(reads, b"d", b"e", b"f"), asked(reads, b"g")]
    await settle()
    assert store.reads == [[b"a"]]
    for _ in range(3):
        store.go.release()
        await settle()
    assert store.reads == [[b"a"], [b"b", b"c"], [b"d", b"e", b"f", b"g"]]
    assert [await task for task in waiting] == [[b"aa"], [b"bb"], [b"cc"], [b"dd", b"ee", b"ff"], [b"gg"]]


async def test_as_many_reads_as_allowed_are_in_flight() -> None:
    store = HeldStore()
    reads = SharedReads(store.read, max_reads=2, max_keys=1)
    waiting = [asked(reads, key) for key in (b"a", b"b", b"c")]
    await settle()
    assert store.reads == [[b"a"], [b"b"]]
    store.go.release()
    await settle()
    assert store.reads == [[b"a"], [b"b"], [b"c"]]
    store.go.release()
    store.go.release()
    assert await asyncio.gather(*waiting) == [[b"aa"], [b"bb"], [b"cc"]]


async def test_caller_that_leaves_takes_nothing_from_others() -> None:
    store = HeldStore()
    reads = SharedReads(store.read, max_reads=1, max_keys=4)
    first, leaves, stays = asked(reads, b"a"), asked(reads, b"b"), asked(reads, b"c")
    await settle()
    leaves.cancel()
    first.cancel()
    store.go.release()
    assert await stays == [b"cc"]
    assert store.reads == [[b"a"], [b"c"]], "no request waits for b any more"


async def test_wait_for_others_is_bounded() -> None:
    store = HeldStore()
    reads = SharedReads(store.read, max_reads=1, max_keys=4)
    first = asked(reads, b"a")
    await settle()
    with pytest.raises(TimeoutError):
        await reads.values([b"b"], timeout_s=0.01)
    store.go.release()
    assert await first == [b"aa"]
    await settle()
    assert store.reads == [[b"a"]], "no request waits for b any more"


async def test_released_callers_get_no_values_and_reads_in_flight_go_on() -> None:
    store = HeldStore()
    reads = SharedReads(store.read, max_reads=1, max_keys=4)
    first, second = asked(reads, b"a"), asked(reads, b"b", b"c")
    await settle()
    reads.release()
    assert await second == [None, None]
    store.go.release()
    assert await first == [b"aa"]
    assert store.reads == [[b"a"]]


async def test_no_read_is_left_over_when_it_is_closed() -> None:
    store = HeldStore()
    before = asyncio.all_tasks()
    reads = SharedReads(store.read, max_reads=1, max_keys=4)
    first, second = asked(reads, b"a"), asked(reads, b"b")
    await settle()
    store.go.release()
    await first
    await settle()
    second.cancel()
    await settle()
    assert (len(asyncio.all_tasks() - before), store.reads) == (1, [[b"a"], [b"b"]]), "the read that has begun"
    await reads.aclose()
    assert asyncio.all_tasks() == before
