"""Authentication middleware: identifies the caller and checks their permission before any of the body is read."""

from collections.abc import Awaitable, Callable, Iterable, Iterator

from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

from access.principals import PERMISSIONS, MissingPermissionError, Principal, UnauthenticatedError
from engine.errors import ServiceError
from web.litestar_adapter import route_option
from web.request_context import context_of
from web.security_headers import Header

REALM = "fast-embedding"
READ_METHODS = frozenset({"GET", "OPTIONS"})
"""Routes with these methods are open unless they name a permission. HEAD arrives here as GET."""


class AuthenticationMiddleware(ASGIMiddleware):
    """Puts the caller's `Principal` into the request context and rejects callers who may not use the route.

    A route names the permission it needs by its option `permission`. Keys and tokens have permissions of their own for
    `embed` and `metrics`; for the others (`models`, `docs`), any valid key or token will do.
    """

    scopes = (ScopeType.HTTP,)

    def __init__(
        self,
        *,
        closed: Iterable[str],
        find_key: Callable[[bytes], Principal | None],
        verify_token: Callable[[bytes], Awaitable[Principal | None]],
        network_of: Callable[[HTTPScope], str],
    ) -> None:
        """Require a key or token on routes whose permission is in *closed*.

        Args:
            closed: permissions that need a key or token; empty: every route is open.
            find_key: returns the principal of an API key.
            verify_token: returns the principal of a token; None if it does not look like one.
            network_of: returns the network prefix that identifies a caller without credentials.
        """
        self._closed = frozenset(closed)
        self._find_key = find_key
        self._verify_token = verify_token
        self._network_of = network_of

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        permission = needed_permission(scope)
        if permission is not None and scope["type"] == ScopeType.HTTP:
            context = context_of(scope)
            if permission in self._closed:
                try:
                    context.principal = await self._identify(scope["headers"])
                    _check(context.principal, permission)
                except ServiceError as error:
                    context.answer_headers.extend(_challenge(error))
                    raise
            else:
                context.principal = Principal("address", network=self._network_of(scope))
        await next_app(scope, receive, send)

    async def _identify(self, headers: Iterable[Header]) -> Principal:
        bearers, keys = _credentials(headers)
        credentials = {*bearers, *keys}
        if not credentials:
            raise UnauthenticatedError("Send a key as 'Authorization: Bearer KEY' or as 'X-API-Key: KEY'.", error=None)
        if len(credentials) > 1:
            raise UnauthenticatedError("Several different keys were sent; send one.", error="invalid_request")
        [credential] = credentials
        principal = self._find_key(credential)
        if principal is None and bearers:
            principal = await self._verify_token(credential)
        if principal is None:
            looks_like_a_token = credential.count(b".") == 2  # noqa: PLR2004 - header, claims, signature
            hint = " Send a token as 'Authorization: Bearer TOKEN'." if looks_like_a_token else ""
            raise UnauthenticatedError(f"The key is not valid.{hint}")
        return principal


def _check(principal: Principal, permission: str) -> None:
    if permission in PERMISSIONS and not principal.has(permission):
        raise MissingPermissionError(permission)


def needed_permission(scope: Scope) -> str | None:
    """Return the permission that the route of *scope* needs; None: none. The default of writing methods is `embed`."""
    default = None if scope["method"] in READ_METHODS else "embed"  # type: ignore[typeddict-item]  # only HTTP comes here
    return route_option(scope, "permission", default)


def _credentials(headers: Iterable[Header]) -> tuple[list[bytes], list[bytes]]:
    """Return the credentials sent as Bearer, and those sent as X-API-Key. Other schemes are for proxies before us."""
    bearers, keys = [], []
    for name, value in headers:
        if name == b"authorization":
            scheme, _, credential = value.partition(b" ")
            if scheme.lower() == b"bearer" and credential.strip():
                bearers.append(credential.strip())
        elif name == b"x-api-key" and value.strip():
            keys.append(value.strip())
    return bearers, keys


def _challenge(error: ServiceError) -> Iterator[Header]:
    """Yield the header that RFC 6750 (section 3) asks for; none for a failure that another key would not change."""
    attributes = {"realm": REALM}
    if isinstance(error, MissingPermissionError):
        attributes |= {"error": "insufficient_scope", "error_description": error.detail, "scope": error.permission}
    elif not isinstance(error, UnauthenticatedError):
        return
    elif error.error:
        attributes |= {"error": error.error, "error_description": error.detail}
    parts = ", ".join(f'{name}="{value}"' for name, value in attributes.items())
    yield b"www-authenticate", f"Bearer {parts}".encode()
