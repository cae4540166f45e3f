"""JSON answers: serialised by orjson and sent without the work that Litestar does for other kinds of answers."""

from collections.abc import Mapping
from typing import Any, Final

import orjson
from litestar import Response
from litestar.response.base import ASGIResponse
from litestar.types import HTTPResponseBodyEvent, HTTPResponseStartEvent, Receive, Scope, Send

JSON: Final = "application/json"


class JsonResponse(Response[Any]):
    """A JSON answer by orjson, which writes numpy arrays directly, with no more digits than float32 has."""

    def render(self, content: Any, media_type: str, enc_hook: Any = None) -> bytes:  # noqa: ARG002 - Litestar's signature
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_UTC_Z)

    def to_asgi_response(self, *_: Any, status_code: int | None = None, **__: Any) -> ASGIResponse:
        """Skip what Litestar's method does for cookies, background tasks and encodings: no answer here has any."""
        return PlainJsonAnswer(self.status_code or status_code or 200, self.render(self.content, JSON), self.headers)


class ReadyResponse(Response[Any]):
    """An answer that is ready to be sent, for handlers that return other responses as well."""

    def __init__(self, answer: ASGIResponse) -> None:
        """Send *answer* as it is."""
        super().__init__(None)
        self._answer = answer

    def to_asgi_response(self, *_: Any, **__: Any) -> ASGIResponse:
        """Return the answer."""
        return self._answer


class PlainJsonAnswer(ASGIResponse):
    """A serialised JSON answer without cookies, background tasks or transformations."""

    def __init__(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """Encode *headers* and add the content type and length of *body*."""
        own = [(b"content-type", JSON.encode()), (b"content-length", b"%d" % len(body))]
        self._start: HTTPResponseStartEvent = {
            "type": "http.response.start",
            "status": status,
            "headers": [*encoded_headers(headers), *own],
        }
        self._body: HTTPResponseBodyEvent = {"type": "http.response.body", "body": body, "more_body": False}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send the answer."""
        await send(self._start)
        await send(self._body)


def encoded_headers(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Return *headers* as ASGI sends them."""
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
