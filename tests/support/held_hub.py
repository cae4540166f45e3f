"""A model hub that accepts calls and does not answer them."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

EMPTY_MODEL = b'{"id": "x"}'


class HeldHub:
    """A hub that accepts calls, and answers none before `hang_up` ends them.

    One that *has_models* answers the first call for each model, which asks whether the model exists: then the download
    hangs.

    Attributes:
        called: set once a call is held.
        held: the paths of the calls that are held.
    """

    def __init__(self, listening: socket.socket, *, has_models: bool) -> None:
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        self.called = threading.Event()
        self.held: list[str] = []
        self._has_models = has_models
        self._listening = listening
        self._calls: list[socket.socket] = []
        self._described: set[str] = set()

    def accept_calls(self) -> None:
        """Accept calls until `hang_up`; blocks."""
        with suppress(OSError):
            while True:
                call = self._listening.accept()[0]
                self._calls.append(call)
                path = self._path_of(call)
                if self._has_models and path not in self._described:
                    self._described |= {path, f"{path}/revision/main"}
                    self._answer(call)
                else:
                    self.held.append(path)
                    self.called.set()

    @staticmethod
    def _path_of(call: socket.socket) -> str:
        with call.makefile("rb") as request:
            path = request.readline().decode().split(" ")[1]
            while request.readline().strip():
                pass
        return path.partition("?")[0]

    @staticmethod
    def _answer(call: socket.socket) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(EMPTY_MODEL)}\r\nConnection: close\r\n\r\n"
        call.sendall(head.encode() + EMPTY_MODEL)
        call.shutdown(socket.SHUT_WR)

    def hang_up(self) -> None:
        with suppress(OSError):  # a socket that nobody called cannot be shut down
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for call in self._calls:
            call.close()


@contextmanager
def held_hub(*, has_models: bool = False) -> Iterator[HeldHub]:
    """Run a hub until the end of the block, which hangs up."""
    hub = HeldHub(socket.create_server(("127.0.0.1", 0)), has_models=has_models)
    thread = threading.Thread(target=hub.accept_calls)
    thread.start()
    try:
        yield hub
    finally:
        hub.hang_up()
        thread.join()
