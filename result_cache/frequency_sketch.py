"""Estimates how often keys were used lately, in a fixed amount of memory, also those of results that are not kept."""

import struct
from collections.abc import Callable

MAX_USES = 15
"""No key counts for more within a generation: what was used very often is forgotten as soon as everything else."""
MIN_CELLS, MAX_CELLS = 1 << 10, 1 << 26
"""Limits on the cells of a sketch. The largest one does for 4 GB of results; with more, more keys share their cells."""
ZEROS = bytes(1 << 20)

_cells_of: Callable[[bytes], tuple[int, int, int, int]] = struct.Struct("<4I").unpack


class FrequencySketch:
    """Two count-min sketches with four cells of a byte per key: one counts, one has the counts of the time before.

    Halving all counts from time to time, as TinyLFU does, would forget what was used once at that moment, even if that
    was a moment ago. Keys must be uniformly distributed, as keyed hashes are: they choose the cells themselves, and
    no caller can choose texts that share cells.
    """

    def __init__(self, cells: int) -> None:
        """Use *cells* cells per sketch. With 32 per key, the counts of nearly all keys are exact."""
        self._size = min(max(MIN_CELLS, cells), MAX_CELLS)
        self._counts, self._earlier = bytearray(self._size), bytearray(self._size)

    @property
    def size_bytes(self) -> int:
        """The memory that all counts take."""
        return 2 * self._size

    def count(self, key: bytes) -> int:
        """Count one use of *key* (16 bytes), and return `uses`."""
        one, two, three, four = _cells_of(key)
        counts, earlier, size = self._counts, self._earlier, self._size
        one %= size
        two %= size
        three %= size
        four %= size
        uses = min(counts[one], counts[two], counts[three], counts[four])
        if uses < MAX_USES:
            more = uses + 1
            for cell in (one, two, three, four):
                if counts[cell] == uses:
                    counts[cell] = more
            uses = more
        return uses + min(earlier[one], earlier[two], earlier[three], earlier[four])

    def uses(self, key: bytes) -> int:
        """Return how often *key* was used in this generation and the one before: seldom too high, never too low."""
        cells = [cell % self._size for cell in _cells_of(key)]
        return min([self._counts[cell] for cell in cells]) + min([self._earlier[cell] for cell in cells])

    def begin_generation(self) -> None:
        """Forget the generation before this one, and count the next one."""
        self._earlier, self._counts = self._counts, self._earlier
        _clear(self._counts)

    def clear(self) -> None:
        """Forget all uses."""
        _clear(self._counts)
        _clear(self._earlier)


def _clear(counts: bytearray) -> None:
    """Set all *counts* to 0. It blocks the event loop, and new memory would take several times as long."""
    for start in range(0, len(counts), len(ZEROS)):
        counts[start : start + len(ZEROS)] = ZEROS[: len(counts) - start]
