"""Two servers that a test ends, freezes, holds and starts again, each on a port that stays its own."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.servers import ServerProcess, free_port


class Replica:
    """One of several servers of the same settings; `server` is the process that serves at present."""

    def __init__(self, settings: dict[str, str]) -> None:
        """Start it; *settings* are those it has in common with the others."""
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self.url = f"http://{self.address}"
        self._settings = {**settings, "PORT": str(port)}
        self.server = self._start()
        self._runs_held = 0

    def hold(self) -> None:
        """From now on its model runs wait, and so do the requests that need them."""
        self._runs_held = self._count("run_held")
        self._tell("hold")

    def wait_until_held(self) -> None:
        """Until a model run waits, and so a request is at work that does not end."""
        self.server.wait_for("run_held", times=self._runs_held + 1)

    def release(self) -> None:
        self._tell("release")

    def kill(self) -> None:
        self.server.process.kill()
        assert self.server.wait_for_end() == -signal.SIGKILL

    def end(self) -> int:
        """Ask it to end, as an orchestrator does; return its exit code."""
        self.drain()
        return self.server.wait_for_end()

    def drain(self) -> None:
        """Ask it to end, and return as soon as it has begun to."""
        self.server.process.terminate()
        self.server.wait_for("drain_started")

    def freeze(self) -> None:
        self.server.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.server.process.send_signal(signal.SIGCONT)

    def start_again(self) -> None:
        """Start it on its port once more, and wait until it is ready."""
        assert self.server.process.poll() is not None
        self.stop()
        self.server = self._start()
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        self.server.wait_for("service_ready")

    def heal(self) -> None:
        """Whatever a test that failed has left behind: serve again."""
        if self.server.process.poll() is None:
            self.thaw()
            self.release()
        else:
            self.start_again()

    def stop(self) -> None:
        if self.server.process.poll() is None:
            self.thaw()  # a frozen process does not end
        self.server.stop()

    def _start(self) -> ServerProcess:
        return ServerProcess(self._settings, command=("-m", "tests.support.held_server"))

    def _tell(self, line: str) -> None:
        told = self._count("command_done")
        self.server.send_line(line)
        self.server.wait_for("command_done", times=told + 1)

    def _count(self, event: str) -> int:
        return sum(line["event"] == event for line in self.server.events)


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
