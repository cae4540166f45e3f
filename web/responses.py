"""Answers that are ready to be sent, made without the work that Litestar does for other kinds of answers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson
from litestar.response.base import ASGIResponse
from litestar.types import HTTPResponseBodyEvent, HTTPResponseStartEvent, Receive, Scope, Send

from engine.single_hit import SingleHit

JSON: Final = "application/json"


@dataclass(frozen=True, slots=True)
class Duration:
    """The member of a JSON answer that states how long the request took: it is written anew each time.

    Attributes:
        key: the member's name.
        units_per_s: its unit.
        digits: after the decimal point; None: it is an integer.
    """

    key: str
    units_per_s: float
    digits: int | None

    def split(self, body: bytes) -> tuple[bytes, bytes]:
        """Return what comes before and after the duration in *body*."""
        start, key, rest = body.rpartition(b'"%s":' % self.key.encode())
        return start + key, rest.lstrip(b"0123456789.e+-")

    def write(self, seconds: float) -> bytes:
        return orjson.dumps(round(seconds * self.units_per_s, self.digits))


class PlainAnswer(ASGIResponse):
    """A complete answer, without cookies, background tasks or transformations."""

    def __init__(
        self,
        body: bytes,
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str = JSON,
        single_hit: SingleHit | None = None,
        duration: Duration | None = None,
    ) -> None:
        """Answer with *body* and *headers*, to which the content type and the length are added.

        Args:
            body: the whole body.
            status: of the answer.
            headers: of the answer.
            media_type: of *body*.
            single_hit: with it, the same request may get this answer again; None: it may not.
            duration: the only member of *body* that differs then; None: none does.
        """
        self.status_code = status
        self.body = body
        self.answer_headers = headers or {}
        self.media_type = media_type
        self.single_hit = single_hit
        self.duration = duration

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send the answer."""
        headers = encoded_headers(self.answer_headers)
        headers.append((b"content-type", self.media_type.encode()))
        await send_answer(send, headers, self.body, status=self.status_code)


async def send_answer(send: Send, headers: Iterable[tuple[bytes, bytes]], body: bytes, *, status: int = 200) -> None:
    """Send a complete answer; the length is added to its *headers*."""
    start: HTTPResponseStartEvent = {
        "type": "http.response.start",
        "status": status,
        "headers": [*headers, (b"content-length", b"%d" % len(body))],
    }
    end: HTTPResponseBodyEvent = {"type": "http.response.body", "body": body, "more_body": False}
    await send(start)
    await send(end)


def json_answer(
    content: Any,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    single_hit: SingleHit | None = None,
    duration: Duration | None = None,
) -> PlainAnswer:
    """Return *content* as JSON. Numpy arrays are written directly, with no more digits than float32 has.

    The other arguments are those of `PlainAnswer`.
    """
    return PlainAnswer(json_of(content), status=status, headers=headers, single_hit=single_hit, duration=duration)


def json_of(content: Any) -> bytes:
    """Return *content* as JSON."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_UTC_Z)


def encoded_headers(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Return *headers* as ASGI sends them."""
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
