"""Connections and messages cross a socket pair in order, and whoever holds the receiving end may receive them."""

import os
import resource
import socket
import sys
from collections.abc import Iterator

import pytest

from host.handover_channel import HandoverChannel, Message

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no workers")

Pair = tuple[HandoverChannel, HandoverChannel]


@pytest.fixture
def pair() -> Iterator[Pair]:
    here, there = map(HandoverChannel, socket.socketpair())
    yield here, there
    here.close()
    there.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


def received(channel: HandoverChannel) -> list[tuple[Message, int, int | None]]:
    found = [one for part in iter(channel.receive, []) for one in part or ()]
    return [(one.message, one.connection, one.descriptor) for one in found]


def test_messages_and_connections_arrive_in_order(pair: Pair, pipe: tuple[int, int]) -> None:
    here, there = pair
    here.send(Message.ASK)
    assert here.send_connection(Message.NEW, 7, pipe[1])
    here.send(Message.CLOSED, 2**32 - 1)
    assert here.send_connection(Message.KEPT, 8, pipe[1])
    (ask, _, none), (new, seven, first), (closed, most, _), (kept, eight, second) = received(there)
    assert (ask, new, closed, kept) == (Message.ASK, Message.NEW, Message.CLOSED, Message.KEPT)
    assert (none, seven, most, eight) == (None, 7, 2**32 - 1, 8)
    assert first is not None
    assert second is not None
    os.write(first, b"a")
    os.write(second, b"b")
    assert os.read(pipe[0], 2) == b"ab"
    assert not os.get_inheritable(first)
    os.close(first)
    os.close(second)


def test_full_socket_takes_a_connection_once_it_was_read(pair: Pair, pipe: tuple[int, int]) -> None:
    here, there = pair
    sent = 0
    while here.send_connection(Message.NEW, sent, pipe[1]):
        sent += 1
    taken = received(there)
    assert [number for _, number, _ in taken] == list(range(sent))
    assert here.send_connection(Message.NEW, sent, pipe[1])
    taken += received(there)
    for _, _, descriptor in taken:
        assert descriptor is not None
        os.close(descriptor)


def test_messages_that_have_no_room_are_kept_and_follow(pair: Pair, pipe: tuple[int, int]) -> None:
    here, there = pair
    numbers = range(200_000)
    for number in numbers:
        here.queue(Message.CLOSED, number)
    assert not here.flush()
    assert not here.send_connection(Message.RETURNED_KEPT, 1, pipe[1])  # it would overtake them
    found: list[int] = []
    while len(found) < len(numbers):
        found += [number for _, number, _ in received(there)]
        here.flush()
    assert found == list(numbers)


def test_connection_for_which_no_file_may_be_opened_is_reported(pair: Pair, pipe: tuple[int, int]) -> None:
    here, there = pair
    assert here.send_connection(Message.NEW, 1, pipe[1])
    assert here.send_connection(Message.NEW, 2, pipe[1])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    try:
        lost = there.receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert [(one.connection, one.descriptor) for one in lost or ()] == [(1, None)]
    [(_, number, descriptor)] = received(there)
    assert number == 2
    assert descriptor is not None
    os.close(descriptor)


def test_end_of_the_other_side_is_none(pair: Pair) -> None:
    here, there = pair
    assert there.receive() == []
    here.close()
    assert there.receive() is None


def test_channel_that_was_closed_here_receives_nothing(pair: Pair) -> None:
    here, _ = pair
    here.close()
    assert here.receive() is None


def test_other_side_that_does_not_read_is_an_error_in_the_end(pair: Pair) -> None:
    here, _ = pair
    for number in range(200_000):
        here.queue(Message.CLOSED, number)
    assert not here.flush()
    for number in range(200_000):
        here.queue(Message.CLOSED, number)
    with pytest.raises(BlockingIOError):
        here.send(Message.CLOSED, 0)
