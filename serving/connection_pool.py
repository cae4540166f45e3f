"""What the connections of one server share: the rules, who waits for whom, and what is refused unread."""

from collections.abc import Callable
from typing import Protocol

import structlog

from engine.errors import DrainingError, ServiceError
from serving.connection_limits import ConnectionLimits

log = structlog.get_logger()


class PooledConnection(Protocol):
    """A connection, as the lobby sees it."""

    held_bytes: int
    """Of bodies that have no answer yet."""

    def give_way(self) -> None:
        """Leave the place to another connection."""


class ConnectionPool:
    """Owns what the connections of one server have in common."""

    def __init__(
        self, rules: ConnectionLimits, *, note: Callable[[str], None], turn_away: Callable[[str], ServiceError | None]
    ) -> None:
        """Let nobody in yet.

        Args:
            rules: what holds for every connection.
            note: told the code of each failure that no route answers for.
            turn_away: why a POST to this path is refused, whatever its body holds, and counts it; None: it is not.
        """
        self.rules = rules
        self.is_draining = False
        self.turn_away = turn_away
        self._note = note
        self._held_bytes = 0
        self._awaited: dict[PooledConnection, None] = {}  # those whose caller's turn it is, longest first

    def refusal(self, method: bytes) -> ServiceError | None:
        """Why a request of this method is refused, whatever it asks for."""
        return DrainingError() if self.is_draining and method == b"POST" else None

    def note(self, error: ServiceError) -> None:
        log.info("connection_refused", code=error.code)
        self._note(error.code)

    def awaits(self, guest: PooledConnection) -> None:
        """It is the caller's turn."""
        self._awaited[guest] = None

    def forget(self, guest: PooledConnection) -> None:
        """It is the service's turn, or the connection has ended."""
        self._awaited.pop(guest, None)

    def hold(self, guest: PooledConnection, size: int) -> bool:
        """Count *size* more bytes of a body; false where there is no room, though those who send slowest gave way."""
        self._held_bytes += size
        while self._held_bytes > self.rules.max_bodies_bytes:
            slowest = next((other for other in self._awaited if other.held_bytes and other is not guest), None)
            if slowest is None:
                return False
            self._end(slowest)
        return True

    def let_go(self, size: int) -> None:
        self._held_bytes -= size

    def make_room_for(self, newcomer: PooledConnection) -> bool:
        """End the connection that has kept the service waiting longest; false where all wait for the service."""
        oldest = next((guest for guest in self._awaited if guest is not newcomer), None)
        if oldest is None:
            return False
        self._end(oldest)
        return True

    def _end(self, guest: PooledConnection) -> None:
        self.forget(guest)
        guest.give_way()
