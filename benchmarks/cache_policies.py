"""Measure which results a cache should keep: hit rates and CPU of `result_cache.MemoryResults` and of libraries.

Run `python benchmarks/cache_policies.py`. Besides our own and a plain LRU, it measures cachetools, cachebox and theine,
if they are installed. No model runs: a stream is a list of texts' keys, and every text that is not found is put.
All results have the same size, since theine counts entries; it may hold as many as fit into the bytes of the others.

- *search*: half of the queries repeat; the popularity of queries is Zipf's, with the exponent 0.83;
- *search beside bulk*: five texts of a bulk job after each query, none of which repeats; hits of the queries only;
- *search after bulk*: a bulk job of twice the capacity ran in between; hits of the first queries after it;
- *chat*: a tenth of the texts repeat, most of them soon;
- *re-index*: documents that fit, and then again with 95 % of them unchanged; hits of the second time;
- *re-index, used memory*: the same with documents that take 45 %, after the memory was filled with a search stream;
- *re-index, too many*: the same with twice as many documents as fit; hits of the fourth time.
"""

import argparse
import random
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

if not __package__:  # run as a script: let `benchmarks` be found
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.arguments import whole
from benchmarks.machine import describe_run
from benchmarks.repeats import cumulative_weights
from benchmarks.tables import markdown
from engine.text_results import HEADER, NUMBERS
from result_cache.memory_results import BYTES_PER_CELL, ENTRY_BYTES, FRAGMENTS, MemoryResults

RESULT = bytes(HEADER.size + 384 * NUMBERS.itemsize)
"""Of a text, with 384 dimensions."""
QUERIES_PER_ENTRY = 10
BULK_PER_QUERY = 5
Stream = list[tuple[bytes, bool]]
"""Keys, and whether a hit counts."""


class Results(Protocol):
    """What is measured."""

    def get(self, key: bytes) -> bytes | None: ...

    def put(self, key: bytes, result: bytes) -> None: ...


class PlainLru:
    """Removes what has not been used for longest, bounded by bytes."""

    def __init__(self, limit_bytes: int) -> None:
        self._results: OrderedDict[bytes, bytes] = OrderedDict()
        self._room = limit_bytes

    def get(self, key: bytes) -> bytes | None:
        if (result := self._results.get(key)) is not None:
            self._results.move_to_end(key)
        return result

    def put(self, key: bytes, result: bytes) -> None:
        self._results[key] = result
        self._room -= size_of(result)
        while self._room < 0:
            self._room += size_of(self._results.popitem(last=False)[1])


class Mapped:
    """A library's mapping that evicts by itself."""

    def __init__(self, mapping: Any) -> None:
        self._mapping = mapping

    def get(self, key: bytes) -> bytes | None:
        found: bytes | None = self._mapping.get(key)
        return found

    def put(self, key: bytes, result: bytes) -> None:
        self._mapping[key] = result


class Theine:
    """Adaptive W-TinyLFU, bounded by entries. Its keys are strings or integers."""

    def __init__(self, theine: Any, entries: int) -> None:
        self._cache = theine.Cache(entries, nolock=True)

    def get(self, key: bytes) -> bytes | None:
        found: bytes | None = self._cache.get(int.from_bytes(key))[0]
        return found

    def put(self, key: bytes, result: bytes) -> None:
        self._cache.set(int.from_bytes(key), result)


def size_of(result: bytes) -> int:
    return len(result) + len(result) // FRAGMENTS + ENTRY_BYTES


def policies(entries: int) -> dict[str, Callable[[], Results]]:
    """Return what can be measured here, each with room for *entries* results."""
    limit_bytes = entries * size_of(RESULT)
    found: dict[str, Callable[[], Results]] = {
        "ours": lambda: MemoryResults(limit_bytes=limit_bytes * BYTES_PER_CELL // (BYTES_PER_CELL - 2)),
        "plain LRU": lambda: PlainLru(limit_bytes),
    }
    with suppress(ImportError):
        cachetools = import_module("cachetools")
        for name in ("LRUCache", "LFUCache"):
            make = getattr(cachetools, name)
            found[f"cachetools {version('cachetools')} {name}"] = lambda make=make: Mapped(  # type: ignore[misc]
                make(limit_bytes, getsizeof=size_of)
            )
    with suppress(ImportError):
        cachebox = import_module("cachebox")
        found[f"cachebox {version('cachebox')} LRUCache"] = lambda: Mapped(
            cachebox.LRUCache(limit_bytes, getsizeof=lambda _, result: size_of(result))
        )
    with suppress(ImportError):
        theine = import_module("theine")
        found[f"theine {version('theine')}"] = lambda: Theine(theine, entries)
    return found


def new_keys(seed: int) -> Iterator[bytes]:
    """Yield keys that are all different."""
    source = random.Random(seed)
    while True:
        yield source.randbytes(16)


def queries(number: int, repeats: float = 0.5) -> list[bytes]:
    """Return a search stream of *number* texts, about *repeats* of which came before."""
    weights = cumulative_weights(number, repeats)
    texts = list(islice(new_keys(1), len(weights)))
    return random.Random(1).choices(texts, cum_weights=weights, k=number)


def chat(number: int) -> Stream:
    source, fresh = random.Random(3), new_keys(3)
    sent: list[bytes] = []
    for _ in range(number):
        back = int(source.expovariate(1 / 200)) + 1
        sent.append(sent[-back] if back <= len(sent) and source.random() < 0.1 else next(fresh))
    return counted(sent)


def indexed(documents: int, times: int, before: Iterable[bytes] = ()) -> Stream:
    """Index documents so many times, with 5 % of them changed each time; hits of the last time count."""
    source, fresh = random.Random(4), new_keys(4)
    corpus = list(islice(fresh, documents))
    stream = [(key, False) for key in before]
    for _ in range(times - 1):
        stream += [(key, False) for key in corpus]
        corpus = [next(fresh) if source.random() < 0.05 else key for key in corpus]
    return stream + counted(corpus)


def counted(keys: Iterable[bytes]) -> Stream:
    return [(key, True) for key in keys]


def streams(entries: int) -> dict[str, Stream]:
    search = queries(QUERIES_PER_ENTRY * entries)
    bulk = new_keys(2)
    half = len(search) // 2
    return {
        "search": counted(search),
        "search beside bulk": [
            step for key in search for step in [(key, True), *((next(bulk), False) for _ in range(BULK_PER_QUERY))]
        ],
        "search after bulk": [
            *((key, False) for key in search[:half]),
            *((key, False) for key in islice(bulk, 2 * entries)),
            *counted(search[half : half + entries // 2]),
        ],
        "chat": chat(QUERIES_PER_ENTRY * entries),
        "re-index": indexed(int(0.9 * entries), 2),
        "re-index, used memory": indexed(int(0.45 * entries), 2, search),
        "re-index, too many": indexed(2 * entries, 4),
    }


def hit_rate(results: Results, stream: Stream) -> float:
    hits = asked = 0
    for key, counts in stream:
        if is_miss := results.get(key) is None:
            results.put(key, RESULT)
        asked += counts
        hits += counts and not is_miss
    return hits / asked


def cpu_us(action: Callable[[bytes], object], keys: Sequence[bytes]) -> float:
    """Return the CPU microseconds of *action* per key."""
    start_s = time.thread_time()
    for key in keys:
        action(key)
    return (time.thread_time() - start_s) / len(keys) * 1e6


def cpu_of(make: Callable[[], Results], entries: int) -> list[float]:
    """Return the CPU microseconds of a hit, of a miss, and of a put that evicts; the lowest of three rounds."""
    rounds = []
    for number in range(3):
        results, fresh = make(), new_keys(number)
        kept = list(islice(fresh, entries // 3))
        for key in kept * 2:  # the second time, it is found
            if results.get(key) is None:
                results.put(key, RESULT)
        for key in islice(fresh, entries):
            results.put(key, RESULT)
        for key in kept:  # again, for those that evict by age alone
            results.put(key, RESULT)
        new = list(islice(fresh, entries))
        rounds.append(
            (
                cpu_us(results.get, kept),
                cpu_us(results.get, new),
                cpu_us(lambda key: results.put(key, RESULT), new),  # noqa: B023 - called at once
            )
        )
    return [min(values) for values in zip(*rounds, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="cache_policies.py", description="Compare which results caches keep.")
    parser.add_argument(
        "--entries", type=whole(100, 100_000), default=4000, help="results that fit (default: %(default)s)"
    )
    entries = parser.parse_args().entries
    found = policies(entries)
    print(describe_run("python benchmarks/cache_policies.py " + " ".join(sys.argv[1:])))
    print()
    rows = [
        [name, *(f"{100 * hit_rate(make(), stream):.1f} %" for make in found.values())]
        for name, stream in streams(entries).items()
    ]
    times = [[f"{value:.2f} µs" for value in cpu_of(make, entries)] for make in found.values()]
    rows += [[f"CPU of a {what}", *cells] for what, *cells in zip(("hit", "miss", "put"), *times, strict=True)]
    print(markdown(["", *found], rows))


if __name__ == "__main__":
    main()
