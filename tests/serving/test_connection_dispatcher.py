"""How connections reach the workers: dispatcher and receivers in one event loop, with real sockets."""

import asyncio
import errno
import os
import resource
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from serving.connection_dispatcher import ConnectionDispatcher
from serving.connection_receiver import ConnectionReceiver, HandedOver
from serving.worker_connections import WorkerConnections

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no workers")

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Echo(asyncio.Protocol):
    """Answers each byte with the name of its worker; that byte is the whole request."""

    def __init__(self, name: bytes, connection: HandedOver) -> None:
        self.name = name
        self.connection = connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(self.name * len(data))

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.connection.report_end()


class Worker:
    """A worker without a process: it has its own descriptor of its end of the pair, as a process has."""

    def __init__(self, dispatcher: ConnectionDispatcher, name: bytes) -> None:
        self.name = name
        self.known: WorkerConnections = dispatcher.add_worker(ord(name))
        self.end = self.known.worker_end.dup()
        self.echoes: list[Echo] = []
        self.receiver: ConnectionReceiver | None = None

    def take(self) -> None:
        self.receiver = ConnectionReceiver(self.end, make_protocol=self.serve, on_retire=lambda: None)

    def serve(self, connection: HandedOver) -> Echo:
        self.echoes.append(Echo(self.name, connection))
        return self.echoes[-1]

    def hang(self) -> None:
        asyncio.get_running_loop().remove_reader(self.end)

    def die(self) -> None:
        if self.end.fileno() < 0:
            return
        self.hang()
        for echo in self.echoes:
            echo.transport.abort()
        self.end.close()
        self.known.remove()


class Service:
    """A dispatcher, its workers, and their clients."""

    def __init__(self, **options: object) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self.port = self.listening.getsockname()[1]
        self.dispatcher = ConnectionDispatcher(self.listening, **options)  # type: ignore[arg-type]
        self.workers: list[Worker] = []
        self.clients: list[Client] = []

    def add(self, name: bytes, *, takes: bool = True) -> Worker:
        worker = Worker(self.dispatcher, name)
        self.workers.append(worker)
        if takes:
            worker.take()
        return worker

    async def connect(self, count: int = 1) -> list[Client]:
        clients = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", self.port) for _ in range(count)))
        self.clients.extend(clients)
        return list(clients)

    def close(self) -> None:
        for _, writer in self.clients:
            writer.transport.abort()
        for worker in self.workers:
            worker.die()
        self.dispatcher.close()


@asynccontextmanager
async def service(**options: object) -> AsyncIterator[Service]:
    running = Service(**options)
    try:
        yield running
    finally:
        running.close()
        await asyncio.sleep(0)


async def ask(client: Client) -> bytes:
    reader, writer = client
    writer.write(b"?")
    return await reader.readexactly(1)


async def ask_all(clients: list[Client]) -> Counter[bytes]:
    return Counter(await asyncio.gather(*map(ask, clients)))


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


async def until(is_so: Callable[[], bool]) -> None:
    """Let the event loop turn until *is_so*; the time-out of the test ends it otherwise."""
    while not is_so():  # noqa: ASYNC110 - nothing tells when the state of another task has changed
        await asyncio.sleep(0)


@pytest.mark.parametrize("count", [4, 16, 400])
async def test_connections_are_spread_evenly(count: int) -> None:
    async with service() as here:
        here.add(b"a")
        here.add(b"b")
        assert await ask_all(await here.connect(count)) == {b"a": count // 2, b"b": count // 2}


async def test_connections_one_after_another_are_spread_evenly() -> None:
    """Also if each ends before the next one begins: the worker that has waited longest is next."""
    async with service() as here:
        workers = [here.add(b"a"), here.add(b"b")]
        found: Counter[bytes] = Counter()
        for _ in range(10):
            [client] = await here.connect()
            found[await ask(client)] += 1
            client[1].transport.abort()
            await until(lambda: not any(worker.known.open for worker in workers))
        assert found == {b"a": 5, b"b": 5}


async def test_worker_whose_connections_have_ended_gets_the_next_ones() -> None:
    async with service() as here:
        workers = {b"a": here.add(b"a"), b"b": here.add(b"b")}
        clients = await here.connect(8)
        for client in clients:
            if await ask(client) == b"a":
                client[1].transport.abort()
        await until(lambda: not workers[b"a"].known.open)
        assert await ask_all(await here.connect(4)) == {b"a": 4}


async def test_connection_waits_for_the_first_worker() -> None:
    async with service() as here:
        late = here.add(b"a", takes=False)
        clients = await here.connect(3)
        late.take()
        assert await ask_all(clients) == {b"a": 3}


async def test_ready_workers_go_before_those_that_start() -> None:
    async with service() as here:
        here.add(b"a")
        here.add(b"b").known.is_ready = True
        assert await ask_all(await here.connect(4)) == {b"b": 4}


async def test_connections_that_a_worker_has_not_taken_survive_its_end() -> None:
    async with service(recall_s=60) as here:
        dying, other = here.add(b"a"), here.add(b"b")
        await ask_all(await here.connect(2))  # both take
        dying.hang()
        clients = await here.connect(6)
        await until(lambda: len(dying.known.open) + len(other.known.open) == 8)
        dying.die()
        assert await ask_all(clients) == {b"b": 6}


async def test_connections_of_a_worker_that_hangs_go_to_others_until_it_takes_again() -> None:
    async with service(recall_s=0.05) as here:
        hanging, other = here.add(b"a"), here.add(b"b")
        await ask_all(await here.connect(2))
        hanging.hang()
        assert await ask_all(await here.connect(6)) == {b"b": 6}
        assert await ask_all(await here.connect(2)) == {b"b": 2}
        assert (len(hanging.known.open), len(other.known.open)) == (1, 9)
        hanging.take()
        await until(lambda: hanging.known.takes)
        assert await ask_all(await here.connect(8)) == {b"a": 8}


async def test_connections_wait_while_the_only_worker_hangs() -> None:
    async with service(recall_s=0.01) as here:
        hanging = here.add(b"a")
        await ask_all(await here.connect(1))
        hanging.hang()
        clients = await here.connect(5)
        first_timer = hanging.known.recall_timer
        await until(lambda: hanging.known.recall_timer is not first_timer)  # it was asked, and does not answer
        hanging.take()
        assert await ask_all(clients) == {b"a": 5}


async def test_more_connections_than_a_pair_can_hold_wait_for_room() -> None:
    async with service(recall_s=60) as here:
        slow = here.add(b"a")
        await ask_all(await here.connect(1))
        slow.known.channel.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        slow.hang()
        clients = await here.connect(200)
        await until(lambda: slow.known.is_full)
        slow.take()
        assert await ask_all(clients) == {b"a": 200}


async def test_retiring_worker_returns_connections_and_no_client_notices() -> None:
    async with service() as here:
        old, new = here.add(b"a"), here.add(b"b")
        clients = await here.connect(6)
        await ask_all(clients)
        old.known.retire()
        await until(lambda: old.receiver is not None and old.receiver.is_retiring)
        for echo in old.echoes:
            assert echo.connection.is_wanted_back
            assert echo.connection.give_back(echo.transport.get_extra_info("socket").fileno(), is_kept=True)
            echo.transport.abort()
        assert await ask_all(clients) == {b"b": 6}
        assert sum(echo.connection.is_kept for echo in new.echoes) == 3
        assert not old.known.open
        assert await ask_all(await here.connect(2)) == {b"b": 2}


async def test_address_has_its_limit_in_all_workers_before_one_gets_more() -> None:
    async with service(address_of=lambda peer: peer[1] % 1) as here:
        here.dispatcher.max_per_address = 2
        full, other = here.add(b"a"), here.add(b"b")
        await ask_all(await here.connect(4))
        for number in list(other.known.open)[:1]:
            other.known.discard(number)
            other.known.add(10**6, "another address")
            other.known.add(10**6 + 1, "another address")
        assert len(full.known.open) < len(other.known.open)
        assert await ask_all(await here.connect(1)) == {b"b": 1}


async def test_no_open_files_left_delays_connections_and_loses_none() -> None:
    async with service(retry_s=0.05) as here:
        here.add(b"a")
        await ask_all(await here.connect(1))
        client = socket.socket()
        client.setblocking(False)  # noqa: FBT003 - as the standard library's own
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        with capture_logs() as logs:
            resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, limits[1]))
            try:
                await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", here.port))
                await until(lambda: any(line["event"] == "accept_failed" for line in logs))
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        here.clients.append(await asyncio.open_connection(sock=client))
        assert await ask(here.clients[-1]) == b"a"
        assert logs[0]["error"] == os.strerror(errno.EMFILE)


async def test_thousands_of_connections_leave_no_file_open() -> None:
    async with service() as here:
        workers = [here.add(b"a"), here.add(b"b")]

        async def round_of(count: int) -> int:
            clients = await here.connect(count)
            await ask_all(clients)
            for _, writer in clients:
                writer.transport.abort()
            here.clients.clear()
            await until(lambda: not any(worker.known.open for worker in workers))
            return open_files()

        await round_of(1)
        before = await round_of(1)
        for _ in range(10):
            after = await round_of(200)
        assert after == before
