"""Caches whole answers, in a part of the memory of the results that they contain."""

from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from typing import Generic, TypeVar

from result_cache.memory_results import MemoryResults

MAX_SHARE = 1 / 8
"""Share of the memory for results that answers may take. As JSON, a vector takes three times as much as its result, and
computing one costs as much as writing hundreds: so only the answers to the most frequent requests are worth it."""
ENTRY_BYTES = 2_300
"""What an answer takes besides its body: its headers, its `SingleHit`, two keys, and parts of two hash tables."""

MAX_PER_RESULT = 32
"""Answers that contain the same result. Requests for one text may differ in blanks only, so their number is unlimited,
and all answers are removed at once with the result."""

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, eq=False)
class _Entry(Generic[Answer]):
    """An answer, the bytes that it takes, and the key of the result in it."""

    answer: Answer
    size: int
    result_key: bytes


class AnswerCache(Generic[Answer]):
    """Caches answers by key, those whose results are used most. For the event loop's thread only.

    When full, it admits a new answer only if its result was used more often lately than those of the answers that it
    would replace. So documents that are indexed again, text by text, do not replace the answers to queries. An answer
    is removed with its result.
    """

    def __init__(self, memory: MemoryResults) -> None:
        """Reserve memory in *memory*, which contains the results."""
        self._memory = memory
        memory.on_removed = self._remove_of
        self._max_bytes = int(memory.counts().limit_bytes * MAX_SHARE)
        self._answers: OrderedDict[bytes, _Entry[Answer]] = OrderedDict()
        self._by_result: defaultdict[bytes, list[bytes]] = defaultdict(list)
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: bytes) -> Answer | None:
        """Return the answer with this key; None: it is not cached."""
        if (found := self._answers.get(key)) is None:
            return None
        self._answers.move_to_end(key)
        return found.answer

    def may_keep(self, result_key: bytes) -> bool:
        """Return whether an answer with this result may be cached: it was used before. Most texts come once."""
        return self._memory.uses_of(result_key) > 1

    def put(self, key: bytes, answer: Answer, body_bytes: int, *, result_key: bytes) -> None:
        """Cache *answer* if it fits.

        Args:
            key: of the request.
            answer: to it.
            body_bytes: the length of its body.
            result_key: of the only result in it. If that is not in memory, the answer is not cached.
        """
        if key in self._answers:
            self._remove(key)
        uses, size = self._memory.uses_of(result_key), body_bytes + ENTRY_BYTES
        if not uses or size > self._max_bytes or not self._evict_for(size, uses):
            return
        of_result = self._by_result[result_key]
        if len(of_result) == MAX_PER_RESULT:
            self._remove(of_result[0])
        self._answers[key] = _Entry(answer, size, result_key)
        of_result.append(key)
        self._bytes += size
        self._memory.reserve(size)

    def clear(self) -> None:
        """Remove all answers."""
        self._memory.reserve(-self._bytes)
        self._answers = OrderedDict()  # `OrderedDict.clear` would keep its tables
        self._by_result = defaultdict(list)
        self._bytes = 0

    def _evict_for(self, size: int, uses: int) -> bool:
        """Remove the least recently sent answers until *size* bytes are free; return whether they are.

        If the result of one of these was not used less often than *uses*, nothing is removed.
        """
        free, replaced = self._max_bytes - self._bytes, list[bytes]()
        for key, entry in self._answers.items():
            if free >= size:
                break
            if self._memory.uses_of(entry.result_key) >= uses:
                self._answers.move_to_end(key)  # the next new answer is compared with another one
                return False
            free += entry.size
            replaced.append(key)
        for key in replaced:
            self._remove(key)
        return True

    def _remove(self, key: bytes) -> None:
        """Remove the answer with this key."""
        entry = self._answers.pop(key)
        keys = self._by_result[entry.result_key]
        keys.remove(key)
        if not keys:
            del self._by_result[entry.result_key]
        self._bytes -= entry.size
        self._memory.reserve(-entry.size)

    def _remove_of(self, result_key: bytes) -> None:
        """Remove the answers that contain the result with this key."""
        for key in list(self._by_result.get(result_key, ())):
            self._remove(key)
