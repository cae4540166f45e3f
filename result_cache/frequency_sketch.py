"""Estimates how often keys were used lately, in a fixed amount of memory, also those of results that are not kept."""

import struct

MAX_USES = 15
"""No key counts for more within a generation: what was used very often is forgotten as soon as everything else."""
MIN_CELLS = 1 << 10

_two_numbers = struct.Struct("<II8x").unpack


class FrequencySketch:
    """Two count-min sketches with two cells of a byte per key: one counts, one has the counts of the time before.

    Halving all counts from time to time, as TinyLFU does, would forget what was used once at that moment, even if that
    was a moment ago. Keys must be uniformly distributed, as keyed hashes are: their first bytes choose the cells, and
    nobody can choose texts that share cells.
    """

    def __init__(self, cells: int) -> None:
        """Use *cells* cells per sketch: 32 per key tell nearly all keys apart."""
        self._size = max(MIN_CELLS, cells)
        self._counts, self._earlier = bytearray(self._size), bytearray(self._size)

    @property
    def size_bytes(self) -> int:
        """The memory that all counts take."""
        return 2 * self._size

    def count(self, key: bytes) -> None:
        """Count one use of *key* (16 bytes)."""
        one, other = _two_numbers(key)
        counts, size = self._counts, self._size
        one %= size
        other %= size
        uses = counts[one]
        uses_of_other = counts[other]
        if uses <= uses_of_other and uses < MAX_USES:
            counts[one] = uses + 1
        if uses_of_other <= uses and uses_of_other < MAX_USES:
            counts[other] = uses_of_other + 1

    def uses(self, key: bytes) -> int:
        """Return how often *key* was used in this generation and the one before: seldom too high, never too low."""
        one, other = _two_numbers(key)
        size = self._size
        one %= size
        other %= size
        return min(self._counts[one], self._counts[other]) + min(self._earlier[one], self._earlier[other])

    def begin_generation(self) -> None:
        """Forget the generation before this one, and count the next one."""
        self._earlier, self._counts = self._counts, bytearray(self._size)

    def clear(self) -> None:
        """Forget all uses."""
        self._counts, self._earlier = bytearray(self._size), bytearray(self._size)
