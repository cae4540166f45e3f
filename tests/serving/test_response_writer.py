"""What leaves a connection together, and in which order."""

import asyncio

import pytest

from serving.response_writer import ResponseWriter

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"


class Recorder:
    """A transport that remembers what left together."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes, /) -> None:
        self.sent.append(data)

    def writelines(self, data: list[bytes], /) -> None:
        self.sent.append(b"".join(data))

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def transport() -> Recorder:
    return Recorder()


@pytest.fixture
async def outlet(transport: Recorder) -> ResponseWriter:
    return ResponseWriter(transport, asyncio.get_running_loop())


async def test_head_and_body_leave_together(outlet: ResponseWriter, transport: Recorder) -> None:
    outlet.write(HEAD)
    outlet.write(b"body")
    await asyncio.sleep(0)
    assert transport.sent == [HEAD + b"body"]


async def test_a_head_does_not_wait_for_a_body_that_comes_later(outlet: ResponseWriter, transport: Recorder) -> None:
    outlet.write(HEAD)
    assert transport.sent == []
    await asyncio.sleep(0)
    assert transport.sent == [HEAD]
    outlet.write(b"body")
    assert transport.sent == [HEAD, b"body"]


async def test_pieces_after_the_first_leave_as_they_come(outlet: ResponseWriter, transport: Recorder) -> None:
    for data in (HEAD, b"one", b"two"):
        outlet.write(data)
    assert transport.sent == [HEAD + b"one", b"two"]


async def test_a_piece_that_looks_like_a_head_keeps_its_place(outlet: ResponseWriter, transport: Recorder) -> None:
    for data in (HEAD, b"body", b"HTTP/1.1 is what this text is about", b"."):
        outlet.write(data)
    assert b"".join(transport.sent) == HEAD + b"bodyHTTP/1.1 is what this text is about."


async def test_a_head_without_a_body_leaves_before_the_end(outlet: ResponseWriter, transport: Recorder) -> None:
    outlet.write(HEAD)
    assert not outlet.is_closing()
    outlet.close()
    assert transport.sent == [HEAD]
    assert outlet.is_closing()


async def test_nothing_is_written_to_a_connection_that_has_ended_meanwhile(
    outlet: ResponseWriter, transport: Recorder
) -> None:
    outlet.write(HEAD)
    transport.close()
    await asyncio.sleep(0)
    assert transport.sent == []
