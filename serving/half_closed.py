"""Clients that have closed their sending side: those that wait for their answer, and those that have left.

On the wire both look the same: the client sends no more. But the system of a client that has left replies with a reset
to whatever data it receives (not to TCP's keep-alive probes). So the bytes with which every answer begins are sent
before the answer, one by one.
"""

import asyncio
import socket
from collections.abc import Callable

ANSWER_START = b"HTTP/1.1 "
"""The begin of every answer, interim ones included."""
FIRST_PAUSE_S = 0.05
"""How long the first reset is waited for. Pauses double, so the bytes suffice for 25 s: a client that leaves is noticed
after about as long as it has waited."""


class HalfClosedClient:
    """Writes the next answer to a client that sends no more, and calls *on_reset* once the client has left.

    For uvicorn it is the transport of that answer. A server that reads no more learns of a reset only by looking.
    """

    def __init__(self, transport: asyncio.Transport, *, has_answer_started: bool, on_reset: Callable[[], None]) -> None:
        self._transport = transport
        self._socket: socket.socket = transport.get_extra_info("socket")
        self._has_answer_started = has_answer_started
        self._on_reset = on_reset
        self._sent = 0  # bytes of ANSWER_START
        self._pause_s = FIRST_PAUSE_S
        self.close = transport.close
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        """Write *data*, without what has been sent of it already."""
        self._has_answer_started = True
        self._transport.write(data[self._sent :])
        self._sent = 0

    def probe(self) -> None:
        """Send a byte, look for a reset, and repeat this until the connection has ended."""
        if self._transport.is_closing():
            return
        if not self._has_answer_started and self._sent < len(ANSWER_START):
            self._transport.write(ANSWER_START[self._sent : self._sent + 1])
            self._sent += 1
        if self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._on_reset()
            return
        asyncio.get_running_loop().call_later(self._pause_s, self.probe)
        self._pause_s *= 2
