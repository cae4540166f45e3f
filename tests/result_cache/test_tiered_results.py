"""Memory before a shared store: what is found where, and what is kept after all results were deleted."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.result_store import ResultStore
from result_cache.memory_results import MemoryResults
from result_cache.tiered_results import TieredResults

KEY, OTHER = b"k" * 16, b"o" * 16
NAMESPACE = "fingerprint:runtime"


class CannotClearError(Exception):
    """The shared store is gone."""


class SharedResults:
    """A shared store in memory. A test holds its answers back with `gate`, and lets it fail to clear."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, bytes], bytes] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = asyncio.Event()
        self.can_clear = True

    async def fetch(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        found = [self.kept.get((namespace, key)) for key in keys]
        self.asked.set()
        await self.gate.wait()
        return found

    def put_later(self, namespace: str, results: Mapping[bytes, bytes]) -> None:
        self.kept.update({(namespace, key): result for key, result in results.items()})

    async def clear(self) -> None:
        self.asked.set()
        await self.gate.wait()
        if not self.can_clear:
            raise CannotClearError
        self.kept.clear()


@pytest.fixture
def shared() -> SharedResults:
    return SharedResults()


@pytest.fixture
def store(shared: SharedResults) -> TieredResults:
    return TieredResults(MemoryResults(limit_bytes=1 << 20), shared)


async def test_memory_alone_finds_what_was_put_and_fetches_nothing() -> None:
    store: ResultStore = TieredResults(MemoryResults(limit_bytes=1 << 20))
    store.put(NAMESPACE, {KEY: b"result"}, generation=store.generation)
    assert store.get([OTHER, KEY, KEY]) == [None, b"result", b"result"]
    assert await store.fetch(NAMESPACE, [OTHER, KEY], may_keep=True) == [None, None]
    assert not store.has_shared_tier


async def test_memory_alone_is_cleared() -> None:
    store = TieredResults(MemoryResults(limit_bytes=1 << 20))
    store.put(NAMESPACE, {KEY: b"result"}, generation=store.generation)
    await store.clear()
    assert store.get([KEY]) == [None]


async def test_what_is_put_reaches_the_shared_store(store: TieredResults, shared: SharedResults) -> None:
    store.put(NAMESPACE, {KEY: b"result"}, generation=store.generation)
    assert shared.kept == {(NAMESPACE, KEY): b"result"}
    assert store.has_shared_tier


async def test_what_is_fetched_is_in_memory_afterwards(store: TieredResults, shared: SharedResults) -> None:
    shared.kept[NAMESPACE, KEY] = b"result"
    assert store.get([KEY]) == [None]
    assert await store.fetch(NAMESPACE, [OTHER, KEY], may_keep=True) == [None, b"result"]
    assert store.get([OTHER, KEY]) == [None, b"result"]


async def test_results_computed_before_a_clear_are_not_kept(store: TieredResults, shared: SharedResults) -> None:
    generation = store.generation
    await store.clear()
    store.put(NAMESPACE, {KEY: b"result"}, generation=generation)
    assert store.get([KEY]) == [None]
    assert shared.kept == {}
    store.put(NAMESPACE, {KEY: b"result"}, generation=store.generation)
    assert store.get([KEY]) == [b"result"]


async def test_what_a_request_must_not_keep_is_not_copied_to_memory(
    store: TieredResults, shared: SharedResults
) -> None:
    shared.put_later(NAMESPACE, {KEY: b"result"})
    assert await store.fetch(NAMESPACE, [KEY], may_keep=False) == [b"result"]
    assert store.get([KEY]) == [None]


async def test_without_memory_the_shared_store_has_everything(shared: SharedResults) -> None:
    store: ResultStore = TieredResults(None, shared)
    store.put(NAMESPACE, {KEY: b"result"}, generation=store.generation)
    assert store.get([KEY]) == [None]
    assert await store.fetch(NAMESPACE, [KEY], may_keep=True) == [b"result"]
    assert not store.is_empty


async def test_a_fetch_in_flight_brings_nothing_after_a_clear(store: TieredResults, shared: SharedResults) -> None:
    shared.kept[NAMESPACE, KEY] = b"result"
    shared.gate.clear()
    async with asyncio.TaskGroup() as tasks:
        fetched = tasks.create_task(store.fetch(NAMESPACE, [KEY], may_keep=True))
        await shared.asked.wait()
        cleared = tasks.create_task(store.clear())
        await asyncio.sleep(0)
        shared.gate.set()
    assert cleared.done()
    assert fetched.result() == [None]
    assert store.get([KEY]) == [None]


async def test_what_is_fetched_while_the_shared_store_is_cleared_is_not_kept(
    store: TieredResults, shared: SharedResults
) -> None:
    shared.kept[NAMESPACE, KEY] = b"result"
    shared.gate.clear()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(store.clear())
        await shared.asked.wait()
        generation = store.generation
        shared.gate.set()  # nothing has run since: this fetch comes between the two halves of `clear`
        assert await store.fetch(NAMESPACE, [KEY], may_keep=True) == [b"result"]
    assert generation != store.generation
    assert store.get([KEY]) == [None]


async def test_memory_is_cleared_even_if_the_shared_store_cannot_be(
    store: TieredResults, shared: SharedResults
) -> None:
    store.put(NAMESPACE, {KEY: b"result"}, generation=store.generation)
    shared.can_clear = False
    with pytest.raises(CannotClearError):
        await store.clear()
    assert store.get([KEY]) == [None]
    assert store.counts().entries == store.counts().bytes == 0


class SlowResults(SharedResults):
    """A shared store of which each call takes some turns of the event loop."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = 0

    async def fetch(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        found = await super().fetch(namespace, keys)
        await turns(self.turns)
        return found

    async def clear(self) -> None:
        await turns(self.turns)
        await super().clear()


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


class Requests:
    """Sends requests and deletes all results, in any order. Each result is the number of deletions begun before it."""

    def __init__(self) -> None:
        self.shared = SlowResults()
        self.store = TieredResults(MemoryResults(limit_bytes=1 << 20), self.shared)
        self.begun = self.done = 0

    async def run(self, action: str, key: bytes, wait: int) -> None:
        self.shared.turns = wait
        if action == "clear":
            self.begun += 1
            number = self.begun
            await self.store.clear()
            self.done = max(self.done, number)
        elif action == "compute":
            generation, result = self.store.generation, self.begun
            await turns(wait)
            self.store.put(NAMESPACE, {key: bytes([result])}, generation=generation)
        else:
            self.check(self.store.get([key]))
            self.check(await self.store.fetch(NAMESPACE, [key], may_keep=True))

    def check(self, results: list[bytes | None]) -> None:
        assert all(result is None or result[0] >= self.done for result in results)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["clear", "compute", "look up"]),
            st.sampled_from([KEY, OTHER]),
            st.integers(0, 5),
            st.integers(0, 3),
        ),
        max_size=30,
    )
)
async def test_no_result_from_before_a_clear_is_found_after_it(steps: list[tuple[str, bytes, int, int]]) -> None:
    requests = Requests()
    async with asyncio.TaskGroup() as tasks:
        for action, key, wait, pause in steps:
            tasks.create_task(requests.run(action, key, wait))
            await turns(pause)
    for key in (KEY, OTHER):
        await requests.run("look up", key, 0)
