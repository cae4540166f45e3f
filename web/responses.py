"""How answers are written and sent."""

from collections.abc import Mapping
from typing import Any

import orjson
from litestar import Response
from litestar.response.base import ASGIResponse
from litestar.types import HTTPResponseBodyEvent, HTTPResponseStartEvent, Receive, Scope, Send

from api.answer_formats import JSON


class JsonResponse(Response[Any]):
    """JSON by orjson, which writes numpy's float32 directly and with no more digits than float32 has."""

    def render(self, content: Any, media_type: str, enc_hook: Any = None) -> bytes:  # noqa: ARG002 - Litestar's signature
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_UTC_Z)

    def to_asgi_response(self, *_: Any, status_code: int | None = None, **__: Any) -> ASGIResponse:
        """Litestar's own looks after cookies, background tasks and encodings, too, which no answer here has."""
        return WholeAnswer(self.status_code or status_code or 200, self.render(self.content, JSON), self.headers)


class WholeAnswer(ASGIResponse):
    """An answer of JSON, with no cookies, no background task and nothing that might change it."""

    def __init__(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """Encode the *headers*, and tell kind and length of the *body*."""
        encoded = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
        kind, length = (b"content-type", JSON.encode()), (b"content-length", b"%d" % len(body))
        self._start: HTTPResponseStartEvent = {
            "type": "http.response.start",
            "status": status,
            "headers": [*encoded, kind, length],
        }
        self._body: HTTPResponseBodyEvent = {"type": "http.response.body", "body": body, "more_body": False}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - as ASGI calls it
        """Send it, in one go."""
        await send(self._start)
        await send(self._body)
