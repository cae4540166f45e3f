"""Which web pages of other origins may call (CORS), for Litestar's answers and for errors answered outside of it."""

from collections.abc import Sequence

from litestar.config.cors import CORSConfig
from litestar.types import HTTPScope

from web.security_headers import Header


def cors_config(origins: Sequence[str], *, exposed_headers: Sequence[str]) -> CORSConfig:
    """Let pages of *origins* call; each is `*` or a form like `https://app.example`.

    All request headers are allowed by name, as the page asks for them: a `*` in the answer would exclude
    `Authorization`, and OpenAI-style clients send a dozen headers of their own. Credentials are allowed only for
    origins that are named in full: where any page may call, none may use its visitor's credentials.
    """
    are_named = not any("*" in origin for origin in origins)
    return CORSConfig(allow_origins=list(origins), allow_credentials=are_named, expose_headers=list(exposed_headers))


def cors_headers(config: CORSConfig | None, scope: HTTPScope) -> list[Header]:
    """Return the headers a page needs to read this answer. Litestar adds them only to answers that it makes itself."""
    origin = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"origin"), None)
    if config is None or origin is None or not config.is_origin_allowed(origin):
        return []
    headers = dict(config.simple_headers)
    if not config.is_allow_all_origins:
        headers |= {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
