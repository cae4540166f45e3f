"""Two processes of the service call each other over a socket pair."""

import asyncio
import socket

import pytest

from host.message_channel import (
    MAX_MESSAGE_BYTES,
    MAX_WAITING_BYTES,
    ChannelClosedError,
    MessageChannel,
    RemoteCallError,
)
from tests.support.channels import channel_ends

TIMEOUT_S = 10.0


async def later(payload: bytes) -> bytes:
    await asyncio.sleep(0)
    return payload[::-1]


async def test_each_end_calls_the_other_and_gets_the_answer_to_its_own_call() -> None:
    async with channel_ends({"upper": bytes.upper}, {"reverse": later}) as (left, right):
        answers = await asyncio.gather(
            *(left.call("reverse", b"%d." % number, timeout_s=TIMEOUT_S) for number in range(100)),
            *(right.call("upper", b"x%d" % number, timeout_s=TIMEOUT_S) for number in range(100)),
        )
    assert answers == [(b"%d." % n)[::-1] for n in range(100)] + [b"X%d" % n for n in range(100)]


async def test_a_message_larger_than_the_sockets_buffer_arrives_whole() -> None:
    payload = bytes(range(256)) * 12_000
    async with channel_ends({}, {"echo": bytes}) as (left, _):
        assert await left.call("echo", payload, timeout_s=TIMEOUT_S) == payload


async def test_notices_arrive_in_order_before_a_later_call() -> None:
    seen: list[bytes] = []

    def note(payload: bytes) -> bytes:
        seen.append(payload)
        return b""

    async with channel_ends({}, {"note": note, "echo": bytes}) as (left, _):
        assert all(left.notify("note", b"%d" % number) for number in range(10))
        await left.call("echo", timeout_s=TIMEOUT_S)
    assert seen == [b"%d" % number for number in range(10)]


@pytest.mark.parametrize("method", ["fails", "fails_later", "unknown"])
async def test_a_handler_that_fails_is_an_error_of_that_call_only(method: str) -> None:
    def fails(_: bytes) -> bytes:
        raise ValueError

    async def fails_later(payload: bytes) -> bytes:
        return fails(payload)

    async with channel_ends({}, {"fails": fails, "fails_later": fails_later, "echo": bytes}) as (left, _):
        with pytest.raises(RemoteCallError):
            await left.call(method, timeout_s=TIMEOUT_S)
        assert await left.call("echo", b"still here", timeout_s=TIMEOUT_S) == b"still here"


async def test_calls_end_when_the_other_process_does() -> None:
    waits = asyncio.Event()

    async def never(_: bytes) -> bytes:
        waits.set()
        await asyncio.Event().wait()
        return b""

    async with channel_ends({}, {"never": never}) as (left, right):
        call = asyncio.create_task(left.call("never", timeout_s=TIMEOUT_S))
        await waits.wait()
        right.close()
        with pytest.raises(ChannelClosedError):
            await call
        await left.run()
        assert not left.is_open
        assert not left.notify("never")
        with pytest.raises(ChannelClosedError):
            await left.call("never", timeout_s=TIMEOUT_S)


async def test_an_answer_that_comes_too_late_is_a_time_out_and_harms_no_later_call() -> None:
    go_on = asyncio.Event()

    async def slow(payload: bytes) -> bytes:
        await go_on.wait()
        return payload

    async with channel_ends({}, {"slow": slow}) as (left, _):
        with pytest.raises(TimeoutError):
            await left.call("slow", b"first", timeout_s=0)
        go_on.set()
        assert await left.call("slow", b"second", timeout_s=TIMEOUT_S) == b"second"


async def test_nothing_more_is_sent_to_an_end_that_does_not_read() -> None:
    silent, sock = socket.socketpair()
    with silent:
        channel = MessageChannel(sock, {})
        await channel.open()
        half = bytes(MAX_WAITING_BYTES // 2)
        sent = [channel.notify("note", half) for _ in range(6)]
        assert sent[0]
        assert not sent[-1]
        with pytest.raises(ChannelClosedError):
            await channel.call("note", timeout_s=TIMEOUT_S)
        channel.close()


@pytest.mark.parametrize(
    "sent", [(MAX_MESSAGE_BYTES + 1).to_bytes(4), b"\0\0\0\1\xc1", b"\0\0\0\2\x91\0"], ids=["long", "garbage", "short"]
)
async def test_a_broken_message_closes_the_channel(sent: bytes) -> None:
    other, sock = socket.socketpair()
    with other:
        channel = MessageChannel(sock, {})
        await channel.open()
        other.sendall(sent)
        async with asyncio.timeout(TIMEOUT_S):
            await channel.run()
        assert not channel.is_open


async def test_a_channel_may_be_closed_before_it_was_opened() -> None:
    here, there = socket.socketpair()
    with there:
        channel = MessageChannel(here, {})
        channel.close()
        assert not channel.notify("note")
        assert there.recv(1) == b""
