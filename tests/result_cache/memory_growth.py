"""Fills a `MemoryResults` with results of random sizes in a process of its own; prints by how much the process grew.

Arguments: limit in bytes, smallest and largest result in bytes, number of results. Prints one line of JSON.
"""

import json
import random
import sys
from math import exp, log

from host.memory import fix_mmap_threshold, private_bytes, trim_memory
from result_cache.memory_results import MemoryResults


def main() -> None:
    limit_bytes, smallest, largest, number = map(int, sys.argv[1:])
    fix_mmap_threshold()  # as the service does
    source = random.Random(1)  # noqa: S311 - the same sizes in every run
    memory = MemoryResults(limit_bytes=limit_bytes)
    used = [source.randbytes(16) for _ in range(100)]
    trim_memory()
    before = private_bytes() or 0
    for count in range(number):
        size = int(exp(source.uniform(log(smallest), log(largest))))
        key = used[count % 100] if count % 3 == 0 else source.randbytes(16)
        if memory.get(key) is None:
            memory.put(key, b"x" * size)  # not zeros, whose pages the kernel provides only when they are written
        bytearray(source.randrange(300_000))  # as request bodies do, between the results
    full = private_bytes() or 0
    counts = memory.counts()
    memory.clear()
    trim_memory()
    cleared = private_bytes() or 0
    growth = {"grown_bytes": full - before, "left_bytes": cleared - before, "evictions": counts.evictions}
    print(json.dumps(growth))  # noqa: T201 - this is what the test reads


if __name__ == "__main__":
    main()
