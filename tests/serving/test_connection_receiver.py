"""A worker's end of the socket pair, when the supervisor has ended, is busy, or sends what cannot arrive."""

import asyncio
import socket
import sys

import pytest

from host.handover_channel import HandoverChannel, Message
from serving.connection_receiver import ConnectionReceiver

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no workers")


def receiver_at(sock: socket.socket) -> ConnectionReceiver:
    return ConnectionReceiver(sock, make_protocol=lambda _: asyncio.Protocol(), on_retire=lambda: None)


async def message(channel: HandoverChannel) -> tuple[Message, int]:
    """Wait for the next message that does not only say that the worker takes connections."""
    while True:
        for received in channel.receive() or ():
            if received.message is not Message.TAKES:
                return received.message, received.connection
        await asyncio.sleep(0)


async def test_a_connection_that_did_not_arrive_is_reported_as_ended() -> None:
    here, there = socket.socketpair()
    with here, there:
        receiver, supervisor = receiver_at(here), HandoverChannel(there)
        supervisor.send(Message.NEW, 5)  # without a descriptor, as if too many files were open
        assert await message(supervisor) == (Message.CLOSED, 5)
        receiver.stop()


async def test_no_connection_can_be_given_back_to_a_supervisor_that_has_ended() -> None:
    here, there = socket.socketpair()
    with here:
        receiver = receiver_at(here)
        there.close()
        assert not receiver.give_back(1, here.fileno(), is_kept=True)
        receiver.stop()


async def test_reports_to_a_busy_supervisor_arrive_later() -> None:
    here, there = socket.socketpair()
    with here, there:
        receiver, supervisor = receiver_at(here), HandoverChannel(there)
        numbers = range(200_000)
        for number in numbers:
            receiver.report_closed(number)
        found: list[int] = []
        while len(found) < len(numbers):
            found += [one.connection for one in supervisor.receive() or () if one.message is Message.CLOSED]
            await asyncio.sleep(0)
        assert found == list(numbers)
        receiver.stop()
