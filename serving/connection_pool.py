"""The connections of one server: who holds how much, and which connection gives way when the server is full.

Places and memory are shared by address. When they run out, the address that holds most gives way first, by the
connection that has gone longest without progress: idle ones, then unfinished heads, then bodies and answers. A
connection whose request is being answered is never closed.
"""

import time
from collections.abc import Callable, Iterable, MutableMapping
from operator import attrgetter
from typing import Any, Protocol

import structlog

from engine.errors import DrainingError, ServiceError
from serving.connection_limits import EXTRA_PART, MAX_EXTRA_CONNECTIONS, PROGRESS_BYTES, STALL_S, ConnectionLimits
from serving.protocol_errors import NoConnectionError
from telemetry.metrics import ConnectionCounts
from web.dialects import Dialect, Rejection
from web.request_context import Client
from web.security_headers import Header

IDLE, HEAD, TRANSFER = range(3)
"""What a connection waits for: a request, the rest of a head, or the rest of a body or of the delivery of an answer."""

log = structlog.get_logger()

EarlyRejection = Callable[[str, Client, Iterable[Header]], Rejection | None]


class EarlyReuse(Protocol):
    """Finds the answers to requests that came before."""

    def may_answer(self, scope: MutableMapping[str, Any], target: bytes) -> bool:
        """Return whether there may be an answer to a POST to *target*; if so, it is held, and *scope* is its own."""

    def find(self, scope: MutableMapping[str, Any], body: bytes) -> tuple[list[Header], bytes] | None:
        """Return headers and body of the answer, and record it as sent; None: the app has to answer."""

    def release(self) -> None:
        """Note that a request is no longer held."""


class AddressShare:
    """What the connections of one address hold together."""

    __slots__ = ("connections", "held_bytes", "key", "queued_requests", "waiting")

    def __init__(self, key: object) -> None:
        self.key = key
        self.connections = 0
        self.held_bytes = 0
        self.queued_requests = 0
        self.waiting: tuple[dict[Place, None], ...] = ({}, {}, {})  # by what they wait for; least recent progress first


class Place:
    """One connection's entry in the pool.

    Attributes:
        share: of the connection's address.
        abort: closes the connection at once.
        unsent: returns how many bytes of answers wait until the client receives them.
        held_bytes: of request bodies that have no answer yet.
        queued_requests: pipelined requests that wait for the answers to earlier ones.
        waits_for: `IDLE`, `HEAD` or `TRANSFER`; None: the server has to act next.
        begun_s: when it began to wait for its client.
        progressed_s: when the client last did something that counts as progress.
    """

    __slots__ = (
        "abort",
        "begun_s",
        "held_bytes",
        "is_open",
        "new_bytes",
        "progressed_s",
        "queued_requests",
        "share",
        "unsent",
        "unsent_then",
        "waits_for",
    )

    def __init__(self, share: AddressShare, abort: Callable[[], None], unsent: Callable[[], int]) -> None:
        self.share = share
        self.abort = abort
        self.unsent = unsent
        self.held_bytes = 0
        self.queued_requests = 0
        self.waits_for: int | None = None
        self.begun_s = self.progressed_s = 0.0
        self.new_bytes = 0  # since the last progress
        self.unsent_then = 0  # at the last progress
        self.is_open = True


_held_bytes = attrgetter("held_bytes")


def _connections_then_idle(share: AddressShare) -> tuple[int, bool]:
    return share.connections, bool(share.waiting[IDLE] or share.waiting[HEAD])


def peer_address(client: Client) -> str | None:
    return client[0] if client else None


class ConnectionPool:
    """Owns the state that all connections of a server share."""

    def __init__(
        self,
        limits: ConnectionLimits,
        *,
        count_failure: Callable[[str], None],
        reject_early: EarlyRejection,
        early_reuse: EarlyReuse | None = None,
        find_dialect: Callable[[str], Dialect | None] = lambda _: None,
        address_of: Callable[[Client], str | None] = peer_address,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start without connections.

        Args:
            limits: of every connection.
            count_failure: gets the code of each failure that happens before there is a request.
            reject_early: returns why a POST to this path, from this client, with these headers, is rejected now, and
                counts it; None: it is not.
            early_reuse: finds answers that the server may send itself; None: there are none.
            find_dialect: returns the dialect of a path, for errors before the app has begun; None: ours.
            address_of: returns the address, or the network, to which a peer's connections are counted. None: each of
                its connections counts by itself, as for a trusted proxy, behind which are many callers.
            clock: seconds.
        """
        self.limits = limits
        self.is_draining = False
        self.reject_early = reject_early
        self.early_reuse = early_reuse
        self.find_dialect = find_dialect
        self._count_failure = count_failure
        self._address_of = address_of
        self._clock = clock
        self._shares: dict[object, AddressShare] = {}
        self._waiting: tuple[dict[Place, None], ...] = ({}, {}, {})  # of all addresses, in the same order as theirs
        self._open = 0
        self._held_bytes = 0
        self._closed = 0

    def rejection(self, method: bytes) -> ServiceError | None:
        """Return why every request with this method is rejected now; None: it is not."""
        return DrainingError() if self.is_draining and method == b"POST" else None

    def report(self, error: ServiceError) -> None:
        """Log and count a connection that ends with *error*."""
        log.info("connection_refused", code=error.code)
        self._count_failure(error.code)

    def counts(self) -> ConnectionCounts:
        """Return what is open and held now."""
        idle, heads, transfers = (len(places) for places in self._waiting)
        receiving = heads + transfers
        return ConnectionCounts(
            open=self._open,
            idle=idle,
            receiving=receiving,
            processing=self._open - idle - receiving,
            body_bytes=self._held_bytes,
            closed_for_others=self._closed,
        )

    # --- What a connection does -----------------------------------------------------------------------------------

    def enter(self, client: Client, *, abort: Callable[[], None], unsent: Callable[[], int] = lambda: 0) -> Place:
        """Register a new connection of *client*; `admit` decides whether it may stay. For the others, see `Place`."""
        address = self._address_of(client)
        key: object = object() if address is None else address
        share = self._shares.get(key)
        if share is None:
            share = self._shares[key] = AddressShare(key)
        share.connections += 1
        self._open += 1
        return Place(share, abort, unsent)

    def leave(self, place: Place) -> None:
        """Forget a connection that has ended. The second time, do nothing."""
        if not place.is_open:
            return
        self.keep(place)
        self.release_bytes(place)
        self.count_queued(place, 0)
        place.is_open = False
        place.share.connections -= 1
        self._open -= 1
        if not place.share.connections:
            del self._shares[place.share.key]

    def wait(self, place: Place, what: int) -> None:
        """Let the connection be closed when others need its place: the client has to act next."""
        if not place.is_open:
            return
        if place.waits_for is not None:
            self.keep(place)
        place.waits_for = what
        place.begun_s = place.progressed_s = self._clock()
        place.new_bytes = 0
        place.unsent_then = place.unsent() if what == TRANSFER else 0
        self._waiting[what][place] = place.share.waiting[what][place] = None

    def keep(self, place: Place) -> None:
        """Do not close the connection: the server has to act next."""
        if place.waits_for is not None:
            del self._waiting[place.waits_for][place], place.share.waiting[place.waits_for][place]
            place.waits_for = None

    def count_queued(self, place: Place, requests: int) -> None:
        """Note how many pipelined requests of the connection wait for the answers to earlier ones."""
        place.share.queued_requests += requests - place.queued_requests
        place.queued_requests = requests

    # --- Places ---------------------------------------------------------------------------------------------------

    def admit(self, newcomer: Place) -> ServiceError | None:
        """Make room for *newcomer*, or return why it is refused."""
        share, limits = newcomer.share, self.limits
        own_limit, max_connections = limits.max_connections_per_address, limits.share_of(limits.max_connections)
        while own_limit is not None and share.connections > limits.share_of(own_limit):
            if (given := self._first_to_give(share)) is None:
                return NoConnectionError(own_limit, "MAX_CONNECTIONS_PER_ADDRESS")
            self._close(given)
        while self._open > max_connections:
            if (given := self._place_for(newcomer)) is None:
                is_only_one = share.connections == 1
                extra = min(max_connections // EXTRA_PART + 1, MAX_EXTRA_CONNECTIONS) if is_only_one else 0
                is_refused = self._open > max_connections + extra
                return NoConnectionError(limits.max_connections, "MAX_CONNECTIONS") if is_refused else None
            self._close(given)
        return None

    def _place_for(self, newcomer: Place) -> Place | None:
        """Return the connection to close for *newcomer*; None: all others are to be kept.

        A stalled connection gives way to every address; any other one, to an address that holds less than its own.
        Within its address, it gives way only while it has no complete head. Of addresses that hold the same, one with
        such a connection gives way.
        """
        largest = max(self._shares.values(), key=_connections_then_idle)
        others = newcomer.share.connections - 1
        if largest.connections > others and (given := self._first_to_give(largest)):
            return given
        if stalled := next(filter(None, map(self._stalled, self._waiting)), None):
            return stalled
        if not others and (begun := _first(self._waiting[IDLE]) or _first(self._waiting[HEAD])):
            return begun
        if largest is not newcomer.share and largest.connections > others + 1:
            return _first(largest.waiting[TRANSFER])
        return None

    def _first_to_give(self, share: AddressShare) -> Place | None:
        if without_head := _first(share.waiting[IDLE]) or _first(share.waiting[HEAD]):
            return without_head
        return self._stalled(share.waiting[TRANSFER])

    # --- Memory of request bodies ---------------------------------------------------------------------------------

    def reserve_bytes(self, place: Place, size: int) -> bool:
        """Count *size* more bytes of a body. If they exceed the limit, close connections whose bodies make no progress.

        Returns:
            False if the limit is exceeded although no other connection has to give way.
        """
        share, limit = place.share, self.limits.max_bodies_bytes
        place.held_bytes += size
        share.held_bytes += size
        self._held_bytes += size
        place.new_bytes += size
        if place.new_bytes >= PROGRESS_BYTES and place.waits_for == TRANSFER:
            self._note_progress(place)
        while self._held_bytes > limit:
            if (given := self._memory_for(place)) is None:
                extra = limit // EXTRA_PART
                return share.held_bytes <= extra and self._held_bytes <= limit + extra
            self._close(given)
        return True

    def release_bytes(self, place: Place, *, kept: int = 0) -> None:
        """Forget the bodies of the connection that are answered; *kept* bytes belong to requests that are not."""
        released = place.held_bytes - kept
        place.share.held_bytes -= released
        self._held_bytes -= released
        place.held_bytes = kept

    def _memory_for(self, place: Place) -> Place | None:
        """Return the connection to close so that *place* may hold more; None: all others are to be kept.

        A stalled body gives way to every address; any other one, to an address that holds less than its own. Within
        its address, it gives way only until it has shown that it makes progress.
        """
        largest = max(self._shares.values(), key=_held_bytes)
        slowest = _first_body(largest.waiting[TRANSFER], place)
        if slowest is not None:
            is_proven = self._clock() - slowest.begun_s >= STALL_S and not self._is_stalled(slowest)
            if largest.held_bytes > place.share.held_bytes or (largest is place.share and not is_proven):
                return slowest
        stalled = _first_body(self._waiting[TRANSFER], place)
        return stalled if self._is_stalled(stalled) else None

    # --- Progress -------------------------------------------------------------------------------------------------

    def _note_progress(self, place: Place) -> None:
        place.new_bytes, place.unsent_then = 0, place.unsent()
        place.progressed_s = self._clock()
        for places in (self._waiting[TRANSFER], place.share.waiting[TRANSFER]):
            del places[place]
            places[place] = None

    def _stalled(self, places: dict[Place, None]) -> Place | None:
        """Return the one of *places* that has gone longest without progress, if it is stalled."""
        while (place := _first(places)) is not None and self._is_stalled(place):
            if place.waits_for != TRANSFER or place.unsent_then - place.unsent() < PROGRESS_BYTES:
                return place
            self._note_progress(place)  # its client receives an answer, which is seen only here
        return None

    def _is_stalled(self, place: Place | None) -> bool:
        return place is not None and self._clock() - place.progressed_s >= STALL_S

    def _close(self, place: Place) -> None:
        self.leave(place)
        self._closed += 1
        place.abort()


def _first(places: dict[Place, None]) -> Place | None:
    return next(iter(places), None)


def _first_body(places: dict[Place, None], asking: Place) -> Place | None:
    return next((place for place in places if place.held_bytes and place is not asking), None)
