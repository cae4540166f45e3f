"""A server looked at from outside while it works: its memory, its counters, and how fast it answers."""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.cpu import memory_mb_of
from benchmarks.processes import BenchError, Server

EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen at one moment, in seconds since the watch began; `tokens` is None where no answer came."""

    at_s: float
    rss_mb: float
    tokens: int | None
    health: int
    health_ms: float


@dataclass(slots=True)
class Watch:
    """All that was seen, by `watched`."""

    looks: list[Look] = field(default_factory=list)

    def tokens_per_s(self, *, skip: float) -> float:
        """Tokens of answered texts a second, without the first *skip* (a share) of the time."""
        looks = [look for look in self.looks if look.tokens is not None]
        counted = [look for look in looks if look.at_s >= skip * looks[-1].at_s]
        if len(counted) < 2:
            raise BenchError("The server did not tell its metrics while it was under load.")
        first, last = counted[0], counted[-1]
        return ((last.tokens or 0) - (first.tokens or 0)) / (last.at_s - first.at_s)

    def rss_mb(self, begin: float, end: float) -> float:
        """The median of the resident memory between two shares of the time."""
        length = self.looks[-1].at_s
        return median(look.rss_mb for look in self.looks if begin * length <= look.at_s <= end * length)

    @property
    def most_rss_mb(self) -> float:
        return max(look.rss_mb for look in self.looks)


@contextmanager
def watched(server: Server) -> Iterator[Watch]:
    """Look at *server* twice a second until the block ends."""
    watch, is_over, began = Watch(), threading.Event(), time.perf_counter()

    def look_on() -> None:
        while not is_over.wait(EVERY_S):
            health, _, health_ms = get(server, "/health")
            tokens = tokens_answered(server)
            at_s = time.perf_counter() - began
            watch.looks.append(Look(at_s, memory_mb_of(server.process.pid)[0], tokens, health, health_ms))

    thread = threading.Thread(target=look_on)
    thread.start()
    try:
        yield watch
    finally:
        is_over.set()
        thread.join()


def tokens_answered(server: Server) -> int | None:
    """Tokens of all texts that the server has answered so far; None: it does not tell."""
    status, metrics, _ = get(server, "/metrics")
    return sum(used["tokens"] for used in metrics["models"].values()) if status == http.client.OK else None


def get(server: Server, path: str) -> tuple[int, Any, float]:
    """The status of a GET, its JSON and its milliseconds; status 0: there was no answer."""
    return ask(server, "GET", path)


def post(server: Server, path: str, body: object) -> tuple[int, Any, float]:
    """The same of a POST."""
    return ask(server, "POST", path, json.dumps(body))


def ask(server: Server, method: str, path: str, body: str | None = None) -> tuple[int, Any, float]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    began = time.perf_counter()
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read()), (time.perf_counter() - began) * 1e3
    except (OSError, http.client.HTTPException):
        return 0, None, (time.perf_counter() - began) * 1e3
    finally:
        connection.close()
