"""The connections of one server: which ones wait for their clients, and which ones end when the server is full."""

from collections.abc import Callable, Iterable
from typing import Protocol

import structlog

from engine.errors import DrainingError, ServiceError
from serving.connection_limits import ConnectionLimits
from web.request_context import Client
from web.security_headers import Header

log = structlog.get_logger()

EarlyRejection = Callable[[str, Client, Iterable[Header]], ServiceError | None]


class PooledConnection(Protocol):
    """What the pool needs of a connection."""

    held_bytes: int
    """Bytes of request bodies that have no answer yet."""

    def abort(self) -> None:
        """Close the connection at once."""


class ConnectionPool:
    """Owns the state that all connections of a server share."""

    def __init__(
        self,
        limits: ConnectionLimits,
        *,
        count_failure: Callable[[str], None],
        reject_early: EarlyRejection,
    ) -> None:
        """Start without connections.

        Args:
            limits: of every connection.
            count_failure: gets the code of each failure that happens before there is a request.
            reject_early: returns why a POST to this path, from this client, with these headers, is rejected now, and
                counts it; None: it is not.
        """
        self.limits = limits
        self.is_draining = False
        self.reject_early = reject_early
        self._count_failure = count_failure
        self._held_bytes = 0
        self._waiting_for_client: dict[PooledConnection, None] = {}  # those that have waited longest first

    def rejection(self, method: bytes) -> ServiceError | None:
        """Return why every request with this method is rejected now; None: it is not."""
        return DrainingError() if self.is_draining and method == b"POST" else None

    def report(self, error: ServiceError) -> None:
        """Log and count a connection that ends with *error*."""
        log.info("connection_refused", code=error.code)
        self._count_failure(error.code)

    def mark_waiting_for_client(self, connection: PooledConnection) -> None:
        """Let *connection* be closed when others need its place: the client has to act next."""
        self._waiting_for_client[connection] = None

    def unmark(self, connection: PooledConnection) -> None:
        """Keep *connection*: the server has to act next. Or drop it, as it has ended."""
        self._waiting_for_client.pop(connection, None)

    def reserve_bytes(self, connection: PooledConnection, size: int) -> bool:
        """Count *size* more bytes of a body. If they exceed the limit, close connections that receive bodies slowly.

        Returns:
            False if the limit is exceeded although no other connection is left to close.
        """
        self._held_bytes += size
        while self._held_bytes > self.limits.max_bodies_bytes:
            others = (other for other in self._waiting_for_client if other.held_bytes and other is not connection)
            slowest = next(others, None)
            if slowest is None:
                return False
            self._abort(slowest)
        return True

    def release_bytes(self, size: int) -> None:
        self._held_bytes -= size

    def close_longest_waiting(self, newcomer: PooledConnection) -> bool:
        """Make room for *newcomer*: close the connection that has waited longest for its client.

        Returns:
            False if no connection waits for its client.
        """
        longest = next((other for other in self._waiting_for_client if other is not newcomer), None)
        if longest is None:
            return False
        self._abort(longest)
        return True

    def _abort(self, connection: PooledConnection) -> None:
        self.unmark(connection)
        connection.abort()
