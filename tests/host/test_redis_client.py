"""The parser of Redis replies. What a whole client does: `tests/result_cache/test_redis_results.py`."""

import asyncio
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as LostConnectionError
from redis.exceptions import InvalidResponse, OutOfMemoryError, ResponseError

from host.redis_client import MAX_LINE_BYTES, READ_BYTES, BoundedParser, OversizedReplyError

VALUES = st.none() | st.integers() | st.binary(max_size=40) | st.just(b"\r\n$-1\r\n") | st.just(b"x" * 3 * READ_BYTES)
REPLIES = st.recursive(VALUES, lambda replies: st.lists(replies, max_size=4), max_leaves=10)


def encoded(reply: Any) -> bytes:
    match reply:
        case None:
            return b"$-1\r\n"
        case int():
            return b":%d\r\n" % reply
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(reply), reply)
        case _:
            return b"*%d\r\n" % len(reply) + b"".join(map(encoded, reply))


def parser_of(reader: asyncio.StreamReader) -> BoundedParser:
    parser = BoundedParser(socket_read_size=READ_BYTES)
    parser.on_connect(SimpleNamespace(_reader=reader, encoder=None))  # type: ignore[no-untyped-call]
    return parser


async def parsed(data: bytes) -> Any:
    """Return the reply that *data* is; then the connection ends."""
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return await parser_of(reader).read_response()


@given(replies=st.lists(REPLIES, min_size=1, max_size=4), cuts=st.lists(st.integers(0, 10**6), max_size=8))
@settings(deadline=None)
def test_replies_are_read_however_they_are_cut(replies: list[Any], cuts: list[int]) -> None:
    data = b"".join(map(encoded, replies))
    bounds = sorted({0, len(data), *(cut % len(data) for cut in cuts)})

    async def read() -> list[Any]:
        reader = asyncio.StreamReader()
        parser = parser_of(reader)

        async def read_all() -> list[Any]:
            return [await parser.read_response() for _ in replies]

        reading = asyncio.create_task(read_all())
        for start, stop in pairwise(bounds):
            await asyncio.sleep(0)
            reader.feed_data(data[start:stop])
        found = await reading
        assert not await parser.can_read(), "nothing is left over"
        return found

    assert asyncio.run(read()) == replies


async def test_errors_are_returned() -> None:
    first, second = await parsed(b"*2\r\n-OOM command not allowed\r\n-WRONGTYPE of key\r\n")
    assert isinstance(first, OutOfMemoryError)
    assert type(second) is ResponseError


@pytest.mark.parametrize("data", [b"", b"$3\r\nab", b"$3", b"*2\r\n:1\r\n", b"-LOADING the dataset\r\n"])
async def test_reply_that_never_comes_is_a_lost_connection(data: bytes) -> None:
    with pytest.raises(LostConnectionError):
        await parsed(data)


@pytest.mark.parametrize("data", [b"$8388609\r\n", b"*1\r\n" * 2 + b"$8388600\r\n", b"*40000\r\n" + b":1\r\n" * 40_000])
async def test_reply_that_announces_too_much_is_not_read(data: bytes) -> None:
    with pytest.raises(OversizedReplyError):
        await parsed(data)


async def test_line_without_end_is_not_read() -> None:
    with pytest.raises(InvalidResponse, match="too long"):
        await parsed(b"+" + b"x" * 4 * MAX_LINE_BYTES)
