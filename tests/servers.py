"""Real server processes for tests, each on a port of its own."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent
START_S = 60


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """A server that a test has started."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without settings of the service in it, and with *settings*; no `.env` counts."""
    from config import Settings  # noqa: PLC0415 - a server given by --base-url needs none of the service's packages

    names = {name.upper() for name in Settings.model_fields}
    inherited = {name: value for name, value in os.environ.items() if name.upper() not in names}
    return {**inherited, **settings}


@contextmanager
def started_server(*, log: Path, **settings: str) -> Iterator[ServerProcess]:
    """Start `python main.py`; at the end of the block it is told to stop, and killed if it does not."""
    port = free_port()
    env = environment({"HOST": "127.0.0.1", "PORT": str(port), **settings})
    with log.open("wb") as out:
        process = subprocess.Popen(  # the tests' own interpreter, on the service's own code
            [sys.executable, "main.py"], cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT
        )
        try:
            yield ServerProcess(f"http://127.0.0.1:{port}", process, log)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def running_server(*, log: Path, **settings: str) -> Iterator[ServerProcess]:
    """A server that has become healthy."""
    with started_server(log=log, **settings) as server:
        wait_for(server, "/health", 200)
        yield server


def wait_for(server: ServerProcess, path: str, status: int) -> httpx.Response:
    """Ask until *path* answers with *status*; fails when the process ends or takes longer than START_S."""
    give_up = time.monotonic() + START_S
    while server.process.poll() is None and time.monotonic() < give_up:
        try:
            response = httpx.get(server.url + path, timeout=5)
        except httpx.TransportError:
            time.sleep(0.02)  # the server's start is waited for; nothing is timed here
            continue
        if response.status_code == status:
            return response
        time.sleep(0.02)
    message = f"{path} did not answer {status}; exit code {server.process.poll()}\n{server.log.read_text()}"
    raise AssertionError(message)
