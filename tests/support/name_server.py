"""A DNS server with one table of names, which a test changes while nginx asks it."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

NO_SUCH_NAME = 3
TYPE_A = 1
PATIENCE_S = 30


class NameServer:
    """Answers questions for IPv4 addresses over UDP; an unknown name gets NXDOMAIN."""

    def __init__(self, bound: socket.socket) -> None:
        self.address = f"127.0.0.1:{bound.getsockname()[1]}"
        self._socket = bound
        self._names: dict[str, list[str]] = {}
        self._answered = 0
        self._changed = threading.Condition()

    def set(self, name: str, *addresses: str) -> None:
        """Let *name* have these addresses from the next question on; without one, it does not exist."""
        with self._changed:
            self._names[name] = list(addresses)

    def wait_for_answers(self, count: int) -> None:
        """Wait until *count* more questions have been answered."""
        with self._changed:
            wanted = self._answered + count
            assert self._changed.wait_for(lambda: self._answered >= wanted, PATIENCE_S), "nginx does not ask"

    def serve(self) -> None:
        """Answer until the socket gets an empty datagram."""
        while True:
            question, caller = self._socket.recvfrom(512)
            if not question:
                return
            with self._changed:
                self._socket.sendto(self._answer(question), caller)
                self._answered += 1
                self._changed.notify_all()

    def _answer(self, question: bytes) -> bytes:
        name, end = _name_at(question, 12)
        [kind] = struct.unpack_from(">H", question, end)
        addresses = self._names.get(name, []) if kind == TYPE_A else []
        status = 0 if self._names.get(name) else NO_SUCH_NAME
        head = struct.pack(">2sHHHHH", question[:2], 0x8180 | status, 1, len(addresses), 0, 0)
        # Each answer points to the name in the question, and is valid for 600 s, as Docker's are.
        answers = (b"\xc0\x0c" + struct.pack(">HHIH", TYPE_A, 1, 600, 4) + socket.inet_aton(ip) for ip in addresses)
        return head + question[12 : end + 4] + b"".join(answers)


def _name_at(message: bytes, start: int) -> tuple[str, int]:
    """Return the name that begins at *start*, and the position behind it."""
    labels = []
    while length := message[start]:
        labels.append(message[start + 1 : start + 1 + length].decode())
        start += 1 + length
    return ".".join(labels), start + 1


@contextmanager
def name_server() -> Iterator[NameServer]:
    """Run a DNS server until the end of the block."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        server = NameServer(bound)
        thread = threading.Thread(target=server.serve, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            bound.sendto(b"", bound.getsockname())
            thread.join(PATIENCE_S)
