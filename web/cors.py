"""Which web pages of other origins may call (CORS), and that failures outside of Litestar tell them, too."""

from collections.abc import Sequence

from litestar.config.cors import CORSConfig
from litestar.types import HTTPScope

from access.quotas import LIMIT_HEADERS
from api.answer_formats import FINGERPRINT_HEADER, HEADERS
from web.security_headers import Header

EXPOSED = ["X-Request-ID", "Retry-After", "WWW-Authenticate", FINGERPRINT_HEADER, *HEADERS, *LIMIT_HEADERS]


def cross_origin(origins: Sequence[str]) -> CORSConfig:
    """Let pages of *origins* call, each `*` or such as `https://app.example`.

    All headers are allowed by name, as the page asks for them: a `*` in the answer would leave `Authorization` out, and
    clients made from OpenAI's send a dozen of their own. Cookies and the like go with origins that are named in full
    only: where any page may call, none may do it in the name of its visitor.
    """
    are_named = not any("*" in origin for origin in origins)
    return CORSConfig(allow_origins=list(origins), allow_credentials=are_named, expose_headers=EXPOSED)


def permission(config: CORSConfig | None, scope: HTTPScope) -> list[Header]:
    """The headers without which the page that asks could not read a failure; Litestar adds them within itself only."""
    origin = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"origin"), None)
    if config is None or origin is None or not config.is_origin_allowed(origin):
        return []
    headers = dict(config.simple_headers)
    if not config.is_allow_all_origins:
        headers |= {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
