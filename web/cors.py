"""CORS: which origins may call, for Litestar's answers and for errors that are answered outside of Litestar."""

from collections.abc import Sequence
from typing import Final

from litestar.config.cors import CORSConfig
from litestar.types import HTTPScope

from web.security_headers import Header

METHODS: Final = ("GET", "HEAD", "OPTIONS", "POST")
"""The methods that pages of other origins may use: those of all routes but `DELETE /cache`, which is for programs."""


def cors_config(origins: Sequence[str], *, exposed_headers: Sequence[str]) -> CORSConfig:
    """Allow pages of *origins* to call; each is `*` or a form like `https://app.example`.

    All request headers are allowed: the answer repeats the names that the page requests, because a `*` would exclude
    `Authorization`, and OpenAI-style clients send a dozen headers of their own. Credentials are allowed only if all
    origins are named in full: where any page may call, none may use its visitor's credentials.
    """
    are_named = not any("*" in origin for origin in origins)
    return CORSConfig(
        allow_origins=list(origins),
        allow_methods=list(METHODS),
        allow_credentials=are_named,
        expose_headers=list(exposed_headers),
    )


def timing_headers(config: CORSConfig | None, scope: HTTPScope) -> list[Header]:
    """Return the header that lets scripts of a page that may read this answer see its `Server-Timing`, too."""
    if config is None:
        return []
    allowed = [value for name, value in cors_headers(config, scope) if name == b"access-control-allow-origin"]
    return [(b"timing-allow-origin", origin) for origin in allowed]


def cors_headers(config: CORSConfig | None, scope: HTTPScope) -> list[Header]:
    """Return the headers that allow a page to read this answer. Litestar adds them only to its own answers."""
    origins = [value for name, value in scope["headers"] if name == b"origin"]
    if config is None or not origins or not config.is_origin_allowed(origin := origins[0].decode("latin-1")):
        return []
    headers = dict(config.simple_headers)
    if not config.is_allow_all_origins:
        headers |= {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
