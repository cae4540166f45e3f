"""A relay between a program and a server, which notes the status of every answer."""

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx

REFUSAL_TIMEOUT_S = 100
"""How long a program may take until its first request is refused: some libraries need 20 s to be imported."""
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


class Relay:
    """Passes each connection on to a server.

    Attributes:
        url: the address for the program.
        statuses: the statuses of the answers so far.
    """

    def __init__(self, server_url: str) -> None:
        self._server = ("127.0.0.1", httpx.URL(server_url).port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._grown = threading.Condition()
        self._sockets: list[socket.socket] = [self._listener]
        self.statuses: list[int] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def wait_for_refusal(self) -> None:
        """Return as soon as an answer was a 429 or a 503."""
        with self._grown:
            self._grown.wait_for(lambda: self.refusals, REFUSAL_TIMEOUT_S)
        assert self.refusals, f"no refusal within {REFUSAL_TIMEOUT_S} s, but {self.statuses}"

    @property
    def refusals(self) -> int:
        """The number of answers with 429 or 503."""
        return sum(status in {429, 503} for status in self.statuses)

    def close(self) -> None:
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed at the end
            while True:
                program, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                self._sockets += [program, server]
                for ends, notes in (((program, server), False), ((server, program), True)):
                    threading.Thread(target=self._pass_on, args=(*ends, notes), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, notes: bool) -> None:  # noqa: FBT001 - of threads
        with suppress(OSError):
            while data := source.recv(65536):
                if notes and (found := STATUS.match(data)):
                    with self._grown:
                        self.statuses.append(int(found[1]))
                        self._grown.notify_all()
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@contextmanager
def relayed(server_url: str) -> Iterator[Relay]:
    """Relay to this server until the end of the block."""
    relay = Relay(server_url)
    try:
        yield relay
    finally:
        relay.close()
