"""Real Redis servers for tests, each on a port of its own. A test may kill, freeze and restart its own."""

import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.servers import free_port

START_S = 30
SLOTS = 16_384
"""Parts into which a cluster divides all keys."""


class RedisServer:
    """A Redis server that a test has started; it writes nothing to disk."""

    def __init__(self, *arguments: str, certificate: Path | None = None) -> None:
        """Start it with these additional arguments; with *certificate* (and its key beside it), also with TLS."""
        self.port = free_port()
        self._command = [needed("redis-server"), "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        self._command += arguments
        if certificate is not None:
            self.tls_port = free_port()
            files = {"cert": certificate, "key": certificate.with_name("privkey.pem"), "ca-cert": certificate}
            self._command += ["--tls-port", str(self.tls_port), "--tls-auth-clients", "no"]
            for name, file in files.items():
                self._command += [f"--tls-{name}-file", str(file)]
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start or restart it on its port, and wait until it accepts connections."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        self._is_ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._is_ready.wait(START_S):
            self.kill()
            pytest.fail("redis-server has not started")

    def kill(self) -> None:
        """Send SIGKILL; all its data is lost."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout
        self._process.stdout.close()

    def freeze(self) -> None:
        """Stop it from answering until it is thawed; the kernel still accepts connections."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    def run(self, *words: str) -> str:
        """Send a simple command and return the raw reply. The client under test is not used here."""
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.settimeout(START_S)
            connection.sendall((" ".join(words) + "\r\n").encode())
            return connection.recv(65536).decode()

    def stored(self) -> list[str]:
        """Return the names of all keys."""
        return [line for line in self.run("KEYS", "*").splitlines() if line[:1] not in {"*", "$"}]

    def _read(self) -> None:
        for line in self._process.stdout or ():
            if "Ready to accept connections" in line:
                self._is_ready.set()


@contextmanager
def running_redis(*arguments: str, certificate: Path | None = None) -> Iterator[RedisServer]:
    """Start a Redis server as `RedisServer` does, and kill it at the end of the block."""
    server = RedisServer(*arguments, certificate=certificate)
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def running_cluster(folder: Path, *, servers: int, certificate: Path) -> Iterator[Sequence[RedisServer]]:
    """Start a cluster without replicas, for clients with and without TLS. It writes its state to *folder*."""
    with ExitStack() as stack:
        cluster = []
        for number in range(servers):
            bus = str(free_port())
            options = (
                "--cluster-enabled",
                "yes",
                "--cluster-config-file",
                f"{number}.conf",
                "--cluster-port",
                bus,
                "--tls-cluster",
                "yes",
            )
            cluster.append(stack.enter_context(running_redis(*options, "--dir", str(folder), certificate=certificate)))
            cluster[0].run("CLUSTER", "MEET", "127.0.0.1", str(cluster[-1].tls_port), bus)
        bounds = [SLOTS * number // servers for number in range(servers + 1)]
        for server, first, end in zip(cluster, bounds[:-1], bounds[1:], strict=True):
            server.run("CLUSTER", "ADDSLOTSRANGE", str(first), str(end - 1))
        for server in cluster:  # they also need time to learn of each other's slots
            while not {"cluster_state:ok", f"cluster_known_nodes:{servers}"} <= set(
                server.run("CLUSTER", "INFO").splitlines()
            ):
                pass
        yield cluster


def needed(command: str) -> str:
    """Return the path of this command; if it is missing, skip the test, or fail it in CI."""
    if found := shutil.which(command):
        return found
    if os.environ.get("CI") == "true":
        pytest.fail(f"{command} is missing")
    pytest.skip(f"needs {command}")
