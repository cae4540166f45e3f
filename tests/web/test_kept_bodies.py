"""Bodies that never change: validators, compression, and that each is made once."""

import asyncio
import gzip
from typing import cast

import pytest
from litestar.types import HTTPScope

from web.kept_bodies import KeptAnswer, KeptBody

TEXT = b"All that is here is said twice. " * 20
POLICY = (b"content-security-policy", b"default-src 'none'")


def scope(**headers: str) -> HTTPScope:
    encoded = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return cast("HTTPScope", {"type": "http", "headers": encoded})


def headers_of(answer: KeptAnswer) -> dict[bytes, bytes]:
    return dict(answer.kept_headers)


@pytest.fixture
def text() -> KeptBody:
    return KeptBody(lambda: TEXT, media_type="text/plain", headers=[POLICY])


async def test_body_is_sent_as_it_is_with_type_length_tag_and_own_headers(text: KeptBody) -> None:
    answer = await text.answer(scope())
    assert (answer.status_code, answer.body) == (200, TEXT)
    assert headers_of(answer) | {b"etag": b""} == {
        b"etag": b"",
        b"cache-control": b"no-cache",
        b"content-security-policy": b"default-src 'none'",
        b"vary": b"accept-encoding",
        b"content-type": b"text/plain",
        b"content-length": b"%d" % len(TEXT),
    }


@pytest.mark.parametrize(
    ("accepted", "is_compressed"),
    [
        ("gzip", True),
        ("gzip, deflate, br, zstd", True),
        ("br;q=1.0, GZIP;q=0.8", True),
        ("*", True),
        ("gzip; q=0.001", True),
        ("identity", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000, *", False),
        ("*;q=0", False),
        ("br", False),
        ("", False),
    ],
)
async def test_body_is_compressed_if_the_client_accepts_gzip(
    text: KeptBody, accepted: str, *, is_compressed: bool
) -> None:
    answer = await text.answer(scope(accept_encoding=accepted))
    assert headers_of(answer).get(b"content-encoding") == (b"gzip" if is_compressed else None)
    assert headers_of(answer)[b"vary"] == b"accept-encoding"
    assert (gzip.decompress(answer.body) if is_compressed else answer.body) == TEXT


async def test_body_that_gzip_cannot_shrink_is_never_compressed() -> None:
    answer = await KeptBody(lambda: bytes(range(256)), media_type="image/png").answer(scope(accept_encoding="gzip"))
    assert answer.body == bytes(range(256))
    assert {b"content-encoding", b"vary"}.isdisjoint(headers_of(answer))


async def test_known_tag_gets_304_without_a_body(text: KeptBody) -> None:
    plain, compressed = await text.answer(scope()), await text.answer(scope(accept_encoding="gzip"))
    tags = [headers_of(answer)[b"etag"].decode() for answer in (plain, compressed)]
    assert tags[0] != tags[1]
    for known in (tags[0], f'"other", {tags[0]}', f"W/{tags[0]}", "*"):
        answer = await text.answer(scope(if_none_match=known))
        assert (answer.status_code, answer.body) == (304, b"")
        assert headers_of(answer)[b"etag"] == tags[0].encode()
        assert {b"content-type", b"content-length", b"content-encoding"}.isdisjoint(headers_of(answer))
    for unknown in ('"other"', "", tags[1], tags[0].strip('"')):
        assert (await text.answer(scope(if_none_match=unknown))).status_code == 200
    assert (await text.answer(scope(if_none_match=tags[1], accept_encoding="gzip"))).status_code == 304


async def test_answer_varies_with_what_the_caller_of_the_method_names(text: KeptBody) -> None:
    assert headers_of(await text.answer(scope(), vary=b"accept"))[b"vary"] == b"accept, accept-encoding"


async def test_body_is_made_once_for_all_requests_and_again_after_an_error() -> None:
    calls: list[int] = []

    def read() -> bytes:
        calls.append(1)
        if len(calls) == 1:
            raise FileNotFoundError
        return TEXT

    body = KeptBody(read, media_type="text/plain")
    with pytest.raises(FileNotFoundError):
        await body.answer(scope())
    answers = await asyncio.gather(*(body.answer(scope()) for _ in range(5)))
    assert ([answer.body for answer in answers], len(calls)) == ([TEXT] * 5, 2)
