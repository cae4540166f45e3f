"""Bodies that never change while the process runs, such as files: sent with a validator, compressed if accepted."""

import asyncio
import gzip
import hashlib
from collections.abc import Callable, Iterable, Sequence

from litestar.response.base import ASGIResponse
from litestar.types import HTTPScope, Receive, Scope, Send

from web.security_headers import Header

COMPRESSION_LEVEL = 9
"""The highest: each body is compressed once."""
MIN_SAVING = 0.9
"""A body is sent compressed only if that makes it smaller than this share of its size. Images are not."""


class KeptBody:
    """One body. It is made at the first request for it, in a thread: reading and compressing may take 0.1 s."""

    def __init__(self, read: Callable[[], bytes], *, media_type: str, headers: Sequence[Header] = ()) -> None:
        """Keep what *read* returns.

        Args:
            read: returns the body; called once, unless it raises an error.
            media_type: the Content-Type.
            headers: sent with each answer, also with 304.
        """
        self._read = read
        self._media_type = media_type.encode()
        self._headers = tuple(headers)
        self._forms: dict[bytes, tuple[bytes, bytes]] = {}
        self._making = asyncio.Lock()

    async def answer(self, scope: HTTPScope, *, vary: bytes = b"") -> "KeptAnswer":
        """Return the answer to a GET request: the body in the form that the client accepts, or 304.

        Args:
            scope: of the request.
            vary: names of further request headers on which the answer depends.
        """
        if not self._forms:
            async with self._making:
                self._forms = self._forms or await asyncio.to_thread(self._make)
        accepts_gzip = _accepts_gzip(_values(scope, b"accept-encoding"))
        encoding = b"gzip" if accepts_gzip and b"gzip" in self._forms else b""
        tag, body = self._forms[encoding]
        headers = [(b"etag", tag), (b"cache-control", b"no-cache"), *self._headers]
        names = [vary, b"accept-encoding" if len(self._forms) > 1 else b""]
        if any(names):
            headers.append((b"vary", b", ".join(filter(None, names))))
        if any(_matches(value, tag) for value in _values(scope, b"if-none-match")):
            return KeptAnswer(304, headers, b"")
        headers += [(b"content-type", self._media_type), (b"content-length", b"%d" % len(body))]
        if encoding:
            headers.append((b"content-encoding", encoding))
        return KeptAnswer(200, headers, body)

    def _make(self) -> dict[bytes, tuple[bytes, bytes]]:
        """Return entity tag and body by content encoding. A tag names the bytes sent, so each encoding has its own."""
        body = self._read()
        digest = hashlib.sha256(body).hexdigest()[:32].encode()
        forms = {b"": (b'"%b"' % digest, body)}
        compressed = gzip.compress(body, COMPRESSION_LEVEL, mtime=0)
        if len(compressed) < MIN_SAVING * len(body):
            forms[b"gzip"] = (b'"%b-gzip"' % digest, compressed)
        return forms


class KeptAnswer(ASGIResponse):
    """A complete answer with these headers and no others."""

    def __init__(self, status: int, headers: Sequence[Header], body: bytes) -> None:
        self.status_code = status
        self.kept_headers = [*headers]
        self.body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send the answer."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.kept_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": False})


def _values(scope: HTTPScope, name: bytes) -> list[bytes]:
    return [value for found, value in scope["headers"] if found == name]


def _accepts_gzip(values: Iterable[bytes]) -> bool:
    """Return whether the values of `Accept-Encoding` allow gzip: by name, or by `*` without excluding it."""
    found: dict[bytes, bool] = {}
    for part in b",".join(values).lower().split(b","):
        coding, _, parameter = part.partition(b";")
        quality = parameter.replace(b" ", b"").removeprefix(b"q=")
        found[coding.strip()] = not quality or quality.strip(b"0.") != b""
    return found.get(b"gzip", found.get(b"*", False))


def _matches(value: bytes, tag: bytes) -> bool:
    """Return whether a value of `If-None-Match` names *tag*. Proxies that compress make tags weak (`W/`)."""
    return any(part.strip().removeprefix(b"W/") in {b"*", tag} for part in value.split(b","))
