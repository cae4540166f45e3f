"""HTTP connections of a worker: they come from the supervisor, and go back to it when the worker retires."""

import asyncio
import socket
from typing import Any

from serving.connection_limits import Stage
from serving.connection_receiver import HandedOver
from serving.protocol import HttpProtocol


class WorkerProtocol(HttpProtocol):
    """One connection that was handed over. Between two requests another worker may take it; its client sees nothing."""

    def __init__(self, *, connection: HandedOver, **others: Any) -> None:
        super().__init__(**others)
        self._connection = connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        if self._connection.is_kept and not self._has_ended():
            self._enter(Stage.IDLE)
            self.restart_keep_alive_timer()
        if self._connection.is_wanted_back:
            self.loop.call_soon(self.give_back_if_wanted)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._connection.report_end()

    def _await_next_request(self) -> None:
        super()._await_next_request()
        if self._connection.is_wanted_back:
            self.loop.call_soon(self.give_back_if_wanted)  # not now: the parser may have more of this read

    def give_back_if_wanted(self) -> None:
        """Let another worker serve the connection if one shall, and nothing of a request was read without an answer."""
        if not self._connection.is_wanted_back or self._has_ended():
            return
        is_new = self._stage is Stage.READING_HEAD and not self._bytes_without_progress and not self.has_unanswered
        is_idle = self._stage is Stage.IDLE or is_new
        if not is_idle or self.is_head_begun or self._transport.get_write_buffer_size():
            return
        sock: socket.socket = self._transport.get_extra_info("socket")
        if self._connection.give_back(sock.fileno(), is_kept=not is_new):
            self._abort()  # closes this descriptor; the connection has another one
