"""Measure what results in Redis cost: CPU of the event loop's thread per request, without a service around; and memory.

Run `python benchmarks/redis_results.py [URL]`. It writes to that Redis and deletes what it has written;
no other program may use it meanwhile.
"""

import argparse
import asyncio
import secrets
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

if not __package__:  # run as a script: let `benchmarks` be found
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import uvloop
from redis import Redis

from benchmarks.machine import describe_run
from benchmarks.tables import markdown
from result_cache.redis_results import RedisResults

MODEL = "0123456789abcdef:benchmark"
HEAD_BYTES = 24
"""Bytes of a result besides its vector."""
TEXTS = 32
REPEATS = 5
"""The least of so many measurements is reported: others are disturbed by other programs."""


async def measure(url: str) -> list[list[str]]:
    """Return a row per kind of request."""
    results = RedisResults(url=url, secret=secrets.token_bytes(32), ttl_s=60, timeout_s=10)
    values = {secrets.token_bytes(16): result_of(384) for _ in range(TEXTS)}
    keys = list(values)

    async def fetch_each() -> None:
        await asyncio.gather(*(results.fetch(MODEL, [key]) for key in keys))

    async with results.running():
        await write(results, values)
        kinds: dict[str, tuple[Callable[[], Awaitable[object]], int, int]] = {
            "1 text": (lambda: results.fetch(MODEL, keys[:1]), 500, 1),
            f"{TEXTS} texts": (lambda: results.fetch(MODEL, keys), 100, 1),
            f"1 text, {TEXTS} requests at once": (fetch_each, 50, TEXTS),
            f"{TEXTS} texts, written": (lambda: write(results, values), 30, 1),
        }
        rows = [[name, f"{await cpu_us(run, times) / requests:.0f}"] for name, (run, times, requests) in kinds.items()]
        await results.clear()
    if failures := {kind: number for kind, number in results.counts.errors.items() if number}:
        sys.exit(f"Redis does not work: {failures}")
    return rows


async def measure_memory(url: str) -> list[list[str]]:
    """Return a row per number of dimensions."""
    results = RedisResults(url=url, secret=secrets.token_bytes(32), ttl_s=60, timeout_s=10)
    rows = []
    with Redis.from_url(url) as redis:
        async with results.running():
            for dim in (384, 768, 1024):
                before = redis.info("memory")["used_memory"]
                await write(results, {secrets.token_bytes(16): result_of(dim) for _ in range(1000)})
                after = redis.info("memory")["used_memory"]
                rows.append([str(dim), f"{(after - before) / await results.clear() / 1000:.1f}"])
    return rows


async def write(results: RedisResults, values: dict[bytes, bytes]) -> None:
    before = asyncio.all_tasks()
    results.put_later(MODEL, values)
    await asyncio.gather(*(asyncio.all_tasks() - before))


def result_of(dim: int) -> bytes:
    return secrets.token_bytes(HEAD_BYTES + 4 * dim)


async def cpu_us(run: Callable[[], Awaitable[object]], times: int) -> float:
    """Return the CPU time of this thread per call, in microseconds."""
    await run()
    least = float("inf")
    for _ in range(REPEATS):
        began = time.thread_time()
        for _ in range(times):
            await run()
        least = min(least, (time.thread_time() - began) / times)
    return least * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?", default="redis://127.0.0.1:6379/0", help="of a Redis (%(default)s)")
    url = parser.parse_args().url
    cpu, memory = uvloop.run(measure(url)), uvloop.run(measure_memory(url))  # the service's event loop
    print(describe_run("python benchmarks/redis_results.py"))
    print(markdown(["Request", "µs of CPU"], cpu))
    print()
    print(markdown(["Dimensions", "KB in Redis per result"], memory))


if __name__ == "__main__":
    main()
