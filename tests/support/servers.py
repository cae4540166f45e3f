"""Real server processes for tests, each on its own port. Nothing polls: a server's log shows when it is ready.

- A test that does not change the server's state asks the fixture `server_with(**settings)` of conftest.py for one. It
  comes from a pool: one process per set of settings and per pytest worker.
- A test that needs a fresh server, or one that it stops, uses `running_server(**settings)`.
"""

import os
import socket
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.logged_process import START_S, LoggedProcess

ROOT = Path(__file__).resolve().parents[2]
NO_HUB = "http://127.0.0.1:9"
"""An address of a model hub that refuses every connection at once: nothing listens on the port `discard`."""
MAX_PORTS_HELD = 64
"""How many ports are kept reserved. More than servers that start at the same time, fewer than open files allowed."""
MAX_POOLED = 6
"""How many servers a pool keeps running. More than one test uses; each takes about 200 MB."""
_holders: deque[socket.socket] = deque()


class ServerProcess(LoggedProcess):
    """A server that a test has started, and its log so far."""

    def __init__(self, settings: Mapping[str, str], *, command: Sequence[str] = ("main.py",)) -> None:
        """Start `python main.py`, or Python with another *command*, with *settings*, on a free port of this machine."""
        port = settings.get("PORT") or str(free_port())
        self.url = f"http://127.0.0.1:{port}"
        given = environment({"HOST": "127.0.0.1", "LOG_FORMAT": "json", **settings, "PORT": port})
        super().__init__(
            [sys.executable, *(part.format(port=port) for part in command)], folder=ROOT, environment=given
        )

    def wait_for(self, event: str, *, times: int = 1, timeout_s: float = START_S) -> dict[str, Any]:
        """Wait for the log line of *event*, the first or the one of number *times*, and return it."""
        return self._wait_for({"event": event}, times, timeout_s)

    def wait_for_request(self, request_id: str, *, timeout_s: float = START_S) -> dict[str, Any]:
        """Wait for the line of the request log with this id, and return it. The request has logged all it logs then."""
        return self._wait_for({"event": "request_answered", "request_id": request_id}, 1, timeout_s)

    def _wait_for(self, event: dict[str, str], times: int, timeout_s: float) -> dict[str, Any]:
        def found() -> list[dict[str, Any]]:
            return [line for line in self.events if all(line.get(name) == value for name, value in event.items())]

        self.wait_until(lambda: len(found()) >= times, repr(event), timeout_s=timeout_s)
        return found()[times - 1]

    def send_line(self, line: str) -> None:
        """Write *line* to its standard input."""
        assert self.process.stdin
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()


def free_port() -> int:
    """Return a free port of this machine, and reserve it.

    A socket that is bound to the port and does not listen reserves it: a server that asks for this very port with
    SO_REUSEADDR, as all do, gets it; processes that let the system choose, such as tests that run at the same time,
    get another one, whatever the address.
    """
    holder = socket.socket()
    if sys.platform == "linux":  # on other systems, no server could listen beside the holder
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("", 0))  # on all addresses of IPv4; it does not listen on any
    port = int(holder.getsockname()[1])
    _holders.append(holder)
    if sys.platform != "linux" or len(_holders) > MAX_PORTS_HELD:
        _holders.popleft().close()
    return port


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment without the service's settings, plus *settings*.

    Optimised copies are off unless *settings* turn them on: each server would write one of the bundled model.
    """
    from config import Settings  # noqa: PLC0415 - with --base-url none of the service's packages need be installed

    names = {name.upper() for name in Settings.model_fields}
    inherited = {name: value for name, value in os.environ.items() if name.upper() not in names}
    return {**inherited, "OPTIMISED_MODELS_MAX_SIZE": "0", **settings}


@contextmanager
def started_server(**settings: str) -> Iterator[ServerProcess]:
    """Start a server, and stop it at the end of the block."""
    with stopped_at_the_end(ServerProcess(settings)) as server:
        yield server


@contextmanager
def started_uvicorn(**settings: str) -> Iterator[ServerProcess]:
    """Start a server by `uvicorn main:app`, and stop it at the end of the block."""
    command = ("-m", "uvicorn", "main:app", "--port", "{port}")
    with stopped_at_the_end(ServerProcess(settings, command=command)) as server:
        yield server


@contextmanager
def held_server(**settings: str) -> Iterator[ServerProcess]:
    """Start a server whose model runs wait from the input line `hold` to the line `release`; it is ready.

    Unless *settings* say otherwise, it keeps no results: a kept one would be answered while runs are held.
    """
    settings = {"RESULT_CACHE_MB": "0", **settings}
    with stopped_at_the_end(ServerProcess(settings, command=("-m", "tests.support.held_server"))) as server:
        server.wait_for("service_ready")
        yield server


@contextmanager
def stopped_at_the_end(server: ServerProcess) -> Iterator[ServerProcess]:
    """Stop *server* at the end of the block."""
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def running_server(**settings: str) -> Iterator[ServerProcess]:
    """Start a server, wait until it is ready, and stop it at the end of the block."""
    with started_server(**settings) as server:
        server.wait_for("service_ready")
        yield server


class ServerPool:
    """Servers that tests share: one per set of settings. The least recently used ones are stopped."""

    def __init__(self, *, max_servers: int = MAX_POOLED, **defaults: str) -> None:
        """Start nothing yet; every server gets the settings *defaults*, unless it is asked for with other values."""
        self._max_servers = max_servers
        self._defaults = defaults
        self._servers: dict[frozenset[tuple[str, str]], ServerProcess] = {}  # least recently used first

    def get(self, **settings: str) -> ServerProcess:
        """Return a ready server with these settings: one that runs already, or a new one."""
        settings = {**self._defaults, **settings}
        key = frozenset(settings.items())
        server = self._servers.pop(key, None)
        if server is None or server.process.poll() is not None:
            server = ServerProcess(settings)
        self._servers[key] = server
        while len(self._servers) > self._max_servers:
            self._servers.pop(next(iter(self._servers))).stop()
        server.wait_for("service_ready")
        return server

    def close(self) -> None:
        """Stop all servers."""
        for server in self._servers.values():
            server.process.terminate()
        for server in self._servers.values():
            server.stop()
