"""Answers that are ready to be sent again, in a part of the memory of the results that they are made of."""

from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from typing import Generic, TypeVar

from result_cache.memory_results import MemoryResults

MAX_SHARE = 1 / 8
"""Share of the memory for results that answers may take. As JSON, a vector takes three times as much as its result, and
to compute one costs as much as to write hundreds: so answers are for what is repeated most."""
ENTRY_BYTES = 2_300
"""What an answer takes besides its body: its headers, what it was made of, two keys, and parts of two hash tables."""

MAX_PER_RESULT = 32
"""Answers that may contain the same result. Requests for one text may differ in blanks only, so there are any number of
them, and all go at once with the result."""

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, eq=False)
class _Entry(Generic[Answer]):
    """An answer, the bytes that it takes, and the key of the result in it."""

    answer: Answer
    size: int
    result: bytes


class ReadyAnswers(Generic[Answer]):
    """Keeps answers by key, those whose results are used most. For the event loop's thread only.

    A full memory takes a new answer only if its result was used more often lately than those of the answers that it
    would replace. So documents that are indexed again, text by text, do not replace the answers to queries. No answer
    is kept for longer than its result.
    """

    def __init__(self, memory: MemoryResults) -> None:
        """Take room from *memory*, which has the results."""
        self._memory = memory
        memory.on_removed = self._remove_of
        self._max_bytes = int(memory.counts().limit_bytes * MAX_SHARE)
        self._answers: OrderedDict[bytes, _Entry[Answer]] = OrderedDict()
        self._of_results: defaultdict[bytes, list[bytes]] = defaultdict(list)
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: bytes) -> Answer | None:
        """Return the answer with this key; None: it is not kept."""
        if (found := self._answers.get(key)) is None:
            return None
        self._answers.move_to_end(key)
        return found.answer

    def may_keep(self, result: bytes) -> bool:
        """Return whether an answer with this result may be kept: it was used before. Most texts come once."""
        return self._memory.uses_of(result) > 1

    def put(self, key: bytes, answer: Answer, body_bytes: int, *, result: bytes) -> None:
        """Keep *answer* if there is room.

        Args:
            key: of the request.
            answer: to it.
            body_bytes: the length of its body.
            result: the key of the only result in it; without that, the answer is not kept.
        """
        if key in self._answers:
            self._remove(key)
        uses, size = self._memory.uses_of(result), body_bytes + ENTRY_BYTES
        if not uses or size > self._max_bytes or not self._make_room(size, uses):
            return
        of_result = self._of_results[result]
        if len(of_result) == MAX_PER_RESULT:
            self._remove(of_result[0])
        self._answers[key] = _Entry(answer, size, result)
        of_result.append(key)
        self._bytes += size
        self._memory.lend(size)

    def clear(self) -> None:
        """Remove all answers."""
        self._memory.lend(-self._bytes)
        self._answers = OrderedDict()  # `OrderedDict.clear` would keep its tables
        self._of_results = defaultdict(list)
        self._bytes = 0

    def _make_room(self, size: int, uses: int) -> bool:
        """Remove the answers that were not sent for longest, until there is room; return whether there is.

        There is none, and all stay, if the result of one of these was not used less often than *uses*.
        """
        room, replaced = self._max_bytes - self._bytes, list[bytes]()
        for key, entry in self._answers.items():
            if room >= size:
                break
            if self._memory.uses_of(entry.result) >= uses:
                self._answers.move_to_end(key)  # the next new answer is compared with another one
                return False
            room += entry.size
            replaced.append(key)
        for key in replaced:
            self._remove(key)
        return True

    def _remove(self, key: bytes) -> None:
        """Remove the answer with this key."""
        entry = self._answers.pop(key)
        keys = self._of_results[entry.result]
        keys.remove(key)
        if not keys:
            del self._of_results[entry.result]
        self._bytes -= entry.size
        self._memory.lend(-entry.size)

    def _remove_of(self, result: bytes) -> None:
        """Remove the answers that contain this result."""
        for key in list(self._of_results.get(result, ())):
            self._remove(key)
