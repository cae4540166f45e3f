"""The processes that `connections.py` starts: a hub, as the supervisor, and workers that answer with their number."""

import argparse
import asyncio
import json
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from host.listening_socket import BACKLOG
from serving.connection_dispatcher import ConnectionDispatcher
from serving.connection_receiver import ConnectionReceiver
from serving.worker_connections import WorkerConnections

HOST = "127.0.0.1"
WAYS = ("shared socket", "SO_REUSEPORT", "handed over")
SHARED, REUSE_PORT, HANDED_OVER = WAYS


class Answer(asyncio.Protocol):
    """Answers every request of a kept-alive connection with the number of the worker."""

    def __init__(self, worker: int, on_end: Callable[[], None] = lambda: None) -> None:
        self._answer = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n%3d" % worker
        self._on_end = on_end

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvloop's has no base
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(self._answer * data.count(b"\r\n\r\n"))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._on_end()


async def work(way: str, number: int, inherited: socket.socket) -> None:
    """Serve connections for ever; *inherited* is the listening socket, or the worker's end of its pair."""
    loop = asyncio.get_running_loop()
    if way == HANDED_OVER:
        ConnectionReceiver(
            inherited, make_protocol=lambda connection: Answer(number, connection.report_end), on_retire=lambda: None
        )
    else:
        if way == REUSE_PORT:
            inherited = open_port(inherited.getsockname()[1])
        inherited.setblocking(False)  # noqa: FBT003 - the method has this parameter only
        await loop.create_server(lambda: Answer(number), sock=inherited, backlog=BACKLOG)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


def open_port(port: int, *, is_listening: bool = True) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((HOST, port))
    if is_listening:
        sock.listen(BACKLOG)
    return sock


async def supervise(way: str, workers: int) -> None:
    """Start workers, print the port and the process ids, and end with the standard input."""
    reserved = open_port(0, is_listening=way != REUSE_PORT)  # else it would be in the group, and get connections
    dispatcher = ConnectionDispatcher(reserved) if way == HANDED_OVER else None
    processes = []
    watching = []
    for number in range(1, workers + 1):
        pair = dispatcher.add_worker(number) if dispatcher else None
        inherited = pair.worker_end if pair else reserved
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.connection_processes", way, str(number), str(inherited.fileno())),
            pass_fds=(inherited.fileno(),),
            stdout=asyncio.subprocess.PIPE,
        )
        await cast("asyncio.StreamReader", process.stdout).readline()
        processes.append(process)
        if dispatcher and pair:
            watching.append(asyncio.create_task(_forget_at_end(process, dispatcher, pair)))
    print(json.dumps({"port": reserved.getsockname()[1], "workers": [process.pid for process in processes]}))
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for process in processes:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _forget_at_end(
    process: asyncio.subprocess.Process, dispatcher: ConnectionDispatcher, pair: WorkerConnections
) -> None:
    await process.wait()
    dispatcher.remove_worker(pair)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("number", type=int, help="of the worker, or of workers")
    parser.add_argument("descriptor", type=int, nargs="?", help="the inherited socket of a worker")
    given = parser.parse_args()
    if given.descriptor is None:
        asyncio.run(supervise(given.way, given.number))
    else:
        import uvloop  # noqa: PLC0415 - as the service's workers do

        uvloop.run(work(given.way, given.number, socket.socket(fileno=given.descriptor)))


if __name__ == "__main__":
    main()
