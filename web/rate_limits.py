"""At the door of the routes that do work: who has asked too much is told when to come again.

Litestar's own rate limiting is not used: it reads a caller's history and writes it back in two steps, so replicas (and
requests) that share a store let more through; it keeps a time stamp per request, by a clock that may jump; it knows no
costs but one per request; and its headers are those of an old draft.

The headers are those of draft-ietf-httpapi-ratelimit-headers-11 (May 2026): `RateLimit-Policy` tells each quota (`q`)
and its window (`w`), `RateLimit` what is left of it (`r`) and the seconds (`t`) in which to use no more than that. The
draft asks for a bounded ratio of both; here it is the quota's own, so who spreads `r` over `t` is never refused. Of a
refusal, `RateLimit` tells only the policies that caused it: their `t` must not end after `Retry-After`. Tokens have
`qu="tokens"`, a unit that the draft's registry does not have: without it, they would be requests.
"""

from collections.abc import Callable

from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

from access.quotas import Quota, QuotaState, QuotaStore, RateLimitedError

Charge = Callable[[int], None]


class RateLimitMiddleware(ASGIMiddleware):
    """Takes one request from the caller's allowance before its body is read."""

    scopes = (ScopeType.HTTP,)

    def __init__(self, allowances: QuotaStore, *, address_of: Callable[[HTTPScope], str]) -> None:
        """Let *allowances* decide; callers without a name are told apart by what *address_of* says."""
        self._allowances = allowances
        self._address_of = address_of
        self._policy = b"ratelimit-policy", ", ".join(map(_policy, allowances.quotas)).encode()

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Let the request pass, or refuse it.

        Raises:
            RateLimitedError: the caller's allowance is used up.
        """
        if scope["type"] == ScopeType.HTTP and scope["route_handler"].opt.get("scope") == "embed":
            caller = self._caller_of(scope)
            allowance = await self._allowances.take(caller)
            headers: list[tuple[bytes, bytes]] = scope["state"].setdefault("answer_headers", [])
            told = len(headers)
            headers += [_rate_limit(allowance), self._policy]
            if not allowance.is_admitted:
                raise RateLimitedError(allowance)

            def charge(tokens: int) -> None:
                self._allowances.charge(caller, tokens)
                headers[told] = _rate_limit(allowance.after(tokens))

            scope["state"]["charge_tokens"] = charge
        await next_app(scope, receive, send)

    def _caller_of(self, scope: HTTPScope) -> str:
        """The two kinds never meet: nobody gets another's allowance by naming a key after an address."""
        name = scope["state"].get("caller_name")
        return f"address {self._address_of(scope)}" if name is None else f"name {name}"


def charge_of(scope: Scope) -> Charge | None:
    """What is to be told how many tokens a request has; None: limits are off."""
    charge: Charge | None = scope["state"].get("charge_tokens")
    return charge


def _policy(quota: Quota) -> str:
    unit = "" if quota.name == "requests" else f';qu="{quota.name}"'  # requests are the unit by default
    return f'"{quota.name}";q={quota.units}{unit};w={quota.window_s}'


def _rate_limit(allowance: QuotaState) -> tuple[bytes, bytes]:
    told = ", ".join(
        f'"{quota.name}";r={quota.left(used)};t={quota.pace_s(used)}'
        for quota, used in zip(allowance.quotas, allowance.used, strict=True)
        if allowance.is_admitted or quota.wait_s(used)
    )
    return b"ratelimit", told.encode()
