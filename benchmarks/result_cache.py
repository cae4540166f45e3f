"""Measure what the result cache gains where texts repeat, and what it costs where they do not.

Run `python benchmarks/result_cache.py`, about 6 minutes, on a machine that does nothing else; `bench.py` runs it, too.
A server without and one with the cache get the same seeded requests, alternately; only ratios within a round count.
With `redis-server` installed, two more servers share a Redis: the first computes texts, then the second gets them.
`--write` puts the result into docs/BENCHMARKS.md. How texts repeat: `repeats.py`.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path

if not __package__:  # run as a script: let `benchmarks` be found
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import orjson

from benchmarks.arguments import duration, whole
from benchmarks.cache_rows import (
    BATCH_CLIENTS,
    BATCH_TEXTS,
    CHANGED,
    CHAT_REPEATS,
    CLIENTS,
    COUNTS,
    SEARCH_REPEATS,
    STREAM_CLIENTS,
    Found,
    Pair,
    check_shares,
    section,
)
from benchmarks.load import RowError
from benchmarks.machine import ROOT
from benchmarks.processes import BenchError, Server, end_children_on_sigterm, healthy_server
from benchmarks.redis_replicas import Replicas, is_installed, keys_in_redis, running_replicas
from benchmarks.repeats import stream_with_repeats, with_changes
from benchmarks.replay import Replayed, Requests, replay, requests_of
from benchmarks.samples import replace_section
from benchmarks.texts import Kind, distinct_texts
from host.cores import usable_cores

WITH_CACHE = {"RESULT_CACHE_MB": "64"}
WARM_TEXTS = 128
MAX_KEEPING_S = 20.0
"""How long results may take to get into Redis, after their answers."""
FILLING_CLIENTS = 2
"""Clients of the replica that fills Redis, which is not measured: with more, no core is left for Redis, and what cannot
be written in time is not kept."""


def measure(rounds: int, size: float, seed: str, log: Callable[[str], None]) -> Found:
    """Start the servers, and measure all rows. *size*: how many texts per round, as a multiple of `COUNTS`.

    Raises:
        BenchError: a server does not start, or ends.
    """
    found, lanes = Found(), usable_cores()
    with ExitStack() as stack:
        off = stack.enter_context(healthy_server(lanes=lanes))
        on = stack.enter_context(healthy_server(WITH_CACHE, lanes=lanes))
        replicas = stack.enter_context(running_replicas(WITH_CACHE, lanes=lanes)) if is_installed() else None
        if replicas is None:
            found.skipped = "Redis: not measured, because redis-server is not installed."
            log(found.skipped)
        bench = _Bench(off, on, replicas, found, size)
        bench.warm_up(seed)
        for number in range(rounds):
            log(f"result cache: round {number + 1} of {rounds}")
            bench.round(f"{seed}/{number}", is_on_first=number % 2 == 1)
    return found


class _Bench:
    """Measures rows on running servers."""

    def __init__(self, off: Server, on: Server, replicas: Replicas | None, found: Found, size: float) -> None:
        self._off = off
        self._on = on
        self._replicas = replicas
        self._found = found
        self._counts = {name: max(BATCH_TEXTS, round(count * size)) for name, count in COUNTS.items()}
        self._counts["bulk beside"] = round(COUNTS["bulk beside"] * max(1.0, size))
        self._is_on_first = False

    def warm_up(self, seed: str) -> None:
        """Let each server run each kind of request."""
        servers = [self._off, self._on, *([self._replicas.first, self._replicas.second] if self._replicas else [])]
        for server in servers:
            replay(server, requests_of(_texts("short", WARM_TEXTS, f"{seed}/warm"), clients=CLIENTS))
            replay(server, self._batches(_texts("mixed", WARM_TEXTS, f"{seed}/warm")))

    def round(self, seed: str, *, is_on_first: bool) -> None:
        self._is_on_first = is_on_first
        replicas = self._replicas
        # The first replica, too: what it has in memory of an earlier round, it would not write to Redis again.
        for server in (self._on, *([replicas.first, replicas.second] if replicas else [])):
            if (answer := server.delete("/cache")).status not in {200, 204}:
                raise BenchError(f"DELETE /cache answered {answer.status}: is there a result cache?")
        distinct = self._singles("short", "distinct", f"{seed}/distinct")
        if pair := self._alike("distinct", distinct):
            self._add("repeated", lambda: Pair(pair.off, self._repeated(f"{seed}/repeated")))
            if replicas:
                self._add("redis", lambda: Pair(pair.off, self._from_redis(replicas, f"{seed}/redis")))
        search = stream_with_repeats("short", f"{seed}/search", self._counts["search"], repeats=SEARCH_REPEATS)
        self._alike("search", requests_of(search, clients=STREAM_CLIENTS))
        chat = stream_with_repeats("mixed", f"{seed}/chat", self._counts["chat"], repeats=CHAT_REPEATS)
        self._alike("chat", requests_of(chat, clients=STREAM_CLIENTS))
        self._documents(seed)
        self._add("beside", lambda: self._beside(f"{seed}/beside"))

    def _add(self, name: str, run: Callable[[], Pair]) -> Pair | None:
        """Measure a row, unless it has failed before; check that as many results were known as intended."""
        if name in self._found.aborted:
            return None
        try:
            pair = run()
            check_shares(name, pair)
        except RowError as error:
            self._found.aborted[name] = str(error)
            self._off.raise_if_ended()
            self._on.raise_if_ended()
            return None
        self._found.rounds[name].append(pair)
        return pair

    def _both(self, off: Requests, on: Requests, beside: Requests | None = None) -> Pair:
        if self._is_on_first:
            later = replay(self._on, on, beside)
            return Pair(replay(self._off, off, beside), later)
        return Pair(replay(self._off, off, beside), replay(self._on, on, beside))

    def _repeated(self, seed: str) -> Replayed:
        text = _texts("short", 1, seed)
        replay(self._on, requests_of(text, clients=1))
        return replay(self._on, requests_of(text * self._counts["repeated"], clients=CLIENTS))

    def _alike(self, name: str, requests: Requests) -> Pair | None:
        """Measure a row in which both servers get the same requests."""
        return self._add(name, lambda: self._both(requests, requests))

    def _documents(self, seed: str) -> None:
        short = self._batches(_texts("short", self._counts["ingest-short"], f"{seed}/ingest-short"))
        self._alike("ingest-short", short)
        documents = _texts("mixed", self._counts["ingest"], f"{seed}/ingest")
        new, again = (
            self._batches(some)
            for some in (documents, with_changes(documents, "mixed", f"{seed}/ingest", changed=CHANGED))
        )
        if self._alike("ingest", new):
            self._alike("reindex", again)

    def _beside(self, seed: str) -> Pair:
        """Send distinct texts to one server, and a few known ones again and again to the other, beside bulk work."""
        bulk = self._batches(_texts("mixed", self._counts["bulk beside"], f"{seed}/bulk"))
        known = _texts("short", CLIENTS, f"{seed}/known")
        replay(self._on, requests_of(known, clients=1))
        repeated = (known * (self._counts["hits beside"] // CLIENTS + 1))[: self._counts["hits beside"]]
        return self._both(self._singles("short", "beside", seed), requests_of(repeated, clients=CLIENTS), bulk)

    def _from_redis(self, replicas: Replicas, seed: str) -> Replayed:
        requests = self._singles("short", "redis", seed)
        before = keys_in_redis(replicas.redis_port)
        replay(replicas.first, replace(requests, clients=FILLING_CLIENTS))
        deadline = time.monotonic() + MAX_KEEPING_S
        while keys_in_redis(replicas.redis_port) < before + len(requests.bodies):
            if time.monotonic() > deadline:
                raise RowError("The first replica did not put all results into Redis.")
            time.sleep(0.1)
        return replay(replicas.second, requests)

    def _singles(self, kind: Kind, count: str, seed: str) -> Requests:
        return requests_of(_texts(kind, self._counts[count], seed), clients=CLIENTS)

    def _batches(self, texts: list[str]) -> Requests:
        whole_batches = texts[: len(texts) // BATCH_TEXTS * BATCH_TEXTS]
        return requests_of(whole_batches, batch=BATCH_TEXTS, clients=BATCH_CLIENTS)


def _texts(kind: Kind, count: int, seed: str) -> list[str]:
    return list(islice(distinct_texts(kind, seed), count))


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    end_children_on_sigterm()
    try:
        found = measure(
            options.rounds, options.size, options.seed, lambda line: print(line, file=sys.stderr, flush=True)
        )
    except (BenchError, RowError) as error:
        print(f"result_cache.py: {error}", file=sys.stderr)
        return 1
    command = f"python benchmarks/result_cache.py --rounds {options.rounds} --size {options.size:g}"
    text = section(found, command)
    print(text)
    if options.json:
        options.json.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2))
    if options.write:
        replace_section(ROOT / "docs/BENCHMARKS.md", "result-cache", text)
    return 1 if found.aborted else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="result_cache.py", description="Measure the result cache.")
    parser.add_argument("--rounds", type=whole(), default=5, help="(default: %(default)s)")
    parser.add_argument("--size", type=duration(), default=1.0, help="texts per round, as a multiple (default: 1)")
    parser.add_argument("--seed", default="2025", help="seed of the texts (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="write into docs/BENCHMARKS.md")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number of every round to FILE")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
