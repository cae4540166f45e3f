"""Real Redis servers for tests, each on a port of its own; a test kills, freezes and restarts its own."""

import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.servers import free_port

START_S = 30


class RedisServer:
    """A Redis server that a test has started; nothing of it is kept on disk."""

    def __init__(self, *arguments: str) -> None:
        self.port = free_port()
        self._command = [needed("redis-server"), "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        self._command += arguments
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, or start it again on the same port; it takes connections when this returns."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        self._is_ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._is_ready.wait(START_S), "redis-server has not started"

    def kill(self) -> None:
        """As by `kill -9`: it has no time for anything, and forgets all."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout
        self._process.stdout.close()

    def freeze(self) -> None:
        """It takes connections (the kernel does), and answers nothing, until it is thawed."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    def tell(self, *words: str) -> str:
        """What it answers to a command; a simple one, so that the client under test is not trusted here."""
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.settimeout(START_S)
            connection.sendall((" ".join(words) + "\r\n").encode())
            return connection.recv(65536).decode()

    def stored(self) -> list[str]:
        """The names of all keys."""
        return [line for line in self.tell("KEYS", "*").splitlines() if line[:1] not in {"*", "$"}]

    def _read(self) -> None:
        for line in self._process.stdout or ():
            if "Ready to accept connections" in line:
                self._is_ready.set()


@contextmanager
def running_redis(*arguments: str) -> Iterator[RedisServer]:
    """A Redis server with these further arguments; it is gone at the end of the block."""
    server = RedisServer(*arguments)
    try:
        yield server
    finally:
        server.kill()


def needed(command: str) -> str:
    """Where this command is; without it the test is skipped, but fails under CI."""
    if found := shutil.which(command):
        return found
    if os.environ.get("CI") == "true":
        pytest.fail(f"{command} is missing")
    pytest.skip(f"needs {command}")
