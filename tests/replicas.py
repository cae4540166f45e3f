"""Two servers that a test ends, freezes and starts again, each on a port that stays its own."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from tests.servers import ServerProcess, free_port


class Replica:
    """One of several servers of the same settings; `server` is the process that serves at present."""

    def __init__(self, settings: dict[str, str]) -> None:
        """Start it; *settings* are those it has in common with the others."""
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self.url = f"http://{self.address}"
        self._settings = {**settings, "PORT": str(port)}
        self.server = ServerProcess(self._settings)

    def kill(self) -> None:
        self.server.process.kill()
        assert self.server.wait_for_end() == -signal.SIGKILL

    def end(self) -> int:
        """Ask it to end, as an orchestrator does; return its exit code."""
        self.server.process.terminate()
        return self.server.wait_for_end()

    def freeze(self) -> None:
        self.server.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.server.process.send_signal(signal.SIGCONT)

    def start_again(self) -> None:
        """Start it on its port once more, and wait until it is ready."""
        assert self.server.process.poll() is not None
        self.stop()
        self.server = ServerProcess(self._settings)
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        self.server.wait_for("service_ready")

    def heal(self) -> None:
        """Whatever a test that failed has left behind: serve again."""
        if self.server.process.poll() is None:
            self.thaw()
        else:
            self.start_again()

    def stop(self) -> None:
        if self.server.process.poll() is None:
            self.thaw()  # a frozen process does not end
        self.server.stop()


Pair = tuple[Replica, Replica]


@contextmanager
def two_replicas(**settings: str) -> Iterator[Pair]:
    """Two servers that are ready; both are stopped at the end of the block."""
    pair = (Replica(settings), Replica(settings))
    try:
        for replica in pair:
            replica.wait_until_ready()
        yield pair
    finally:
        for replica in pair:
            replica.stop()
