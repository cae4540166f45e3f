"""Results that wait to be written to a slow store: bounded by bytes, each key once."""

from collections.abc import Mapping
from typing import NamedTuple


class Write(NamedTuple):
    """A result that waits, and where it belongs."""

    namespace: str
    key: bytes
    result: bytes


class WriteQueue:
    """First in, first out."""

    def __init__(self, *, max_bytes: int, max_result_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._max_result_bytes = max_result_bytes
        self._writes: dict[tuple[str, bytes], bytes] = {}
        self.size = 0

    def __bool__(self) -> bool:
        return bool(self._writes)

    def put(self, namespace: str, results: Mapping[bytes, bytes]) -> int:
        """Let results wait, and return how many of them were dropped because they do not fit."""
        dropped = 0
        for key, result in results.items():
            if (namespace, key) in self._writes:
                continue  # equal keys have equal results
            if len(result) > self._max_result_bytes or self.size + len(result) > self._max_bytes:
                dropped += 1
                continue
            self._writes[namespace, key] = result
            self.size += len(result)
        return dropped

    def take(self, *, max_writes: int, max_bytes: int) -> list[Write]:
        """Remove and return the oldest: up to *max_writes*, and none after *max_bytes* bytes of results."""
        taken: list[Write] = []
        size = 0
        while self._writes and len(taken) < max_writes and size < max_bytes:
            (namespace, key), result = next(iter(self._writes.items()))
            del self._writes[namespace, key]
            taken.append(Write(namespace, key, result))
            size += len(result)
        self.size -= size
        return taken

    def clear(self) -> int:
        """Remove all, and return their number."""
        number = len(self._writes)
        self._writes.clear()
        self.size = 0
        return number
