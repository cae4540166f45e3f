"""Connections that were handed over are served as accepted ones, and change their worker without their clients' notice.

A dispatcher and the servers of its workers run in one event loop, with the sockets that processes would have.
"""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import pytest
import uvloop
from litestar import Litestar

from serving.connection_dispatcher import ConnectionDispatcher
from serving.connection_limits import ConnectionLimits
from serving.connection_pool import ConnectionPool
from serving.uvicorn_server import DrainingServer
from serving.worker_protocol import WorkerProtocol

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no workers"),
    pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"]),
]

Run = Callable[[Coroutine[Any, Any, None]], None]
Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]

LIMITS = ConnectionLimits(
    header_timeout_s=60,
    body_timeout_s=60,
    keep_alive_timeout_s=60,
    max_header_bytes=1000,
    max_bodies_bytes=1000,
    max_connections=100,
)
GET = b"GET /%s HTTP/1.1\r\nHost: me\r\n\r\n"


class Worker:
    """A worker's server: it answers with its name and what the app sees of the client."""

    def __init__(self, dispatcher: ConnectionDispatcher, name: str, **limits: Any) -> None:
        self.name = name
        self.known = dispatcher.add_worker(1)
        self.held = asyncio.Event()
        self.release = asyncio.Event()
        self.pool = ConnectionPool(
            ConnectionLimits(**{**{field: getattr(LIMITS, field) for field in LIMITS.__slots__}, **limits}),
            count_failure=lambda _: None,
            reject_early=lambda *_: None,
        )

        async def app(scope: Any, receive: Any, send: Any) -> None:  # uvicorn does not recognise a method as ASGI 3
            await self.answer(scope, receive, send)

        self.server = DrainingServer(
            cast("Litestar", app),
            make_protocol=partial(WorkerProtocol, pool=self.pool),
            keep_alive_s=60,
            drain_s=4,
            on_stop=lambda: setattr(self.pool, "is_draining", True),
            connections_socket=self.known.worker_end.dup(),
        )
        self.running = asyncio.create_task(self.server.serve(sockets=[]))

    async def answer(
        self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        if scope["type"] == "lifespan":
            for _ in range(2):
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
            return
        await receive()
        if scope["path"] == "/held":
            self.held.set()
            await self.release.wait()
        body = f"{self.name} {scope['client'][1]}".encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})

    async def has_ended(self) -> None:
        await asyncio.wait_for(self.running, 20)
        self.known.remove()

    @property
    def sockets(self) -> list[socket.socket]:
        return [
            cast("WorkerProtocol", connection).transport.get_extra_info("socket")
            for connection in self.server.server_state.connections
        ]


class Service:
    def __init__(self, **options: Any) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self.dispatcher = ConnectionDispatcher(self.listening, **options)
        self.workers: list[Worker] = []
        self.clients: list[Client] = []

    def add(self, name: str, **limits: Any) -> Worker:
        self.workers.append(Worker(self.dispatcher, name, **limits))
        return self.workers[-1]

    async def connect(self) -> Client:
        self.clients.append(await asyncio.open_connection(*self.listening.getsockname()))
        return self.clients[-1]


@asynccontextmanager
async def service(**options: Any) -> AsyncIterator[Service]:
    here = Service(**options)
    try:
        yield here
    finally:
        for _, writer in here.clients:
            writer.transport.abort()
        for worker in here.workers:
            worker.release.set()
            worker.server.should_exit = True
            await asyncio.wait_for(worker.running, 20)
        here.dispatcher.close()
        await asyncio.sleep(0)


async def answer_of(client: Client) -> tuple[str, int, bool]:
    """Return who answers, the client's port as the app sees it, and whether the connection stays open."""
    reader, _ = client
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    assert head.startswith(b"http/1.1 200")
    length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
    name, port = (await reader.readexactly(length)).decode().split()
    return name, int(port), b"connection: close" not in head


async def ask(client: Client, path: bytes = b"") -> tuple[str, int, bool]:
    client[1].write(GET % path)
    return await answer_of(client)


async def until(is_so: Callable[[], bool]) -> None:
    """Let the event loop turn until *is_so*; the time-out of the test ends it otherwise."""
    while not is_so():  # noqa: ASYNC110 - nothing tells when the state of another task has changed
        await asyncio.sleep(0)


def test_connection_is_served_as_one_of_the_server_s_own(run: Run) -> None:
    """The app sees the client's address, small answers are not delayed, the pool counts, and the end is noticed."""

    async def scenario() -> None:
        async with service() as here:
            worker = here.add("a")
            client = await here.connect()
            assert await ask(client) == ("a", client[1].get_extra_info("sockname")[1], True)
            [served] = worker.sockets
            assert served.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert worker.pool.counts().open == 1
            client[1].transport.abort()
            await until(lambda: not worker.known.open)
            assert worker.pool.counts().open == 0

    run(scenario())


def test_idle_connections_change_to_another_worker_when_theirs_retires(run: Run) -> None:
    """Those that are kept alive between two requests, and those on which no request has begun yet."""

    async def scenario() -> None:
        async with service() as here:
            old = here.add("old")
            kept, fresh = await here.connect(), await here.connect()
            assert (await ask(kept))[0] == "old"
            await until(lambda: old.pool.counts().open == 2)
            here.add("new")
            old.known.retire()
            await until(lambda: not old.known.open)
            for client in (kept, fresh):
                assert await ask(client) == ("new", client[1].get_extra_info("sockname")[1], True)
            await old.has_ended()

    run(scenario())


def test_request_in_progress_is_answered_before_its_connection_changes(run: Run) -> None:
    async def scenario() -> None:
        async with service() as here:
            old = here.add("old")
            client = await here.connect()
            client[1].write(GET % b"held" + GET % b"next")  # the second one waits behind the first
            await old.held.wait()
            new = here.add("new")
            old.known.retire()
            old.release.set()
            assert [(await answer_of(client))[0] for _ in range(2)] == ["old", "old"]
            await old.has_ended()
            assert (await ask(client))[0] == "new"
            assert new.pool.counts().open == 1

    run(scenario())


def test_half_a_request_is_completed_where_it_began(run: Run) -> None:
    async def scenario() -> None:
        async with service() as here:
            old = here.add("old")
            client = await here.connect()
            request = GET % b""
            client[1].write(request[:10])
            await until(lambda: old.pool.counts().receiving == 1)
            here.add("new")
            old.known.retire()
            assert (await ask(await here.connect()))[0] == "new"
            client[1].write(request[10:])
            assert (await answer_of(client))[0] == "old"
            assert (await ask(client))[0] == "new"
            await old.has_ended()

    run(scenario())


def test_no_request_is_lost_while_workers_are_replaced_under_load(run: Run) -> None:
    async def scenario() -> None:
        async with service() as here:
            here.add("0")
            here.add("1")
            asked: dict[str, int] = {}
            is_over = False

            async def keep_asking() -> None:
                client = await here.connect()
                while not is_over:
                    name, _, is_open = await ask(client)
                    assert is_open
                    asked[name] = asked.get(name, 0) + 1

            async with asyncio.TaskGroup() as tasks:
                for _ in range(16):
                    tasks.create_task(keep_asking())
                for number in range(6):
                    await until(lambda number=number: asked.get(str(number), 0) >= 100)  # type: ignore[misc]
                    new = here.add(str(number + 2))
                    await until(lambda new=new: new.known.takes)  # type: ignore[misc]
                    retiring = here.workers[number]
                    retiring.known.retire()
                    await retiring.has_ended()
                is_over = True
            assert [worker.pool.counts().open for worker in here.workers] == [0] * 6 + [8] * 2

    run(scenario())


def test_kept_connection_has_the_keep_alive_time_and_a_new_one_the_time_for_a_head(run: Run) -> None:
    async def scenario() -> None:
        async with service() as here:
            old = here.add("old")
            kept, fresh = await here.connect(), await here.connect()
            await ask(kept)
            await until(lambda: old.pool.counts().open == 2)
            here.add("new", header_timeout_s=0.05)
            old.known.retire()
            await until(lambda: not old.known.open)
            assert await fresh[0].read() == b""
            assert (await ask(kept))[0] == "new"
            await old.has_ended()

    run(scenario())


def test_idle_connections_change_to_a_worker_that_has_clearly_fewer(run: Run) -> None:
    """Such as one that has replaced another: clients with long-lived connections open no new ones."""

    async def scenario() -> None:
        async with service(balance_s=0.01) as here:
            old = here.add("old")
            clients = [await here.connect() for _ in range(8)]
            for client in clients:
                await ask(client)
            new = here.add("new")
            await until(lambda: len(new.known.open) == 4)
            names = [(await ask(client))[0] for client in clients]
            assert names.count("new") == 4
            assert len(old.known.open) == 4

    run(scenario())


def test_draining_worker_still_takes_connections_for_probes(run: Run) -> None:
    """At SIGTERM all workers drain, and each answer ends its connection."""

    async def scenario() -> None:
        async with service() as here:
            worker = here.add("a")
            held = await here.connect()
            held[1].write(GET % b"held")
            await worker.held.wait()
            worker.server.handle_exit(15, None)
            name, _, is_open = await ask(await here.connect())
            assert (name, is_open) == ("a", False)
            worker.release.set()
            assert (await answer_of(held))[0] == "a"
            await worker.has_ended()

    run(scenario())
