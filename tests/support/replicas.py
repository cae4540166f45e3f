"""Servers that a test stops, freezes, holds and restarts, each on a port of its own that stays the same."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.servers import ServerProcess, free_port


class Replica:
    """One of several servers with the same settings; `server` is its current process."""

    def __init__(self, settings: dict[str, str]) -> None:
        """Start the server; *settings* are those of all replicas."""
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self.url = f"http://{self.address}"
        # A cached result would be answered while runs are held.
        self._settings = {"RESULT_CACHE_MB": "0", **settings, "PORT": str(port)}
        self.server = self._start()
        self._runs_held = 0

    def hold(self) -> None:
        """Make its model runs wait from now on, and so the requests that need them."""
        self._runs_held = self._count("run_held")
        self._send("hold")

    def wait_until_held(self) -> None:
        """Wait until a model run is held, so that a request is in progress and does not end."""
        self.server.wait_for("run_held", times=self._runs_held + 1)

    def release(self) -> None:
        self._send("release")

    def kill(self) -> None:
        self.server.process.kill()
        assert self.server.wait_for_end() == -signal.SIGKILL

    def end(self) -> int:
        """Send SIGTERM, as an orchestrator does, and return the exit code."""
        self.drain()
        return self.server.wait_for_end()

    def drain(self) -> None:
        """Send SIGTERM, and return as soon as the server drains."""
        self.server.process.terminate()
        self.server.wait_for("drain_started")

    def freeze(self) -> None:
        self.server.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.server.process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """Start it again on its port, and wait until it is ready."""
        assert self.server.process.poll() is not None
        self.stop()
        self.server = self._start()
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        self.server.wait_for("service_ready")

    def heal(self) -> None:
        """Make it serve again, whatever a failed test has left behind."""
        if self.server.process.poll() is None:
            self.thaw()
            self.release()
        else:
            self.restart()

    def stop(self) -> None:
        if self.server.process.poll() is None:
            self.thaw()  # a frozen process ignores SIGTERM
        self.server.stop()

    def _start(self) -> ServerProcess:
        return ServerProcess(self._settings, command=("-m", "tests.support.held_server"))

    def _send(self, line: str) -> None:
        before = self._count("command_done")
        self.server.send_line(line)
        self.server.wait_for("command_done", times=before + 1)

    def _count(self, event: str) -> int:
        return sum(line["event"] == event for line in self.server.events)


Pair = tuple[Replica, Replica]


@contextmanager
def two_replicas(**settings: str) -> Iterator[Pair]:
    """Start two servers, wait until both are ready, and stop them at the end of the block."""
    pair = (Replica(settings), Replica(settings))
    try:
        for replica in pair:
            replica.wait_until_ready()
        yield pair
    finally:
        for replica in pair:
            replica.stop()
