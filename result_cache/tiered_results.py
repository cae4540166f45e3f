"""The result cache of a service: memory, and before a result is computed, perhaps a store that processes share."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from result_cache.answer_cache import AnswerCache
from result_cache.memory_results import MemoryResults, ResultCounts

NO_MEMORY = ResultCounts(0, 0, 0, 0, 0, 0)


class SharedResults(Protocol):
    """A store that other processes share. Its failures are fewer hits; only `clear` raises."""

    async def fetch(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the results with these keys, in their order; None for what is not found, whatever the reason."""

    def put_later(self, namespace: str, results: Mapping[bytes, bytes]) -> None:
        """Keep results soon, or lose them. Returns at once."""

    async def clear(self) -> object:
        """Delete all results, of all namespaces, and those that are not yet written. Raises if that fails."""


class TieredResults:
    """Implements `engine.result_store.ResultStore`. For the event loop's thread only."""

    is_off = False

    def __init__(self, memory: MemoryResults | None, shared: SharedResults | None = None) -> None:
        """Keep results in *memory*, if there is any, and in *shared*, if there is one."""
        self._memory = memory
        self._shared = shared
        self._generation = 0
        self.changes = 0
        self.answers: AnswerCache[Any] | None = None if memory is None else AnswerCache(memory)
        """Answers that are made of results in memory; deleted with them."""

    @property
    def generation(self) -> int:
        return self._generation

    @property
    def is_empty(self) -> bool:
        return self._shared is None and (self._memory is None or self._memory.is_empty)

    @property
    def has_shared_tier(self) -> bool:
        return self._shared is not None

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        if self._memory is None:
            return [None] * len(keys)
        get = self._memory.get
        return [get(key) for key in keys]

    async def fetch(self, namespace: str, keys: Sequence[bytes], *, may_keep: bool) -> list[bytes | None]:
        if self._shared is None or not keys:
            return [None] * len(keys)
        generation = self._generation
        results = await self._shared.fetch(namespace, keys)
        if generation != self._generation:  # all results were deleted meanwhile, so these may be, too
            return [None] * len(keys)
        if may_keep and self._memory is not None:
            for key, result in zip(keys, results, strict=True):
                if result is not None:
                    self._memory.put(key, result)
                    self.changes += 1
        return results

    def put(self, namespace: str, results: Mapping[bytes, bytes], *, generation: int) -> None:
        if generation != self._generation:
            return
        if self._memory is not None:
            self.changes += 1
            put = self._memory.put
            for key, result in results.items():
                put(key, result)
        if self._shared is not None and results:
            self._shared.put_later(namespace, results)

    async def clear(self) -> None:
        """Delete all results here and in the shared store.

        Results of texts that are computed or fetched meanwhile are not kept. What other processes have in memory
        stays. Raises what the shared store raises if it cannot delete; memory is empty even then.
        """
        self.clear_memory()
        try:
            if self._shared is not None:
                await self._shared.clear()
        finally:
            self.clear_memory()  # fetched before the shared store had deleted it

    def counts(self) -> ResultCounts:
        """Return the counts of the memory."""
        return NO_MEMORY if self._memory is None else self._memory.counts()

    def clear_memory(self) -> None:
        """Delete what is in memory. Results of texts that are computed or fetched meanwhile are not kept."""
        self._generation += 1
        if self.answers is not None:
            self.answers.clear()
        if self._memory is not None:
            self._memory.clear()
