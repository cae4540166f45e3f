"""CPU of the event loop's thread per request, of this checkout and of another one, alternately.

Run `python benchmarks/main_thread.py OTHER`, where OTHER is a folder with another revision. All HTTP, JSON and
scheduling of one process happens on this thread, so its CPU per request is the limit on the requests per second of one
process, however many cores it has: 1,000,000 / microseconds. Only ratios within a round count, as in `beside.py`.
"""

import argparse
import json
import selectors
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import cast

if not __package__:  # run as a script: let `benchmarks` be found
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.connections import content_length
from benchmarks.machine import ROOT, describe_run, thread_s
from benchmarks.processes import BenchError, Server, end_children_on_sigterm, healthy_server
from host.cores import usable_cores

WARM_S, MAX_WARM_S = 0.5, 15.0
"""The load runs for this long, and until as many answers as clients have come, before it is measured."""
RECEIVE_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Row:
    """Requests of one kind: how many clients send them, and to which server.

    Attributes:
        title: what is printed.
        path: of the requests.
        texts: per request; 0: a GET without a body.
        clients: connections, each with one request at a time.
        server: the key in `SETTINGS` of the server.
        status: the status whose share is printed.
    """

    title: str
    path: str
    texts: int
    clients: int
    server: str = "plain"
    status: int = 200


SETTINGS = {"plain": {}, "full": {"MAX_QUEUE_SECONDS": "0.1"}}
"""The servers. The queue of `full` has room for a few requests, so that most of many clients' are rejected."""
ROWS = (
    Row("one short text, 16 clients", "/embed", 1, 16),
    Row("one short text, 1 client", "/embed", 1, 1),
    Row("batch of 32 short texts, 2 clients", "/embed/batch", 32, 2),
    Row("OpenAI, one short text, 16 clients", "/v1/embeddings", 1, 16),
    Row("/tokenize, one short text, 16 clients", "/tokenize", 1, 16),
    Row("/health, 16 clients", "/health", 0, 16),
    Row("/health/live, 16 clients", "/health/live", 0, 16),
    Row("rejected by overload, 400 clients", "/embed", 1, 400, "full", 503),
)


def main() -> int:
    """Print a line per row, and return the exit code."""
    options = _parse_options()
    end_children_on_sigterm()
    checkouts = [ROOT, *([options.other] if options.other else [])]
    print(f"{describe_run('python benchmarks/main_thread.py')}; other: {options.other}", flush=True)
    print(f"{'row':<44}{'us per request':>15}{'other':>8}{'ratio':>8}{'status':>16}", flush=True)
    try:
        with ExitStack() as stack:
            servers = {
                name: [
                    stack.enter_context(healthy_server(settings, lanes=usable_cores(), checkout=path))
                    for path in checkouts
                ]
                for name, settings in SETTINGS.items()
                if any(ROWS[number - 1].server == name for number in options.rows)
            }
            for number in options.rows:
                row = ROWS[number - 1]
                print(f"{number} {_line(row, servers[row.server], options)}", flush=True)
    except BenchError as error:
        print(f"main_thread.py: {error}", file=sys.stderr)
        return 1
    return 0


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="main_thread.py", description="CPU of the event loop's thread per request.")
    parser.add_argument("other", type=Path, nargs="?", help="a checkout of another revision (default: none)")
    parser.add_argument(
        "--rows", type=lambda text: [int(row) for row in text.split(",")], default=range(1, len(ROWS) + 1)
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    return parser.parse_args()


def _line(row: Row, servers: list[Server], options: argparse.Namespace) -> str:
    """Return the medians of the servers, the median of the ratios within a round, and the share of the status."""
    samples: list[list[tuple[float, float]]] = [[] for _ in servers]
    for number in range(options.rounds):
        for side in range(len(servers))[:: 1 if number % 2 == 0 else -1]:
            label = f"{ROWS.index(row) + 1} {number}"
            samples[side].append(_sample(row, servers[side], label, options.seconds))
    microseconds = [[us for us, _ in of_side] for of_side in samples]
    line = f"{row.title:<42}{median(microseconds[0]):>15.0f}"
    if len(servers) > 1:
        ratios = [ours / theirs for ours, theirs in zip(*microseconds, strict=True)]
        line += f"{median(microseconds[1]):>8.0f}{median(ratios):>8.2f}"
    share = min(share for of_side in samples for _, share in of_side)
    return f"{line}{share:>11.0%} {row.status}"


def _sample(row: Row, server: Server, label: str, seconds: float) -> tuple[float, float]:
    """Return the thread's microseconds per answer, and the share of the answers with the row's status."""
    requests = requests_of(row, label)
    with ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(row.clients)
        ]
        selector = stack.enter_context(selectors.DefaultSelector())
        for connection in sockets:
            connection.sendall(next(requests))
            selector.register(connection, selectors.EVENT_READ, bytearray())
        answered, ends_s = 0, time.perf_counter() + MAX_WARM_S
        while answered < row.clients and time.perf_counter() < ends_s:
            answered += len(_exchange(selector, requests, WARM_S))
        began_s = thread_s(server.process.pid)
        statuses = _exchange(selector, requests, seconds)
        used_s = thread_s(server.process.pid) - began_s
    if not statuses:
        raise BenchError(f"No answer in {seconds} s: {row.title}")
    return used_s * 1e6 / len(statuses), statuses.count(row.status) / len(statuses)


def requests_of(row: Row, label: str) -> Iterator[bytes]:
    """Yield requests without end: no text twice, and none of another *label*'s."""
    for number in count():
        texts = [f"How do I reset password {label} {number} {place}?" for place in range(row.texts)]
        content = {
            "/embed": {"text": texts and texts[0]},
            "/v1/embeddings": {"input": texts, "model": "sentence-transformers/all-MiniLM-L6-v2"},
        }.get(row.path, {"texts": texts})
        body = json.dumps(content).encode() if texts else b""
        head = f"{'POST' if texts else 'GET'} {row.path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        if texts:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        yield head.encode() + b"\r\n" + body


def _exchange(selector: selectors.BaseSelector, requests: Iterator[bytes], seconds: float) -> list[int]:
    """Send a request on each connection whenever the last one is answered; return the statuses of the answers."""
    statuses: list[int] = []
    ends_s = time.perf_counter() + seconds
    while (left_s := ends_s - time.perf_counter()) > 0:
        for key, _ in selector.select(left_s):
            connection, received = cast("socket.socket", key.fileobj), key.data
            if not (piece := connection.recv(RECEIVE_BYTES)):
                raise BenchError("The server closed a connection.")
            received += piece
            end = received.find(b"\r\n\r\n")
            if end >= 0 and len(received) >= end + 4 + content_length(bytes(received[: end + 2])):
                statuses.append(int(received[9:12]))
                received.clear()
                connection.sendall(next(requests))
    return statuses


if __name__ == "__main__":
    sys.exit(main())
