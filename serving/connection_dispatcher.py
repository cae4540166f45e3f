"""Accepts the connections of all workers, in the supervisor, and hands each to the worker that has fewest.

The supervisor keeps both ends of each worker's socket pair. So a connection that a worker has not taken yet is not
lost when the worker ends or hangs: it is taken back from the worker's own end, and handed to another one.
"""

import asyncio
import errno
import itertools
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog

from host.handover_channel import Message, Received
from serving.worker_connections import WorkerConnections

ACCEPTED_AT_ONCE = 64
"""Connections that are accepted before the event loop does something else, such as answering a worker."""
RECALL_S = 1.0
"""A worker that has not read for so long gets no more connections until it says that it takes them again."""
RETRY_S = 1.0
"""How long nothing is accepted when the system has no open file or memory left."""
BALANCE_S = 1.0
"""How often idle connections are moved, at most, because one worker has clearly fewer than another one."""
CLEARLY_FEWER = 0.75
"""How many of the connections of the fullest worker others may have and count as balanced."""
NO_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
MAX_NUMBER = 1 << 32

log = structlog.get_logger()

Address = tuple[str, int]


@dataclass(slots=True)
class _Waiting:
    """A connection that no worker has yet. Its descriptor is closed here once a worker has it."""

    number: int
    descriptor: int
    address: object
    message: Message


def host_of(address: Address) -> object:
    return address[0]


class ConnectionDispatcher:
    """Owns the listening socket, and knows how many connections each worker has. Belongs to one event loop."""

    def __init__(
        self,
        listening: socket.socket,
        *,
        address_of: Callable[[Address], object] = host_of,
        recall_s: float = RECALL_S,
        retry_s: float = RETRY_S,
        balance_s: float = BALANCE_S,
    ) -> None:
        """Accept nothing before the first worker takes connections.

        Args:
            listening: is made non-blocking; the dispatcher closes it.
            address_of: returns to which address the connections of a peer are counted.
            recall_s: after so many seconds, a connection that a worker has not taken goes to another one.
            retry_s: for so many seconds, nothing is accepted when the system has no open file or memory left.
            balance_s: seconds between two times that idle connections are moved to a worker that has clearly fewer.
        """
        listening.setblocking(False)  # noqa: FBT003 - as the standard library's own
        self._listening = listening
        self.max_per_address: int | None = None
        """Connections of one address per worker; a worker that has so many gets another one only if all have."""
        self._address_of = address_of
        self._recall_s = recall_s
        self._retry_s = retry_s
        self._balance_s = balance_s
        self._loop = asyncio.get_running_loop()
        self._workers: list[WorkerConnections] = []
        self._waiting: deque[_Waiting] = deque()
        self._numbers = itertools.count(1)
        self._turns = itertools.count(1)
        self._is_accepting = False
        self._is_closed = False
        self._retry: asyncio.TimerHandle | None = None
        self._balance_timer: asyncio.TimerHandle | None = None

    # --- Workers --------------------------------------------------------------------------------------------------

    def add_worker(self, number: int) -> WorkerConnections:
        """Return the socket pair of a new worker process. It gets connections from when it says that it takes them."""
        worker = WorkerConnections(self, number)
        self._workers.append(worker)
        self._loop.add_reader(worker.channel.sock, self._read, worker)
        return worker

    def remove_worker(self, worker: WorkerConnections) -> None:
        """Forget a worker whose process has ended; what it had not taken goes to others."""
        if worker not in self._workers:
            return
        self._read(worker)  # its last messages
        self._workers.remove(worker)
        self._loop.remove_reader(worker.channel.sock)
        self._loop.remove_writer(worker.channel.sock)
        self._stop_timer(worker)
        self._take_back(worker)
        worker.close()
        self._serve_waiting()

    def withdraw(self, worker: WorkerConnections) -> None:
        """Give *worker* no more connections, and to others what it has not taken and what becomes idle there."""
        if worker.is_withdrawn:
            return
        worker.is_withdrawn = True
        self._stop_timer(worker)
        self._take_back(worker)
        with suppress(OSError):  # it has ended
            worker.channel.send(Message.RETURN, MAX_NUMBER - 1)
        self._serve_waiting()

    def retire(self, worker: WorkerConnections) -> None:
        """Withdraw *worker*, and let it end when it has no connection left."""
        self.withdraw(worker)
        with suppress(OSError):  # it has ended
            worker.channel.send(Message.RETIRE)

    def close(self) -> None:
        """Accept no more, and close all connections that no worker has."""
        self._is_closed = True
        if self._balance_timer is not None:
            self._balance_timer.cancel()
        self._stop_accepting()
        self._listening.close()
        for worker in tuple(self._workers):
            self.remove_worker(worker)
        while self._waiting:
            socket.close(self._waiting.popleft().descriptor)

    # --- Accepting ------------------------------------------------------------------------------------------------

    def _start_accepting(self) -> None:
        if not self._is_accepting and not self._is_closed:
            self._is_accepting = True
            self._loop.add_reader(self._listening, self._accept)

    def _stop_accepting(self) -> None:
        """Leave new connections in the system's queue."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._is_accepting:
            self._is_accepting = False
            self._loop.remove_reader(self._listening)

    def _accept(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                sock, peer = self._listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in NO_RESOURCES:
                    log.error("accept_failed", error=error.strerror, retry_in_s=self._retry_s)  # noqa: TRY400 - no bug of ours
                    self._stop_accepting()
                    self._retry = self._loop.call_later(self._retry_s, self._start_accepting)
                    return
                continue  # the client has left already, or its network has: see accept(2)
            address = None if self.max_per_address is None else self._address_of(peer)
            number = next(self._numbers) % MAX_NUMBER
            if not self._give(_Waiting(number, sock.detach(), address, Message.NEW)):
                self._stop_accepting()
                return

    # --- Handing over ---------------------------------------------------------------------------------------------

    def _give(self, waiting: _Waiting) -> bool:
        """Hand a connection to a worker; if none can take it now, keep it until one can, and return False."""
        while (worker := self._choose(waiting.address)) is not None:
            try:
                is_sent = worker.channel.send_connection(waiting.message, waiting.number, waiting.descriptor)
            except OSError as error:
                if error.errno == errno.ETOOMANYREFS:  # on their way to all workers together
                    worker.is_full = True
                    self._loop.call_later(self._retry_s, self._has_room, worker)
                else:
                    worker.takes = False
                continue
            if is_sent:
                socket.close(waiting.descriptor)
                worker.add(waiting.number, waiting.address)
                worker.last_given = next(self._turns)
                if worker.recall_timer is None:
                    worker.recall_timer = self._loop.call_later(self._recall_s / 2, self._ask, worker)
                return True
            worker.is_full = True
            self._loop.add_writer(worker.channel.sock, self._has_room, worker)
        self._waiting.append(waiting)
        return False

    def _choose(self, address: object) -> WorkerConnections | None:
        """Return the worker with the fewest connections; of several, the one that has waited longest for one."""
        able = self._able()
        if address is not None and self.max_per_address is not None:
            limit = self.max_per_address
            able = [worker for worker in able if worker.by_address[address] < limit] or able
        return min(able, key=lambda worker: (len(worker.open), worker.last_given), default=None)

    def _able(self) -> list[WorkerConnections]:
        """Return the workers that can take a connection now; only those that are ready, if there is one."""
        able = [worker for worker in self._workers if worker.takes and not worker.is_withdrawn and not worker.is_full]
        return [worker for worker in able if worker.is_ready] or able

    def _serve_waiting(self) -> None:
        """Hand over what waits for a worker, and accept again if nothing is left."""
        while self._waiting:
            if not self._give(self._waiting.popleft()):
                self._stop_accepting()
                return
        if self._choose(None) is None:
            self._stop_accepting()
        elif self._retry is None:
            self._start_accepting()

    def _has_room(self, worker: WorkerConnections) -> None:
        if worker not in self._workers:
            return
        self._loop.remove_writer(worker.channel.sock)
        worker.is_full = False
        self._serve_waiting()

    def balance_soon(self) -> None:
        """Look soon whether the workers have about as many connections as each other."""
        if self._balance_timer is None and len(self._workers) > 1 and not self._is_closed:
            self._balance_timer = self._loop.call_later(self._balance_s, self._balance)

    def _balance(self) -> None:
        """Let the fullest worker return idle connections if another one has clearly fewer, as after its restart."""
        self._balance_timer = None
        able = self._able()
        if len(able) < 2:  # noqa: PLR2004 - there is no other worker
            return
        sizes = [len(worker.open) for worker in able]
        fullest, least = able[sizes.index(max(sizes))], min(sizes)
        if max(sizes) - least < 2 or least >= CLEARLY_FEWER * max(sizes):  # noqa: PLR2004 - moving one would swap them
            return
        with suppress(OSError):  # it has ended
            fullest.channel.send(Message.RETURN, (max(sizes) - least) // 2)
        self.balance_soon()

    # --- Taking back ----------------------------------------------------------------------------------------------

    def _ask(self, worker: WorkerConnections) -> None:
        """Ask whether *worker* reads, once for all connections that it got in a while."""
        with suppress(OSError):  # it has ended
            worker.channel.send(Message.ASK)
        worker.recall_timer = self._loop.call_later(self._recall_s / 2, self._recall, worker)

    def _recall(self, worker: WorkerConnections) -> None:
        """Take back what *worker*, which does not read, has not taken; as soon as another one takes connections."""
        if any(other.takes and not other.is_withdrawn for other in self._workers if other is not worker):
            count = self._take_back(worker)
            if worker.takes:
                log.warning("worker_takes_no_connections", worker=worker.number, given_to_others=count)
            worker.takes = False
            self._serve_waiting()
        self._ask(worker)  # what it was asked before may have been taken back, too

    @staticmethod
    def _stop_timer(worker: WorkerConnections) -> None:
        if worker.recall_timer is not None:
            worker.recall_timer.cancel()
            worker.recall_timer = None

    def _take_back(self, worker: WorkerConnections) -> int:
        """Let the connections that *worker* has not taken wait for other workers; return their number."""
        count = 0
        for received in worker.take_back():
            if received.message in {Message.NEW, Message.KEPT}:
                self._regain(worker, received, received.message)
                count += 1
        return count

    def _regain(self, worker: WorkerConnections, received: Received, message: Message) -> None:
        address = worker.discard(received.connection)
        if received.descriptor is not None:
            self._waiting.append(_Waiting(received.connection, received.descriptor, address, message))

    def _read(self, worker: WorkerConnections) -> None:
        """Read what *worker* says."""
        while received := worker.channel.receive():
            for one in received:
                match one.message:
                    case Message.CLOSED:
                        worker.discard(one.connection)
                    case Message.RETURNED_NEW:
                        self._regain(worker, one, Message.NEW)
                    case Message.RETURNED_KEPT:
                        self._regain(worker, one, Message.KEPT)
                    case Message.STOPS:
                        worker.takes = False
                        self._stop_timer(worker)
                        self._take_back(worker)
                    case Message.TAKES:
                        worker.takes = True
                        self._stop_timer(worker)
        self.balance_soon()
        if not self._is_closed and (self._waiting or not self._is_accepting):
            self._serve_waiting()
