"""Real server processes for tests, each on a port of its own. Nothing polls: a server's log tells when it is ready."""

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
MAX_PORTS_HELD = 64
"""By then, the server that asked first listens for long."""
_holders: deque[socket.socket] = deque()


class ServerProcess(LoggedProcess):
    """A server that a test has started, and what it has logged so far."""

    def __init__(self, settings: Mapping[str, str], *, command: Sequence[str] = ("main.py",)) -> None:
        """Start `python main.py`, or another *command* of Python's, with *settings*, on a free port of this machine."""
        port = settings.get("PORT") or str(free_port())
        self.url = f"http://127.0.0.1:{port}"
        given = environment({"HOST": "127.0.0.1", "LOG_FORMAT": "json", **settings, "PORT": port})
        super().__init__(
            [sys.executable, *(part.format(port=port) for part in command)], folder=ROOT, environment=given
        )

    def wait_for(self, event: str, *, times: int = 1, timeout_s: float = START_S) -> dict[str, Any]:
        """The log line of this event, the first or a later one, as soon as it is there; fails if none comes."""
        return self._wait_for({"event": event}, times, timeout_s)

    def wait_for_request(self, request_id: str, *, timeout_s: float = START_S) -> dict[str, Any]:
        """The log line that says how the request of this id was answered; all it logged before stands above it."""
        return self._wait_for({"event": "request_answered", "request_id": request_id}, 1, timeout_s)

    def _wait_for(self, event: dict[str, str], times: int, timeout_s: float) -> dict[str, Any]:
        def found() -> list[dict[str, Any]]:
            return [line for line in self.events if all(line.get(name) == value for name, value in event.items())]

        self.wait_until(lambda: len(found()) >= times, repr(event), timeout_s=timeout_s)
        return found()[times - 1]

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self.process.stdin
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()


def free_port() -> int:
    """A port of this machine on which nobody listens, and which the system gives to nobody else meanwhile.

    A socket that is bound to it and does not listen holds it. Servers ask for this very port, with SO_REUSEADDR as all
    of them do, and get it all the same; others, such as those of tests that run at the same time, leave it to the
    system which one they get, and get another.
    """
    holder = socket.socket()
    if sys.platform == "linux":  # elsewhere, nobody could listen beside the holder
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    port = int(holder.getsockname()[1])
    _holders.append(holder)
    if sys.platform != "linux" or len(_holders) > MAX_PORTS_HELD:
        _holders.popleft().close()
    return port


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without the service's settings in it, and with *settings*."""
    from config import Settings  # noqa: PLC0415 - with --base-url none of the service's packages need be installed

    names = {name.upper() for name in Settings.model_fields}
    inherited = {name: value for name, value in os.environ.items() if name.upper() not in names}
    return {**inherited, **settings}


@contextmanager
def started_server(**settings: str) -> Iterator[ServerProcess]:
    """A server that has just been started; it is stopped at the end of the block."""
    with _stopped_at_the_end(ServerProcess(settings)) as server:
        yield server


@contextmanager
def started_uvicorn(**settings: str) -> Iterator[ServerProcess]:
    """The same by `uvicorn main:app`."""
    command = ("-m", "uvicorn", "main:app", "--port", "{port}")
    with _stopped_at_the_end(ServerProcess(settings, command=command)) as server:
        yield server


@contextmanager
def held_server(**settings: str) -> Iterator[ServerProcess]:
    """A healthy server whose model runs wait once it has been told `hold`, until it is told `release`."""
    with _stopped_at_the_end(ServerProcess(settings, command=("-m", "tests.support.held_server"))) as server:
        server.wait_for("service_ready")
        yield server


@contextmanager
def _stopped_at_the_end(server: ServerProcess) -> Iterator[ServerProcess]:
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def running_server(**settings: str) -> Iterator[ServerProcess]:
    """A server that has become healthy."""
    with started_server(**settings) as server:
        server.wait_for("service_ready")
        yield server
