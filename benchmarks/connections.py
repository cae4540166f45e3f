"""Compares three ways for connections to reach worker processes. Prints Markdown tables; takes about a minute.

- *shared socket*: all workers accept from one listening socket.
- *SO_REUSEPORT*: each worker has a listening socket of its own on the same port; the system chooses by a hash.
- *handed over*: the supervisor accepts, and hands each connection to the worker that has fewest, as the service does.

Shares: keep-alive connections per worker, lowest and highest of all rounds. CPU: of hub and workers, per connection
that is opened, asked once and closed, minus the cost of that request on an open connection.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, cast

from benchmarks.connection_processes import HOST, WAYS
from benchmarks.machine import cpu_s_of, describe_run
from benchmarks.processes import spawned
from benchmarks.tables import markdown

REQUEST = b"GET / HTTP/1.1\r\nHost: me\r\n\r\n"
ANSWER_BYTES = len(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n  1")
COUNTS = {4: 30, 16: 30, 400: 8}
"""Connections per round, and rounds."""
FAULT_CONNECTIONS = 40
PATIENCE_S = 3.0
CPU_CONNECTIONS = 4000

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True)
class Workers:
    """Running processes: the hub and its workers."""

    port: int
    hub: int
    pids: list[int]

    def cpu_s(self) -> float:
        return sum(cpu_s_of(pid) for pid in (self.hub, *self.pids))

    async def connect(self) -> Connection:
        return await asyncio.open_connection(HOST, self.port)


@contextmanager
def running(way: str, workers: int) -> Iterator[Workers]:
    arguments = ["-m", "benchmarks.connection_processes", way, str(workers)]
    with spawned(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as hub:
        started = json.loads(cast("IO[str]", hub.stdout).readline())
        try:
            yield Workers(started["port"], hub.pid, started["workers"])
        finally:
            hub.communicate(timeout=10)  # closes its input, and so ends it


async def ask(connection: Connection) -> int:
    """Return the number of the worker that answers."""
    reader, writer = connection
    writer.write(REQUEST)
    return int((await reader.readexactly(ANSWER_BYTES))[-3:])


async def close(connections: list[Connection]) -> None:
    for _, writer in connections:
        writer.close()
    await asyncio.gather(*(writer.wait_closed() for _, writer in connections), return_exceptions=True)


async def shares(workers: Workers, count: int, *, is_at_once: bool) -> Counter[int]:
    """Open *count* connections, and return how many each worker has."""
    if is_at_once:
        connections = await asyncio.gather(*(workers.connect() for _ in range(count)))
        answered = Counter(await asyncio.gather(*map(ask, connections)))
    else:
        connections, answered = [], Counter()
        for _ in range(count):
            connections.append(await workers.connect())
            answered[await ask(connections[-1])] += 1
    await close(connections)
    await asyncio.sleep(0.02)  # the ends are known everywhere
    return answered


async def share_cells(workers: Workers) -> list[str]:
    cells = []
    for is_at_once in (True, False):
        for count, rounds in COUNTS.items():
            least, most = [], []
            for _ in range(rounds):
                found = await shares(workers, count, is_at_once=is_at_once)
                parts = [found[number] for number in range(1, len(workers.pids) + 1)]
                least.append(min(parts))
                most.append(max(parts))
            cells.append(f"{min(least)} to {max(most)} ({statistics.median(most):.0f})")
    return cells


async def cpu_cell(workers: Workers) -> str:
    """Return the CPU microseconds of a connection, without its request."""
    before = workers.cpu_s()
    for _ in range(CPU_CONNECTIONS // 8):
        connections = await asyncio.gather(*(workers.connect() for _ in range(8)))
        await asyncio.gather(*map(ask, connections))
        await close(connections)
    opened = workers.cpu_s() - before
    connections = await asyncio.gather(*(workers.connect() for _ in range(8)))
    before = workers.cpu_s()
    for _ in range(CPU_CONNECTIONS // 8):
        await asyncio.gather(*map(ask, connections))
    asked = workers.cpu_s() - before
    await close(connections)
    return f"{(opened - asked) / CPU_CONNECTIONS * 1e6:.0f}"


async def _is_answered(workers: Workers) -> bool:
    try:
        async with asyncio.timeout(PATIENCE_S):
            await ask(await workers.connect())
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return False
    return True


async def fault_cell(way: str, count: int, *, is_killed: bool) -> str:
    """Return how many new connections are answered while one worker hangs, and is killed after a while or not."""
    with running(way, count) as workers:
        os.kill(workers.pids[0], signal.SIGSTOP)
        answers = [asyncio.create_task(_is_answered(workers)) for _ in range(FAULT_CONNECTIONS)]
        await asyncio.sleep(0.3)
        if is_killed:
            os.kill(workers.pids[0], signal.SIGKILL)
        answered = sum(await asyncio.gather(*answers))
        if not is_killed:
            os.kill(workers.pids[0], signal.SIGCONT)
    return f"{answered} of {FAULT_CONNECTIONS}"


async def measure(count: int) -> tuple[list[list[str]], list[list[str]]]:
    share_lines, other_lines = [], []
    for way in WAYS:
        with running(way, count) as workers:
            share_lines.append([way, *await share_cells(workers)])
            cpu = await cpu_cell(workers)
        hung = await fault_cell(way, count, is_killed=False)
        killed = await fault_cell(way, count, is_killed=True)
        other_lines.append([way, cpu, hung, killed])
        print(f"{way}: done", file=sys.stderr)
    return share_lines, other_lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    share_lines, other_lines = asyncio.run(measure(given.workers))
    print(describe_run(f"python -m benchmarks.connections --workers {given.workers}"), end="\n\n")
    names = [f"{count} {how}" for how in ("at once", "one by one") for count in COUNTS]
    print(markdown(["Connections per worker (median of the largest)", *names], share_lines), end="\n\n")
    hangs, killed = "Answered while one worker hangs", "Answered if the hung worker is killed after 0.3 s"
    print(markdown(["Way", "CPU µs per connection", hangs, killed], other_lines))


if __name__ == "__main__":
    main()
