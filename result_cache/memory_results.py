"""Results in the memory of this process: bounded by bytes, and what is used again stays.

There are two segments, each in the order of last use. New results enter *probation*. A result moves to *protected* if
it is found again, or if its text repeats after it was removed. Protected results take at most `PROTECTED_SHARE` of
the memory; when they do, a text that repeats must have been used more often lately (`FrequencySketch`) than those
that it would replace. What leaves protected returns to probation. When the memory is full, the least recently used
result on probation is evicted. So a bulk job without repeated texts replaces only what is on probation, and what
queries repeat stays.

No library does both, so this is our own. Hit rates in percent, and CPU in microseconds, of
`python benchmarks/cache_policies.py` (2 cores of a family 6 model 207 Xeon, Python 3.11, 2026-11-29):

======================================  ====  ==============  ==============  ============
..                                      ours  cachetools LRU  cachetools LFU  theine 2.0.0
======================================  ====  ==============  ==============  ============
search                                    40              37              40            40
search beside bulk                        32              20              29            30
search after bulk                         42              22              39            43
chat                                      10              10              10             3
re-index, documents fit                   95              95              95            95
the same, memory used before              96              96               0             9
re-index, twice what fits                 24               0               0            47
a hit, a put (CPU)                   1.2, 2.2        0.3, 1.0        0.5, 1.3      1.0, 2.6
======================================  ====  ==============  ==============  ============

theine (W-TinyLFU) counts entries, not bytes. cachebox's LRU hits as cachetools' does.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from result_cache.frequency_sketch import FrequencySketch

ENTRY_BYTES = 240
"""What an entry takes besides its result: the key, the headers of two `bytes`, a node and a part of a hash table."""
EXPIRY_ENTRY_BYTES = 200
"""What the time of an entry's expiry takes: a number, a node and a part of a hash table."""
FRAGMENTS = 32
"""One byte is counted for every 32 bytes of a result: gaps between blocks that are too small to be used again."""
PROTECTED_SHARE = 0.5
"""The other half is for whatever came last: documents that fit there are found again when they are indexed again,
however the memory was used before."""
MAX_ENTRY_SHARE = 1 / 16
"""A larger result is not kept: it would replace an eighth of what is on probation, or more."""
USES_PER_GENERATION = 2
"""Uses per cached result after which counts of uses go over to the next generation."""
MIN_USES_PER_GENERATION = 100
BYTES_PER_CELL = 64
"""Bytes of the limit per cell of the sketch, which is about 32 cells per result of 384 dimensions."""
MAX_EXPIRED_AT_ONCE = 64
"""Expired results that one call removes: enough to keep up, and too few to be noticed."""
MAX_EXPIRED_PER_COUNT = 5000
"""Expired results that `counts` removes: a few milliseconds of work."""


@dataclass(frozen=True, slots=True)
class ResultCounts:
    """What is cached now, and what happened since the start.

    Attributes:
        entries: results kept.
        bytes: the memory they take, with everything that belongs to an entry.
        limit_bytes: the most they may take: the setting without the counts of uses.
        evictions: results that were removed because others needed their memory.
        rejections: results that were too large to keep (`MAX_ENTRY_SHARE`), and those of repeated texts that were not
            protected because what is protected was used as often. A larger limit helps against both.
        expirations: results that were removed because of their age.
    """

    entries: int
    bytes: int
    limit_bytes: int
    evictions: int
    rejections: int
    expirations: int


class MemoryResults:
    """Keeps results by key, up to a number of bytes. Not thread-safe: for the event loop's thread only.

    Attributes:
        on_removed: called with the key of each result that was removed or replaced, except by `clear`.
    """

    def __init__(
        self, *, limit_bytes: int, ttl_s: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start empty.

        Args:
            limit_bytes: by how much the process may grow.
            ttl_s: results are not used after this time, however often they were; None: no limit.
            clock: seconds.
        """
        self._sketch = FrequencySketch(limit_bytes // BYTES_PER_CELL)
        self._limit_bytes = max(0, limit_bytes - self._sketch.size_bytes)
        self._ttl_s = ttl_s
        self._clock = clock
        self._entry_bytes = ENTRY_BYTES if ttl_s is None else ENTRY_BYTES + EXPIRY_ENTRY_BYTES
        self._max_entry_bytes = int(self._limit_bytes * MAX_ENTRY_SHARE)
        self._max_protected_bytes = int(self._limit_bytes * PROTECTED_SHARE)
        self._probation: OrderedDict[bytes, bytes] = OrderedDict()
        self._protected: OrderedDict[bytes, bytes] = OrderedDict()
        self._expiries: OrderedDict[bytes, float] = OrderedDict()
        self._bytes = self._protected_bytes = self._reserved_bytes = 0
        self._uses = 0
        self._evictions = self._rejections = self._expirations = 0
        self.on_removed: Callable[[bytes], object] = lambda _: None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is kept; what has expired may count."""
        return not self._bytes

    def get(self, key: bytes) -> bytes | None:
        """Return the result with this key, and count it as used; None if it is not kept."""
        if self._expiries:
            self._remove_expired(MAX_EXPIRED_AT_ONCE, key)
        if (result := self._protected.get(key)) is not None:
            self._protected.move_to_end(key)
        elif (result := self._probation.get(key)) is not None:
            self._protect(key, result)
        else:
            return None
        self._sketch.count(key)
        self._uses += 1
        return result

    def put(self, key: bytes, result: bytes) -> None:
        """Keep *result*, unless it is too large. A result that was kept with this key is replaced."""
        if self._uses > MIN_USES_PER_GENERATION + USES_PER_GENERATION * (len(self._probation) + len(self._protected)):
            self._sketch.begin_generation()
            self._uses = 0
        uses = self._sketch.count(key)
        self._uses += 1
        if self._expiries:
            self._remove_expired(MAX_EXPIRED_AT_ONCE, key)
        was_protected = key in self._protected
        if was_protected or key in self._probation:
            self._remove(key)
        size = self._size_of(result)
        if size > self._max_entry_bytes:
            self._rejections += 1
            return
        if is_full := self._bytes + size > self._limit_bytes:
            self._evict_for(size)
        self._probation[key] = result
        self._bytes += size
        if self._ttl_s is not None:
            self._expiries[key] = self._clock() + self._ttl_s
        if was_protected or (is_full and uses > 1 and self._deserves_protection(uses, size)):
            self._protect(key, result)

    def uses_of(self, key: bytes) -> int:
        """Return how often the result with this key was used lately, by estimate; 0: it is not kept."""
        return self._sketch.uses(key) if key in self._protected or key in self._probation else 0

    def capacity(self, result_bytes: int) -> int:
        """Return how many results of this size fit into the memory."""
        return self._limit_bytes // self._size_of(bytes(result_bytes))

    def reserve(self, size: int) -> None:
        """Reserve *size* bytes of the limit for something else. They count as used; a negative *size* frees them."""
        self._reserved_bytes += size
        self._limit_bytes -= size
        self._evict_for(0)

    def clear(self) -> None:
        """Remove all results. The memory goes back to the kernel after `host.memory.trim_memory`."""
        self._probation = OrderedDict()  # `OrderedDict.clear` would keep its tables
        self._protected = OrderedDict()
        self._expiries = OrderedDict()
        self._bytes = self._protected_bytes = self._uses = 0
        self._sketch.clear()

    def counts(self) -> ResultCounts:
        """Return what is kept now and what happened since the start; remove what expired while the service was idle."""
        self._remove_expired(MAX_EXPIRED_PER_COUNT)
        return ResultCounts(
            entries=len(self._probation) + len(self._protected),
            bytes=self._bytes + self._reserved_bytes,
            limit_bytes=self._limit_bytes + self._reserved_bytes,
            evictions=self._evictions,
            rejections=self._rejections,
            expirations=self._expirations,
        )

    def _size_of(self, result: bytes) -> int:
        return len(result) + len(result) // FRAGMENTS + self._entry_bytes

    def _protect(self, key: bytes, result: bytes) -> None:
        """Move a result from probation to protected; what no longer fits there goes back to probation."""
        del self._probation[key]
        self._protected[key] = result
        self._protected_bytes += self._size_of(result)
        while self._protected_bytes > self._max_protected_bytes:
            other, result_of_other = self._protected.popitem(last=False)
            self._protected_bytes -= self._size_of(result_of_other)
            self._probation[other] = result_of_other

    def _evict_for(self, size: int) -> None:
        """Evict the least recently used results until *size* bytes are free."""
        while self._bytes + size > self._limit_bytes:
            is_protected = not self._probation
            key, result = (self._protected if is_protected else self._probation).popitem(last=False)
            removed = self._size_of(result)
            self._bytes -= removed
            if is_protected:
                self._protected_bytes -= removed
            if self._expiries:
                del self._expiries[key]
            self._evictions += 1
            self.on_removed(key)

    def _deserves_protection(self, uses: int, size: int) -> bool:
        """Return whether a new result was used more often than all protected ones that it would replace."""
        free = self._max_protected_bytes - self._protected_bytes
        for other, result in self._protected.items():
            if free >= size:
                break
            if self._sketch.uses(other) >= uses:
                self._protected.move_to_end(other)  # the next new result is compared with another one
                self._rejections += 1
                return False
            free += self._size_of(result)
        return True

    def _remove(self, key: bytes) -> None:
        """Remove the result with this key, if it is kept."""
        if (result := self._protected.pop(key, None)) is not None:
            self._protected_bytes -= self._size_of(result)
        elif (result := self._probation.pop(key, None)) is None:
            return
        self._bytes -= self._size_of(result)
        self._expiries.pop(key, None)
        self.on_removed(key)

    def _remove_expired(self, most: int, key: bytes | None = None) -> None:
        """Remove what has expired: *key*, and the oldest others, at most *most* of them."""
        now_s = self._clock()
        while self._expiries and most:
            oldest, expiry_s = next(iter(self._expiries.items()))
            if expiry_s > now_s:
                return
            self._remove(oldest)
            self._expirations += 1
            most -= 1
        if key is not None and self._expiries.get(key, now_s + 1) <= now_s:
            self._remove(key)
            self._expirations += 1
