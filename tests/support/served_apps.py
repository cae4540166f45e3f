"""The app in this process behind the real protocol and a real socket: what both do together can be watched."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
from litestar import Litestar
from uvicorn.server import ServerState

from assembly.app import AppParts, parts_of
from assembly.serve import connection_limits, open_pool
from serving.connection_pool import ConnectionPool
from serving.protocol import HttpProtocol
from tests.support.apps import settings_of
from web.security_headers import Header

START_S = 60
DEFAULT_HEADERS = [(b"date", b"Sun, 06 Nov 1994 08:49:37 GMT")]


@dataclass(frozen=True, slots=True)
class ServedApp:
    """A running app.

    Attributes:
        port: on 127.0.0.1.
        client: calls it.
        parts: of the app.
        pool: of its connections.
        found: for each request that the server might have answered itself, whether it did.
    """

    port: int
    client: httpx.Client
    parts: AppParts
    pool: ConnectionPool
    found: list[bool]

    def without_early_reuse(self) -> AbstractContextManager[None]:
        """Let the app answer all requests in the block."""
        return self.with_early_reuse(None)

    @contextmanager
    def with_early_reuse(self, replacement: Any) -> Iterator[None]:
        """Let the server find cached answers by *replacement* in the block."""
        answers, self.pool.early_reuse = self.pool.early_reuse, replacement
        try:
            yield
        finally:
            self.pool.early_reuse = answers


class _Watched:
    """The cached answers of an app, watched."""

    def __init__(self, answers: Any, found: list[bool]) -> None:
        self._answers, self._found = answers, found
        self.may_answer, self.release = answers.may_answer, answers.release

    def find(self, *arguments: Any) -> tuple[list[Header], bytes] | None:
        answer: tuple[list[Header], bytes] | None = self._answers.find(*arguments)
        self._found.append(answer is not None)
        return answer


@contextmanager
def served_app(**variables: str) -> Iterator[ServedApp]:
    """Serve the app with these settings in a thread, until the end of the block."""
    from main import create_app  # noqa: PLC0415 - importing main builds an app, too

    app, found = create_app(settings_of(**variables)), list[bool]()
    started, stop, loop = threading.Event(), asyncio.Event(), asyncio.new_event_loop()
    served: list[tuple[int, ConnectionPool]] = []

    async def run() -> None:
        async with _serving(app, found) as one:
            served.append(one)
            started.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),), daemon=True)
    thread.start()
    try:
        assert started.wait(START_S)
        [(port, pool)] = served
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=START_S) as client:
            yield ServedApp(port, client, parts_of(app), pool, found)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(START_S)
        loop.close()


@asynccontextmanager
async def _serving(app: Litestar, found: list[bool]) -> AsyncIterator[tuple[int, ConnectionPool]]:
    parts, state = parts_of(app), ServerState()
    state.default_headers = DEFAULT_HEADERS
    pool = open_pool(parts, connection_limits(parts.settings))
    if pool.early_reuse is not None:
        pool.early_reuse = _Watched(pool.early_reuse, found)
    config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False, proxy_headers=False, ws="none")
    config.timeout_keep_alive = parts.settings.keep_alive_timeout  # type: ignore[assignment]  # a part of a second
    async with app.lifespan():
        server = await asyncio.get_running_loop().create_server(
            lambda: HttpProtocol(config=config, server_state=state, app_state={}, pool=pool), "127.0.0.1", 0
        )
        async with server:
            yield server.sockets[0].getsockname()[1], pool
        for connection in tuple(state.connections):
            connection.transport.close()
