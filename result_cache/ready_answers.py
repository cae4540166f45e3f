"""Answers that are ready to be sent again, in a part of the memory of the results that they are made of."""

from collections import OrderedDict
from typing import Generic, TypeVar

from result_cache.memory_results import MemoryResults

MAX_SHARE = 1 / 8
"""Share of the memory for results that answers may take. As JSON, a vector takes three times as much as its result, and
to compute one costs as much as to write hundreds: so answers are for what is repeated most."""
ENTRY_BYTES = 2_000
"""What an answer takes besides its body: its headers, what it was made of, the key, and a part of a hash table."""

Answer = TypeVar("Answer")


class ReadyAnswers(Generic[Answer]):
    """Keeps answers by key, the most recently used ones. For the event loop's thread only."""

    def __init__(self, memory: MemoryResults) -> None:
        """Take room from *memory*."""
        self._memory = memory
        self._max_bytes = int(memory.counts().limit_bytes * MAX_SHARE)
        self._answers: OrderedDict[bytes, tuple[Answer, int]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: bytes) -> Answer | None:
        """Return the answer with this key; None: it is not kept."""
        if (found := self._answers.get(key)) is None:
            return None
        self._answers.move_to_end(key)
        return found[0]

    def put(self, key: bytes, answer: Answer, body_bytes: int) -> None:
        """Keep *answer*, whose body has *body_bytes*, instead of those that were not used for longest."""
        size = body_bytes + ENTRY_BYTES
        if size > self._max_bytes:
            return
        before = self._bytes
        if (replaced := self._answers.pop(key, None)) is not None:
            self._bytes -= replaced[1]
        while self._bytes + size > self._max_bytes:
            self._bytes -= self._answers.popitem(last=False)[1][1]
        self._answers[key] = answer, size
        self._bytes += size
        self._memory.lend(self._bytes - before)

    def clear(self) -> None:
        """Remove all answers."""
        self._memory.lend(-self._bytes)
        self._answers = OrderedDict()  # `OrderedDict.clear` would keep its tables
        self._bytes = 0
