"""Answers that are ready to be sent, made without the work that Litestar does for other kinds of answers."""

from collections.abc import Mapping
from typing import Any, Final

import orjson
from litestar.response.base import ASGIResponse
from litestar.types import HTTPResponseBodyEvent, HTTPResponseStartEvent, Receive, Scope, Send

JSON: Final = "application/json"


class PlainAnswer(ASGIResponse):
    """A complete answer, without cookies, background tasks or transformations."""

    def __init__(
        self, body: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None, media_type: str = JSON
    ) -> None:
        """Answer with *body* and *headers*, to which the content type and the length are added."""
        self.status_code = status
        self.body = body
        self.answer_headers = headers or {}
        self.media_type = media_type

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send the answer."""
        headers = encoded_headers(self.answer_headers)
        headers += [(b"content-type", self.media_type.encode()), (b"content-length", b"%d" % len(self.body))]
        start: HTTPResponseStartEvent = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": headers,
        }
        body: HTTPResponseBodyEvent = {"type": "http.response.body", "body": self.body, "more_body": False}
        await send(start)
        await send(body)


def json_answer(content: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> PlainAnswer:
    """Return *content* as JSON. Numpy arrays are written directly, with no more digits than float32 has."""
    return PlainAnswer(json_of(content), status=status, headers=headers)


def json_of(content: Any) -> bytes:
    """Return *content* as JSON."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_UTC_Z)


def encoded_headers(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Return *headers* as ASGI sends them."""
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
