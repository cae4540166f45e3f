"""Serves, in a worker, the connections that the supervisor hands over, as if the worker had accepted them itself."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress

from host.handover_channel import HandoverChannel, Message, Received

REPORT_S = 0.005
"""How long ended connections are collected before the supervisor learns of them, in one message."""


class HandedOver:
    """A connection that this worker has from the supervisor.

    Attributes:
        is_kept: whether another worker has kept it alive between two requests before it came here.
    """

    __slots__ = ("_is_here", "_number", "_receiver", "is_kept")

    def __init__(self, receiver: "ConnectionReceiver", number: int, *, is_kept: bool) -> None:
        self.is_kept = is_kept
        self._receiver = receiver
        self._number = number
        self._is_here = True

    @property
    def is_wanted_back(self) -> bool:
        """Whether the connection shall be given back as soon as nothing has begun on it."""
        return self._receiver.wanted_back > 0

    def give_back(self, descriptor: int, *, is_kept: bool) -> bool:
        """Let another worker serve the connection, and return True; then it has to be closed here without a word.

        Args:
            descriptor: of the connection.
            is_kept: whether a request was answered on it.

        Returns:
            False if that is not possible now.
        """
        if self._receiver.give_back(self._number, descriptor, is_kept=is_kept):
            self._is_here = False
        return not self._is_here

    def report_end(self) -> None:
        """Note that the connection has ended, unless it was given back."""
        if self._is_here:
            self._receiver.report_closed(self._number)


class ConnectionReceiver:
    """The worker's end of the socket pair. Belongs to one event loop."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        make_protocol: Callable[[HandedOver], asyncio.Protocol],
        on_retire: Callable[[], None],
    ) -> None:
        """Take connections from now on.

        Args:
            sock: the worker's end of the pair.
            make_protocol: makes the protocol of a connection.
            on_retire: called once when this worker shall end as soon as it has no connection left.
        """
        self.is_retiring = False
        self.wanted_back = 0
        """How many connections the supervisor wants back for workers that have fewer."""
        self._channel = HandoverChannel(sock)
        self._make_protocol = make_protocol
        self._on_retire = on_retire
        self._loop = asyncio.get_running_loop()
        self._report: asyncio.TimerHandle | None = None
        self._starting: set[asyncio.Task[None]] = set()
        self._loop.add_reader(sock, self._read)
        self._say_that_it_takes()

    @property
    def is_starting_some(self) -> bool:
        """Whether there are connections that have no protocol yet."""
        return bool(self._starting)

    def stop(self) -> None:
        """Take no more, and report no more; the supervisor takes back what was not taken."""
        self._loop.remove_reader(self._channel.sock)
        if self._report is not None:
            self._report.cancel()
        with suppress(OSError):  # the supervisor has ended
            self._channel.send(Message.STOPS)
        self._channel.close()

    def report_closed(self, number: int) -> None:
        """Note that a connection has ended; the supervisor learns of it soon."""
        self._channel.queue(Message.CLOSED, number)
        if self._report is None and self._channel.is_open:
            self._report = self._loop.call_later(REPORT_S, self._send_reports)

    def give_back(self, number: int, descriptor: int, *, is_kept: bool) -> bool:
        """Send a connection to the supervisor; return False if that is not possible now."""
        message = Message.RETURNED_KEPT if is_kept else Message.RETURNED_NEW
        try:
            is_sent = self._channel.send_connection(message, number, descriptor)
        except OSError:
            return False
        self.wanted_back -= is_sent and self.wanted_back > 0
        return is_sent

    # --- Messages -------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        received = self._channel.receive()
        if received is None:  # the supervisor has ended; the channel for calls reports it
            self._loop.remove_reader(self._channel.sock)
            return
        for one in received:
            match one.message:
                case Message.NEW | Message.KEPT:
                    self._take(one)
                case Message.ASK:
                    self._say_that_it_takes()
                case Message.RETURN:
                    self.wanted_back = one.connection
                case Message.RETIRE if not self.is_retiring:
                    self.is_retiring = True
                    self._on_retire()

    def _take(self, received: Received) -> None:
        if received.descriptor is None:  # too many files are open here
            self.report_closed(received.connection)
            return
        task = self._loop.create_task(self._serve(received.descriptor, received))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    async def _serve(self, descriptor: int, received: Received) -> None:
        connection = HandedOver(self, received.connection, is_kept=received.message is Message.KEPT)
        sock = socket.socket(fileno=descriptor)
        try:
            sock.setblocking(False)  # noqa: FBT003 - as the standard library's own
            await self._loop.connect_accepted_socket(lambda: self._make_protocol(connection), sock)
        except OSError:  # the client has left
            sock.close()
            connection.report_end()

    def _say_that_it_takes(self) -> None:
        with suppress(OSError):  # the supervisor has ended
            self._channel.send(Message.TAKES)

    def _send_reports(self) -> None:
        self._report = None
        with suppress(OSError):  # the supervisor has ended
            if not self._channel.flush():  # it is busy
                self._report = self._loop.call_later(REPORT_S, self._send_reports)
