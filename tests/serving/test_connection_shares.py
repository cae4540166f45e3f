"""Which connection gives way when connections or memory run out: decided by share and progress, with the time set."""

from collections.abc import Callable
from itertools import count

import pytest

from engine.errors import ServiceError
from serving.connection_limits import EXTRA_PART, PROGRESS_BYTES, STALL_S, ConnectionLimits
from serving.connection_pool import HEAD, IDLE, TRANSFER, ConnectionPool, Place
from serving.protocol_errors import NoConnectionError
from tests.support.clock import ManualClock

MAX_CONNECTIONS = 16
MAX_BYTES = 64 * PROGRESS_BYTES


class Pool:
    """A pool with small limits, and the names of the connections that it has closed."""

    def __init__(self, *, max_connections_per_address: int | None = None, workers: int = 1) -> None:
        limits = ConnectionLimits(
            header_timeout_s=1,
            body_timeout_s=1,
            keep_alive_timeout_s=1,
            max_header_bytes=1,
            max_bodies_bytes=MAX_BYTES,
            max_connections=MAX_CONNECTIONS,
            max_connections_per_address=max_connections_per_address,
            workers=workers,
        )
        self.clock = ManualClock()
        self.pool = ConnectionPool(
            limits,
            count_failure=lambda _: None,
            reject_early=lambda *_: None,
            address_of=lambda client: client[0] if client and client[0] != "proxy" else None,
            clock=self.clock,
        )
        self.closed: list[str] = []
        self._numbers = count()

    def connect(
        self, address: str, waits_for: int | None = IDLE, *, unsent: Callable[[], int] = lambda: 0
    ) -> tuple[Place, ServiceError | None]:
        """Connect from *address*; the connection then waits for this, or is at work."""
        name = f"{address} {next(self._numbers)}"
        place = self.pool.enter((address, 1), abort=lambda: self.closed.append(name), unsent=unsent)
        error = self.pool.admit(place)
        self.pool.wait(place, IDLE)
        self.set(place, waits_for)
        return place, error

    def set(self, place: Place, waits_for: int | None) -> None:
        if waits_for is None:
            self.pool.keep(place)
        else:
            self.pool.wait(place, waits_for)

    def fill(self, address: str, waits_for: int | None = IDLE, *, places: int = MAX_CONNECTIONS) -> list[Place]:
        return [self.connect(address, waits_for)[0] for _ in range(places)]

    def pass_time(self, seconds: float = STALL_S) -> None:
        self.clock.now_s += seconds


@pytest.fixture
def pool() -> Pool:
    return Pool()


# --- Places -------------------------------------------------------------------------------------------------------


def test_address_with_most_connections_gives_way_however_long_others_are_idle(pool: Pool) -> None:
    pool.connect("quiet")
    pool.pass_time()
    pool.fill("crowd", places=MAX_CONNECTIONS - 1)
    assert pool.connect("new")[1] is None
    assert pool.closed == ["crowd 1"]


@pytest.mark.parametrize("others", [pytest.param(HEAD, id="heads"), pytest.param(TRANSFER, id="bodies")])
def test_idle_connections_of_an_address_give_way_before_stalled_requests(pool: Pool, others: int) -> None:
    pool.fill("crowd", others, places=MAX_CONNECTIONS - 2)
    pool.pass_time()
    pool.fill("crowd", IDLE, places=2)
    pool.connect("new")
    pool.connect("crowd")
    assert pool.closed == ["crowd 14", "crowd 15"]


def test_heads_give_way_before_stalled_bodies(pool: Pool) -> None:
    pool.fill("crowd", TRANSFER, places=8)
    pool.fill("crowd", HEAD, places=8)
    pool.pass_time()
    pool.connect("new")
    assert pool.closed == ["crowd 8"]


def test_stranger_that_is_idle_gives_way_before_a_body_that_progresses(pool: Pool) -> None:
    uploads = pool.fill("uploads", TRANSFER, places=MAX_CONNECTIONS - 1)
    pool.connect("quiet")
    pool.pass_time()
    for place in uploads:
        assert pool.pool.reserve_bytes(place, PROGRESS_BYTES)
    assert pool.connect("new")[1] is None
    assert pool.closed == ["quiet 15"]


def test_thousand_idle_strangers_do_not_close_an_upload_that_progresses(pool: Pool) -> None:
    upload, _ = pool.connect("keyed", TRANSFER)
    for number in range(1010):
        pool.connect(f"stranger-{number % 7}")
        pool.pass_time(0.01)
        if not number % 100:
            pool.pool.reserve_bytes(upload, PROGRESS_BYTES)
    assert upload.is_open
    assert len(pool.closed) == 1011 - MAX_CONNECTIONS


def test_idle_stranger_gives_way_before_the_stalled_body_of_an_address_that_holds_as_much(pool: Pool) -> None:
    pool.connect("paused", TRANSFER)
    for number in range(1, MAX_CONNECTIONS):
        pool.connect(f"stranger-{number}")
    pool.pass_time()
    assert pool.connect("new")[1] is None
    assert pool.closed == ["stranger-1 1"]


def test_answer_that_is_being_received_gives_way_after_one_that_is_not(pool: Pool) -> None:
    unsent = 100 * PROGRESS_BYTES
    received, _ = pool.connect("one", TRANSFER, unsent=lambda: unsent)
    stalled, _ = pool.connect("one", TRANSFER, unsent=lambda: 100 * PROGRESS_BYTES)
    pool.fill("one", None, places=MAX_CONNECTIONS - 2)
    pool.pass_time()
    unsent -= PROGRESS_BYTES
    assert pool.connect("one", None)[1] is None
    assert (received.is_open, stalled.is_open) == (True, False)
    pool.pass_time()
    unsent -= PROGRESS_BYTES - 1
    assert pool.connect("one", None)[1] is None
    assert not received.is_open


def test_body_that_progresses_gives_way_to_an_address_that_holds_less_only(pool: Pool) -> None:
    pool.fill("uploads", TRANSFER)
    _, error = pool.connect("uploads")
    assert isinstance(error, NoConnectionError)
    assert pool.connect("new", None)[1] is None
    assert pool.closed == ["uploads 16", "uploads 0"]  # first the connection that was refused


def test_bytes_drop_by_drop_are_no_progress(pool: Pool) -> None:
    dripping, fast = pool.fill("one", TRANSFER, places=2)
    pool.fill("one", None, places=MAX_CONNECTIONS - 2)
    for _ in range(20):
        pool.pool.reserve_bytes(dripping, 1)
        pool.pool.reserve_bytes(fast, PROGRESS_BYTES // 8)
        pool.pass_time(STALL_S / 10)
    assert pool.connect("one", None)[1] is None
    assert (dripping.is_open, fast.is_open) == (False, True)


def test_address_without_connections_always_gets_one_and_no_answer_in_progress_is_cut(pool: Pool) -> None:
    at_work = pool.fill("crowd", None)
    assert isinstance(pool.connect("crowd")[1], NoConnectionError)
    for number in range(MAX_CONNECTIONS // EXTRA_PART + 1):
        assert pool.connect(f"new-{number}", None)[1] is None
    assert isinstance(pool.connect("new-0")[1], NoConnectionError)
    assert all(place.is_open for place in at_work)


def test_connections_of_a_trusted_proxy_count_one_by_one(pool: Pool) -> None:
    through = pool.fill("proxy", places=MAX_CONNECTIONS - 3)
    pool.fill("direct", places=3)
    for _ in range(2):
        pool.connect("proxy", None)
    assert pool.closed == ["direct 13", "direct 14"]
    assert all(place.is_open for place in through)


def test_limit_per_address_closes_its_own_idle_connection_or_refuses() -> None:
    pool = Pool(max_connections_per_address=2)
    pool.connect("other")
    pool.fill("one", places=2)
    assert pool.connect("one", None)[1] is None
    assert pool.closed == ["one 1"]
    pool.pool.keep(pool.connect("one")[0])
    _, error = pool.connect("one")
    assert isinstance(error, NoConnectionError)
    assert "MAX_CONNECTIONS_PER_ADDRESS" in error.detail
    assert pool.connect("proxy")[1] is pool.connect("proxy")[1] is pool.connect("proxy")[1] is None


def test_refused_connection_leaves_no_place_for_the_next_one_of_its_address() -> None:
    pool = Pool(max_connections_per_address=2)
    pool.fill("one", None, places=2)
    refused = [pool.connect("one", IDLE) for _ in range(4)]  # the client may still read why
    assert all(isinstance(error, NoConnectionError) for _, error in refused)


def test_worker_has_its_share_of_the_limits_and_errors_name_the_whole() -> None:
    """Shares are rounded up: of an odd limit, one of two workers may have one more than the other."""
    pool = Pool(max_connections_per_address=5, workers=2)
    pool.fill("one", None, places=3)
    _, error = pool.connect("one")
    assert isinstance(error, NoConnectionError)
    assert error.detail == "All 5 connections (MAX_CONNECTIONS_PER_ADDRESS) are in use."
    strangers = [pool.connect(f"other {number}")[0] for number in range(MAX_CONNECTIONS)]
    assert sum(place.is_open for place in strangers) + 3 <= MAX_CONNECTIONS // 2 + 1


def test_place_of_a_closed_connection_is_free_at_once(pool: Pool) -> None:
    places = pool.fill("one", None)
    pool.pool.leave(places[0])
    pool.pool.leave(places[0])
    assert pool.connect("one")[1] is None
    assert pool.closed == []


# --- Memory -------------------------------------------------------------------------------------------------------


def receive(pool: Pool, address: str, size: int) -> Place:
    """Receive the begin of a body of *size* bytes, which then waits for its rest."""
    place, _ = pool.connect(address, TRANSFER)
    assert pool.pool.reserve_bytes(place, size)
    return place


def test_stalled_bodies_give_way_before_one_that_progresses(pool: Pool) -> None:
    fast = receive(pool, "one", MAX_BYTES // 2)
    stalled = [receive(pool, "one", MAX_BYTES // 8) for _ in range(4)]
    for _ in range(4):
        pool.pass_time()
        assert pool.pool.reserve_bytes(fast, PROGRESS_BYTES)
    assert fast.is_open
    assert [place.is_open for place in stalled] == [False, True, True, True]


def test_address_whose_bodies_hold_most_gives_way_even_if_they_progress(pool: Pool) -> None:
    crowd = [receive(pool, "crowd", MAX_BYTES // 4) for _ in range(3)]
    other = receive(pool, "other", MAX_BYTES // 4)
    pool.pass_time()
    for place in crowd:
        pool.pool.release_bytes(place)
        assert pool.pool.reserve_bytes(place, MAX_BYTES // 4)
    assert pool.pool.reserve_bytes(other, PROGRESS_BYTES)
    assert [place.is_open for place in [*crowd, other]] == [False, True, True, True]


def test_body_beyond_the_share_is_refused_while_all_others_of_its_address_progress(pool: Pool) -> None:
    places = [receive(pool, "one", MAX_BYTES // 4) for _ in range(4)]
    pool.pass_time()
    for place in places:
        pool.pool.release_bytes(place)
        assert pool.pool.reserve_bytes(place, MAX_BYTES // 4)
    newcomer, _ = pool.connect("one", TRANSFER)
    assert not pool.pool.reserve_bytes(newcomer, MAX_BYTES // EXTRA_PART)
    assert pool.closed == []


def test_address_that_holds_little_gets_memory_while_another_one_has_all_of_it_at_work(pool: Pool) -> None:
    for _ in range(2):
        pool.pool.keep(receive(pool, "crowd", MAX_BYTES // 2))
    little = receive(pool, "other", MAX_BYTES // EXTRA_PART)
    assert not pool.pool.reserve_bytes(little, 1)
    assert pool.closed == []


def test_memory_of_a_closed_or_answered_connection_is_free_again(pool: Pool) -> None:
    first, second = receive(pool, "one", MAX_BYTES // 2), receive(pool, "one", MAX_BYTES // 2)
    pool.pool.leave(first)
    pool.pool.release_bytes(second)
    assert pool.pool.counts().body_bytes == 0
    receive(pool, "two", MAX_BYTES)
    assert pool.closed == []


def test_counts_are_those_of_the_open_connections(pool: Pool) -> None:
    states: list[tuple[int | None, Callable[[], int]]] = [
        (IDLE, lambda: pool.pool.counts().idle),
        (HEAD, lambda: pool.pool.counts().receiving),
        (TRANSFER, lambda: pool.pool.counts().receiving),
        (None, lambda: pool.pool.counts().processing),
    ]
    for state, reported in states:
        before = reported()
        pool.fill("one", state, places=2)
        assert reported() == before + 2
    assert pool.pool.counts().open == 8
