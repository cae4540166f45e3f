"""Rate-limit middleware: rejects callers over their quota with 429 and `Retry-After`, before the body is read.

Litestar's own rate limiting is not used. It reads a caller's history and writes it back in two steps, so replicas that
share a store admit more than the quota. It keeps a timestamp per request, from a clock that may jump, counts requests
only, not tokens, and its headers follow an old draft.

The headers follow draft-ietf-httpapi-ratelimit-headers-11 (May 2026): `RateLimit-Policy` states each quota (`q`) and
its window (`w`), `RateLimit` what is left (`r`) and the seconds (`t`) over which to spread it. The draft asks for a
bounded ratio of both. Here it is that of the quota, so a caller who spreads `r` over `t` is never rejected. On a 429,
`RateLimit` names only the policies that caused it: their `t` must not end after `Retry-After`. The policy for tokens
has the unit `qu="tokens"`, which the draft's registry does not contain; without it, tokens would mean requests. Callers
that share a quota with their wide network see its policies, too: `network-requests` and `network-tokens`.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

from access.quotas import Quota, QuotaState, QuotaStore, RateLimitedError, ShareKeys
from web.authentication import required_permission
from web.request_context import context_of
from web.security_headers import Header

LIMIT_HEADERS = {
    "RateLimit-Policy": "With rate limits: a caller's quota `q` per window of `w` seconds, of requests and of tokens",
    "RateLimit": "With rate limits: what is left, `r`, to be spread over `t` seconds",
}
"""The headers of every answer of a limited route, with their descriptions for OpenAPI."""


class RateLimitMiddleware:
    """Counts requests against the principal's quota and rejects those beyond it. Runs after authentication."""

    def __init__(self, store: QuotaStore, *, count: Callable[[Iterable[str]], object] = lambda _: None) -> None:
        """Count requests in *store*; *count* gets the names of the quotas that caused a rejection, for metrics."""
        self._store = store
        self._count = count

    def __call__(self, app: ASGIApp) -> ASGIApp:
        """Return what Litestar calls for each request of a route, before *app*.

        It raises a `RateLimitedError` if the caller's quota is used up.
        """

        async def limit(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == ScopeType.HTTP and required_permission(scope) == "embed":
                principal = context_of(scope).principal
                if principal is not None:
                    await self._take(scope, principal.share_keys)
            await app(scope, receive, send)

        return limit

    async def _take(self, scope: Scope, keys: ShareKeys) -> None:
        context = context_of(scope)
        state = await self._store.take(keys)
        headers = context.answer_headers
        position = len(headers)
        headers += [_rate_limit(state), _policies(state.quotas)]
        if not state.is_admitted:
            self._count(quota.name for quota in state.violated)
            raise RateLimitedError(state)

        def charge(tokens: int) -> None:
            self._store.charge(keys, tokens)
            headers[position] = _rate_limit(state.after(tokens))

        context.charge_tokens = charge


@lru_cache(maxsize=8)
def _policies(quotas: tuple[Quota, ...]) -> Header:
    return b"ratelimit-policy", ", ".join(map(_policy, quotas)).encode()


def _policy(quota: Quota) -> str:
    unit = "" if quota.unit == "requests" else f';qu="{quota.unit}"'  # requests are the default unit
    return f'"{quota.name}";q={quota.units}{unit};w={quota.window_s}'


def _rate_limit(state: QuotaState) -> Header:
    items = ", ".join(
        f'"{quota.name}";r={quota.left(used)};t={quota.spread_s(used)}'
        for quota, used in zip(state.quotas, state.used, strict=True)
        if state.is_admitted or quota.wait_s(used)
    )
    return b"ratelimit", items.encode()
