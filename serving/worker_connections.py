"""The connections of one worker, as the supervisor knows them."""

import asyncio
import socket
from collections import Counter
from typing import TYPE_CHECKING

from host.handover_channel import HandoverChannel, Received

if TYPE_CHECKING:
    from serving.connection_dispatcher import ConnectionDispatcher


class WorkerConnections:
    """What one worker has, and the socket pair over which it gets more.

    Attributes:
        number: of the worker's slot, for the log.
        worker_end: the socket that the worker process inherits.
        takes: whether it takes connections: its event loop runs and reads.
        is_ready: whether its models are loaded. Others get connections only while no worker is ready.
        is_withdrawn: whether it gets no more connections.
        open: the connections it has, and their addresses.
    """

    def __init__(self, dispatcher: "ConnectionDispatcher", number: int) -> None:
        self._dispatcher = dispatcher
        self.number = number
        own_end, self.worker_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.channel = HandoverChannel(own_end)
        self.untaken = HandoverChannel(self.worker_end)
        self.takes = self.is_ready = self.is_withdrawn = self.is_full = False
        self.open: dict[int, object] = {}
        self.by_address: Counter[object] = Counter()
        self.last_given = 0
        self.recall_timer: asyncio.TimerHandle | None = None

    def retire(self) -> None:
        """Withdraw the worker, and let it end when it has no connection left."""
        self._dispatcher.retire(self)

    def withdraw(self) -> None:
        """Give the worker no more connections, and to others what it has not taken and what becomes idle there."""
        self._dispatcher.withdraw(self)

    def remove(self) -> None:
        """Forget the worker, whose process has ended; others get what it has not taken."""
        self._dispatcher.remove_worker(self)

    def set_ready(self) -> None:
        """Note that the models of the worker are loaded."""
        self.is_ready = True
        self._dispatcher.balance_soon()

    def add(self, number: int, address: object) -> None:
        self.open[number] = address
        self.by_address[address] += 1

    def discard(self, number: int) -> object:
        """Forget a connection and return its address; one that is unknown has been forgotten already."""
        address = self.open.pop(number, None)
        self.by_address[address] -= 1
        if self.by_address[address] <= 0:
            del self.by_address[address]
        return address

    def take_back(self) -> list[Received]:
        """Return what the worker has not read yet; it will not get it any more."""
        return [received for part in iter(self.untaken.receive, []) for received in part or ()]

    def close(self) -> None:
        self.channel.close()
        self.worker_end.close()
