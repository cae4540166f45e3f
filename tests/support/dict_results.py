"""A result store without limits."""

from collections.abc import Mapping, Sequence


class DictResults:
    """Keeps everything in memory, and if it is layered, also in a second dictionary, which other stores may share."""

    def __init__(self, slower: dict[tuple[str, bytes], bytes] | None = None) -> None:
        self.generation = self.changes = 0
        self.memory: dict[bytes, bytes] = {}
        self.slower = slower
        self.fetched_keys = 0

    is_off = False

    @property
    def has_shared_tier(self) -> bool:
        return self.slower is not None

    @property
    def is_empty(self) -> bool:
        return not self.memory and self.slower is None

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self.memory.get(key) for key in keys]

    async def fetch(self, namespace: str, keys: Sequence[bytes], *, may_keep: bool) -> list[bytes | None]:
        self.fetched_keys += len(keys)
        found = {key: result for key in keys if (result := (self.slower or {}).get((namespace, key))) is not None}
        if may_keep:
            self.memory |= found
            self.changes += 1
        return [found.get(key) for key in keys]

    def put(self, namespace: str, results: Mapping[bytes, bytes], *, generation: int) -> None:
        if generation != self.generation:
            return
        self.memory |= results
        self.changes += 1
        if self.slower is not None:
            self.slower |= {(namespace, key): result for key, result in results.items()}

    def clear(self) -> None:
        self.generation += 1
        self.memory.clear()
