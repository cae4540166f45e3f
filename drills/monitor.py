"""Observes a server from outside while it works: memory, counters, open files, and how fast `/health` answers."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks.machine import memory_mb_of
from benchmarks.processes import BenchError, Server

INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True)
class Observation:
    """The state at one moment, in seconds since the start; `tokens` is None if `/metrics` did not answer."""

    at_s: float
    rss_mb: float
    tokens: int | None
    health: int
    health_ms: float


@dataclass(slots=True)
class Monitor:
    """All observations of `monitored`."""

    observations: list[Observation] = field(default_factory=list)

    def tokens_per_s(self, *, skip: float) -> float:
        """Return the tokens of answered texts per second, without the first *skip* (a share) of the time."""
        known = [one for one in self.observations if one.tokens is not None]
        counted = [one for one in known if one.at_s >= skip * known[-1].at_s]
        if len(counted) < 2:
            raise BenchError("`/metrics` did not answer under load.")
        first, last = counted[0], counted[-1]
        return ((last.tokens or 0) - (first.tokens or 0)) / (last.at_s - first.at_s)

    def rss_mb(self, begin: float, end: float) -> float:
        """Return the median of the resident memory in MB between two shares of the observations."""
        first = int(begin * len(self.observations))
        last = max(first + 1, int(end * len(self.observations)))
        return median(one.rss_mb for one in self.observations[first:last])

    @property
    def max_rss_mb(self) -> float:
        return max(one.rss_mb for one in self.observations)


@contextmanager
def monitored(server: Server) -> Iterator[Monitor]:
    """Observe *server* twice a second until the block ends."""
    monitor, is_over, began = Monitor(), threading.Event(), time.perf_counter()

    def observe() -> None:
        while not is_over.wait(INTERVAL_S):
            health = server.get("/health")
            tokens = tokens_answered(server)
            at_s = time.perf_counter() - began
            rss_mb, _ = memory_mb_of(server.process.pid)
            monitor.observations.append(Observation(at_s, rss_mb, tokens, health.status, health.ms))

    thread = threading.Thread(target=observe)
    thread.start()
    try:
        yield monitor
    finally:
        is_over.set()
        thread.join()


def tokens_answered(server: Server) -> int | None:
    """Return the tokens of all texts that the server has answered; None: `/metrics` does not answer."""
    answer = server.get("/metrics")
    return sum(model["tokens"] for model in answer.json["models"].values()) if answer.status == 200 else None


def open_files() -> dict[str, int]:
    """Return how many `sockets` and how many `files` of any other kind this process holds open.

    The service hides its own from other processes, so it must be asked.
    """
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            links.append(str(descriptor.readlink()))
    sockets = sum(link.startswith("socket:") for link in links)
    return {"sockets": sockets, "files": len(links) - sockets}


def connections_of(port: int) -> int:
    """Return how many TCP sockets of the process that listens on *port* are open, the listening ones included."""
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    # The local address and port in hexadecimal, and the inode: 0 once the process has closed the socket.
    return sum(int(row[1].rpartition(":")[2], 16) == port and row[9] != "0" for row in rows)
