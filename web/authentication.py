"""Asks each caller of a closed route who they are, before anything of the body is read."""

from collections.abc import Awaitable, Callable, Iterable, Iterator

from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, Scope, Send

from access.principals import SCOPES, MissingScopeError, Principal, UnauthenticatedError
from engine.errors import ServiceError

REALM = "fast-embedding"
READING = frozenset({"GET", "OPTIONS"})
"""Methods of routes that are open unless they say otherwise; HEAD comes here as GET."""


class AuthenticationMiddleware(ASGIMiddleware):
    """Lets those through who may call a route, and tells who they are.

    A route says by its option `scope` what it needs, and the middleware is told which of these are closed. Of those that are
    scopes of keys (`embed`, `metrics`), the caller's key must have it; for others (`models`, `docs`) any key will do.
    The caller's name goes into the request's state, as `caller_name`.
    """

    scopes = (ScopeType.HTTP,)

    def __init__(
        self,
        *,
        closed: Iterable[str],
        find_key: Callable[[bytes], Principal | None],
        read_token: Callable[[bytes], Awaitable[Principal | None]],
    ) -> None:
        """Guard the routes whose option is among *closed*.

        Args:
            closed: none: everything is open, and nobody is asked.
            find_key: whose an API key is.
            read_token: whose a token is; None: it is none.
        """
        self._closed = frozenset(closed)
        self._find_key = find_key
        self._read_token = read_token

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        needed = needed_scope(scope)
        if needed is not None and needed in self._closed:
            try:
                await self._let_in(scope, needed)
            except ServiceError as error:
                scope["state"].setdefault("answer_headers", []).extend(_challenge(error))
                raise
        await next_app(scope, receive, send)

    async def _let_in(self, scope: Scope, needed: str) -> None:
        caller = await self._identify(scope["headers"])
        scope["state"]["caller_name"] = caller.name
        if needed in SCOPES and not caller.may(needed):
            raise MissingScopeError(needed)

    async def _identify(self, headers: Iterable[tuple[bytes, bytes]]) -> Principal:
        bearers, keys = _credentials(headers)
        given = {*bearers, *keys}
        if not given:
            raise UnauthenticatedError("Send a key as 'Authorization: Bearer KEY' or as 'X-API-Key: KEY'.", error=None)
        if len(given) > 1:
            raise UnauthenticatedError("Several different keys were sent; send one.", error="invalid_request")
        [credential] = given
        caller = self._find_key(credential)
        if caller is None and bearers:
            caller = await self._read_token(credential)
        if caller is None:
            looks_signed = credential.count(b".") == 2  # noqa: PLR2004 - header, claims, signature
            hint = " A token goes into 'Authorization: Bearer TOKEN'." if looks_signed else ""
            raise UnauthenticatedError(f"This key is not known here.{hint}")
        return caller


def needed_scope(scope: Scope) -> str | None:
    """What the route of *scope* needs; None: nothing. A route that changes something and does not say needs `embed`."""
    default = None if scope["method"] in READING else "embed"  # type: ignore[typeddict-item]  # it is a request's
    needed: str | None = scope["route_handler"].opt.get("scope", default)
    return needed


def _credentials(headers: Iterable[tuple[bytes, bytes]]) -> tuple[list[bytes], list[bytes]]:
    """What was sent as Bearer, and as key. Other schemes are for others, such as a proxy before us."""
    bearers, keys = [], []
    for name, value in headers:
        if name == b"authorization":
            scheme, _, credential = value.partition(b" ")
            if scheme.lower() == b"bearer" and credential.strip():
                bearers.append(credential.strip())
        elif name == b"x-api-key" and value.strip():
            keys.append(value.strip())
    return bearers, keys


def _challenge(error: ServiceError) -> Iterator[tuple[bytes, bytes]]:
    """What RFC 6750 (section 3) wants to be told; nothing of a failure that no other key would change."""
    told = {"realm": REALM}
    if isinstance(error, MissingScopeError):
        told |= {"error": "insufficient_scope", "error_description": error.detail, "scope": error.scope}
    elif not isinstance(error, UnauthenticatedError):
        return
    elif error.error:
        told |= {"error": error.error, "error_description": error.detail}
    parts = ", ".join(f'{name}="{value}"' for name, value in told.items())
    yield b"www-authenticate", f"Bearer {parts}".encode()
