"""Authentication middleware: identifies callers and checks their permission before any of the body is read."""

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress

from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

from access.principals import ADMIN, PERMISSIONS, MissingPermissionError, Principal, UnauthenticatedError
from engine.errors import ServiceError
from engine.fair_queue import Caller
from web.allowed_hosts import AllowedHosts
from web.litestar_adapter import route_option
from web.request_context import Client, context_of
from web.security_headers import Header

REALM = "fast-embedding"
READ_METHODS = frozenset({"GET", "OPTIONS"})
"""Routes with these methods require no permission unless they name one. HEAD arrives here as GET."""
REPEATED_SCHEME = re.compile(rb"\A(?:bearer\s+)+", re.IGNORECASE)
"""The scheme again, before a credential. One pass, because a header may repeat it thousands of times."""
KEY_HEADERS = frozenset({b"x-api-key", b"api-key"})
"""Headers that contain a key and nothing else; `api-key` is Azure's."""
LOOPBACK = AllowedHosts(("localhost", "127.0.0.0/8", "::1"))
"""The hosts that a program names when it calls this machine from this machine."""


class LocalOnlyError(ServiceError):
    """Without keys, a caller without the permission `admin` may use its routes from this machine only."""

    status, code, title = 403, "local-only", "Only programs on this machine may do this"

    def __init__(self) -> None:
        super().__init__(
            "No API keys are configured, so this is accepted only from a program on this machine that connects to a "
            "loopback address, such as http://127.0.0.1: not from other machines, through a proxy or a Unix socket, or "
            "by a web page. To allow more, configure a key with the permission 'admin'."
        )


class AuthenticationMiddleware:
    """Puts the caller's `Principal` into the request context, and rejects callers without the route's permission.

    A route names the permission it requires in its option `permission`. Keys and tokens are granted `embed` and
    `metrics` one by one; for the other permissions (`models`, `docs`), any valid key or token is enough. An open route
    that answers with more for callers with a permission names it in its option `shows_more_with`: callers without it
    have no principal. Routes with the permission `admin` are never open: without keys, only programs on this machine
    may use them.
    """

    def __init__(
        self,
        *,
        protected: Iterable[str],
        find_key: Callable[[bytes], Principal | None],
        verify_token: Callable[[bytes], Awaitable[Principal | None]],
        principal_at: Callable[[Client, Iterable[Header]], Principal],
        is_local: Callable[[Client, Iterable[Header]], bool] = lambda *_: False,
    ) -> None:
        """Require a key or token on routes whose permission is in *protected*.

        Args:
            protected: permissions that require a key or token; if empty, every route is open.
            find_key: returns the principal of an API key.
            verify_token: returns the principal of a token; None: it does not look like a token.
            principal_at: returns the principal of a caller of an open route, by their network address and headers.
            is_local: returns whether a request comes from this machine, by the same.
        """
        self._protected = frozenset(protected)
        self._find_key = find_key
        self._verify_token = verify_token
        self._principal_at = principal_at
        self._is_local = is_local

    def __call__(self, app: ASGIApp) -> ASGIApp:
        """Return what Litestar calls for each request of a route, before *app*."""

        async def authenticate(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == ScopeType.HTTP:
                await self._authenticate(scope)
            await app(scope, receive, send)

        return authenticate

    async def _authenticate(self, scope: HTTPScope) -> None:
        permission = required_permission(scope)
        if permission is not None:
            context = context_of(scope)
            if permission in self._protected:
                try:
                    context.principal = await self._identify(scope["headers"])
                    _check_permission(context.principal, permission)
                except ServiceError as error:
                    context.answer_headers.extend(_challenge(error))
                    raise
            else:
                if permission == ADMIN:
                    self._check_local(scope)
                context.principal = self._principal_at(scope["client"], scope["headers"])
        elif (hidden := route_option(scope, "shows_more_with")) is not None:
            context_of(scope).principal = await self._find_viewer(scope["client"], scope["headers"], hidden)

    def _check_local(self, scope: HTTPScope) -> None:
        """Reject callers of other machines, and pages: a browser on this machine runs scripts of any site.

        Browsers send `Origin` with each request that is not a GET. A page whose name an attacker points at this machine
        (DNS rebinding) also sends that name as the host.

        Raises:
            LocalOnlyError: the request may come from another machine.
        """
        headers = scope["headers"]
        is_page = any(name == b"origin" for name, _ in headers)
        names_loopback = LOOPBACK.include_all(context_of(scope).authority, headers)
        # Proxies that add no header to requests, such as nginx without any settings, often send them in HTTP/1.0.
        is_old = scope["http_version"] == "1.0"
        if is_page or is_old or not names_loopback or not self._is_local(scope["client"], headers):
            raise LocalOnlyError

    async def _find_viewer(self, client: Client, headers: Iterable[Header], permission: str) -> Principal | None:
        """Return the principal of a caller that has *permission*; None: it does not have it."""
        if permission not in self._protected:
            return self._principal_at(client, headers)
        with suppress(ServiceError):
            principal = await self._identify(headers)
            _check_permission(principal, permission)
            return principal
        return None

    def find_embed_caller(self, client: Client, headers: Iterable[Header]) -> Caller | None:
        """Return who calls a route that requires `embed`, as far as that is known without verifying a token.

        None: only the middleware can find it out. Permissions are not checked.
        """
        if "embed" not in self._protected:
            return self.locate(client, headers)
        principal = self._find_key_of(headers)
        return None if principal is None else principal.share_keys

    def find_embed_principal(self, client: Client, headers: Iterable[Header]) -> Principal | None:
        """Return a caller who may use routes that require `embed`; None: the middleware has to find out."""
        if "embed" not in self._protected:
            return self._principal_at(client, headers)
        principal = self._find_key_of(headers)
        return principal if principal is not None and principal.has("embed") else None

    def locate(self, client: Client, headers: Iterable[Header]) -> Caller:
        """Return the caller by network address, whatever key they have."""
        return self._principal_at(client, headers).share_keys

    def _find_key_of(self, headers: Iterable[Header]) -> Principal | None:
        """Return the principal of the only key in *headers*; None: there is none, or it may be a token."""
        bearers, keys = _credentials(headers)
        found = [self._find_key(credential) for credential in {*bearers, *keys}]
        return found[0] if len(found) == 1 else None

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


def _check_permission(principal: Principal, permission: str) -> None:
    if permission in PERMISSIONS and not principal.has(permission):
        raise MissingPermissionError(permission)


def required_permission(scope: HTTPScope) -> str | None:
    """Return the permission that the route of *scope* requires; None: none. Writing methods default to `embed`."""
    default = None if scope["method"] in READ_METHODS else "embed"
    return route_option(scope, "permission", default)


def _credentials(headers: Iterable[Header]) -> tuple[list[bytes], list[bytes]]:
    """Return the credentials sent as Bearer and those sent as X-API-Key or api-key.

    Other schemes may be meant for a proxy. Some clients put `Bearer` before a token that begins with it already.
    """
    bearers, keys = [], []
    for name, value in headers:
        if name == b"authorization":
            scheme, _, credential = value.partition(b" ")
            credential = REPEATED_SCHEME.sub(b"", credential.strip())
            if scheme.lower() == b"bearer" and credential:
                bearers.append(credential)
        elif name in KEY_HEADERS and value.strip():
            keys.append(value.strip())
    return bearers, keys


def _challenge(error: ServiceError) -> Iterator[Header]:
    """Yield the header that RFC 6750 (section 3) requires; none for an error that another key would not avoid."""
    attributes = {"realm": REALM}
    if isinstance(error, MissingPermissionError):
        attributes |= {"error": "insufficient_scope", "error_description": error.detail, "scope": error.permission}
    elif not isinstance(error, UnauthenticatedError):
        return
    elif error.error:
        attributes |= {"error": error.error, "error_description": error.detail}
    parts = ", ".join(f'{name}="{value}"' for name, value in attributes.items())
    yield b"www-authenticate", f"Bearer {parts}".encode()
