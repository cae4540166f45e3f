"""Sends given requests once, in their order, from several clients: two servers get exactly the same stream.

`load.py` sends for a given time, so that a faster server gets more of a stream, and another share of its repeats.
"""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.connections import Client, Connections, RefusedError
from benchmarks.formats import Target
from benchmarks.load import RowError
from benchmarks.machine import cpu_s_of_all, cpu_s_of_tree, thread_s
from benchmarks.processes import Server
from benchmarks.tables import percentile

SILENCE_S = 60.0
"""How long no answer may come."""
X_CACHE = re.compile(rb"hit=(\d+), miss=(\d+), coalesced=(\d+)")


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests of *texts* texts each, sent by *clients* that wait for their answers."""

    bodies: Sequence[bytes]
    clients: int
    texts: int = 1


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a server did with some requests.

    Attributes:
        cpu_ms: of the server's process and its children, per text.
        thread_ms: of the thread of its event loop, per request.
        hits, misses, coalesced: shares of the texts, by the header `X-Cache`; all 0 without it.
        load_core_share, others_core_share: CPU of this process, and of processes outside, as a share of one core.
    """

    texts_per_s: float
    cpu_ms: float
    thread_ms: float
    p50_ms: float
    p99_ms: float
    hits: float
    misses: float
    coalesced: float
    load_core_share: float
    others_core_share: float


def requests_of(texts: Sequence[str], *, batch: int = 1, clients: int) -> Requests:
    """Return requests to `/embed` or, with more than one text each, to `/embed/batch`."""
    target = Target(0)
    parts = (texts[start : start + batch] for start in range(0, len(texts), batch))
    return Requests([target.request(part) for part in parts], clients, batch)


def replay(server: Server, requests: Requests, beside: Requests | None = None) -> Replayed:
    """Send all *requests* and measure that; meanwhile, send those of *beside*, too.

    Raises:
        RowError: an answer was not a 200 or did not come, or *beside* ended first.
    """
    try:
        return _Replay(server, requests, beside).run()
    except (RefusedError, OSError) as error:
        raise RowError(f"aborted, not every answer was a 200: {error}") from None


class _Replay:
    """Owns the connections of one measurement."""

    def __init__(self, server: Server, requests: Requests, beside: Requests | None) -> None:
        self._server = server
        self._groups = [requests, *([beside] if beside else [])]
        self._waiting: list[Iterator[bytes]] = [iter(group.bodies) for group in self._groups]
        self._connections = Connections(Target(server.port))
        self._latencies_ms: list[float] = []
        self._cached = [0, 0, 0]

    def run(self) -> Replayed:
        requests = self._groups[0]
        streams = [n for n, group in enumerate(self._groups) for _ in range(group.clients)]
        try:
            clients = [self._connections.open(n) for n in streams]
            before = self._clocks()
            for client in clients:
                self._send_next(client)
            while len(self._latencies_ms) < len(requests.bodies):
                self._exchange()
            took = [now - then for now, then in zip(self._clocks(), before, strict=True)]
            while self._connections:
                self._exchange()
        finally:
            self._connections.close_all()
        return self._result(requests, took)

    def _clocks(self) -> tuple[float, ...]:
        pid = self._server.process.pid
        return time.perf_counter(), cpu_s_of_tree(pid), thread_s(pid), time.process_time(), cpu_s_of_all()

    def _result(self, requests: Requests, took: list[float]) -> Replayed:
        seconds, server_s, main_s, own_s, all_s = took
        texts = len(requests.bodies) * requests.texts
        hits, misses, coalesced = (count / texts for count in self._cached)
        return Replayed(
            texts_per_s=texts / seconds,
            cpu_ms=server_s * 1e3 / texts,
            thread_ms=main_s * 1e3 / len(requests.bodies),
            p50_ms=percentile(self._latencies_ms, 0.5),
            p99_ms=percentile(self._latencies_ms, 0.99),
            hits=hits,
            misses=misses,
            coalesced=coalesced,
            load_core_share=own_s / seconds,
            others_core_share=max(0.0, all_s - server_s - own_s) / seconds,
        )

    def _exchange(self) -> None:
        if not (ready := self._connections.wait(SILENCE_S)):
            raise RefusedError(f"No answer came for {SILENCE_S:.0f} s.")
        for client, events in ready:
            if self._connections.progress(client, events):
                self._count(client)
                self._send_next(self._connections.usable(client))

    def _send_next(self, client: Client) -> None:
        is_over = len(self._latencies_ms) == len(self._groups[0].bodies)
        if is_over or (request := next(self._waiting[client.stream], None)) is None:
            if client.stream and not is_over:
                raise RowError("The requests beside those that are measured ended first: more of them are needed.")
            self._connections.close(client)
            return
        self._connections.send(client, 0, request)

    def _count(self, client: Client) -> None:
        if client.stream == 0:
            self._latencies_ms.append((time.perf_counter() - client.sent_at) * 1e3)
            if found := X_CACHE.search(client.header(b"x-cache")):
                self._cached = [count + int(more) for count, more in zip(self._cached, found.groups(), strict=True)]
