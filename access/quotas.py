"""Quotas: how many requests and tokens a caller may use, and counters of what each caller has used.

Each quota is a token bucket that stores what is in use. A caller may use the whole quota at once; it refills evenly,
one quota per window. So no caller gets more than ``quota + quota / window * seconds`` in any period of that many
seconds. Amounts are whole numbers of *shares*, which makes all sums exact: one unit (a request or a token) is
`window_us` shares, and each microsecond frees `units` shares.
"""

import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Literal, Protocol

from engine.errors import ServiceError

Store = Literal["off", "memory", "supervisor", "redis"]
"""Where usage is counted: nowhere, in this process, in the supervisor of several workers, in Redis."""
ShareKeys = tuple[str, ...]
"""`Principal.share_keys`: the caller's own key, and perhaps that of its wide network."""

US = 1_000_000
"""Microseconds in a second."""
MAX_CALLERS = 50_000
"""Maximum number of callers in memory, about 20 MB. The least recently seen are dropped first."""
NETWORK_FACTOR = 16
"""How many callers' quotas a wide network gets: enough for a site with several networks, while one subscriber with a
/48, which contains 65,536 networks of the size of a caller, gets 16 quotas and not 65,536. A power of two divides the
shares of a unit exactly."""
NETWORK = "network-"
"""Starts the names of the quotas of wide networks."""


@dataclass(frozen=True, slots=True)
class Quota:
    """A number of units per window.

    Attributes:
        name: what is counted, `requests` or `tokens`, for a wide network with the prefix `network-`; also the name of
            the policy in headers and problem documents.
        units: the number that may be used at once, and that becomes free again in one window.
        window_s: the window, in seconds.
        needed: shares that must be free for a request to be admitted.
        taken: shares that a request takes when it is admitted.
        factor: how many callers' quotas this is. A unit is so many times fewer shares, so that the sums of shares stay
            in the same range.
    """

    name: str
    units: int
    window_s: int
    needed: int
    taken: int
    factor: int = 1

    @property
    def window_us(self) -> int:
        return self.window_s * US

    @property
    def shares_per_unit(self) -> int:
        return self.window_us // self.factor

    @property
    def shares_per_us(self) -> int:
        """Shares that each microsecond frees."""
        return self.units // self.factor

    @property
    def shares(self) -> int:
        """All shares of the quota."""
        return self.shares_per_us * self.window_us

    @property
    def unit(self) -> str:
        """What is counted: `requests` or `tokens`."""
        return self.name.removeprefix(NETWORK)

    def left(self, used: int) -> int:
        """Return the whole units that may be used at once."""
        return max(0, (self.shares - used) // self.shares_per_unit)

    def wait_s(self, used: int) -> int:
        """Return the whole seconds until a request is admitted; 0: now."""
        missing = used + self.needed - self.shares
        return max(0, -(-missing // (self.shares_per_us * US)))

    def spread_s(self, used: int) -> int:
        """Return the seconds over which a caller must spread what is left, so that no request is rejected."""
        if left := self.left(used):
            return math.ceil(left * self.window_s / self.units)
        return self.wait_s(used) or math.ceil(self.window_s / self.units)


def quotas_of(*, requests: int, tokens: int | None, window_s: int) -> tuple[Quota, ...]:
    """Return the quotas of each caller per window: *requests*, and *tokens* of text (None: unlimited).

    A request takes one unit of *requests* when it arrives. The number of its tokens is known later, so it needs only
    one free share of *tokens* and is charged afterwards, even beyond the quota. So no request is too large to be
    admitted.
    """
    window_us = window_s * US
    of_requests = Quota("requests", requests, window_s, needed=window_us, taken=window_us)
    if tokens is None:
        return (of_requests,)
    return (of_requests, Quota("tokens", tokens, window_s, needed=1, taken=0))


def charged_quotas(quotas: tuple[Quota, ...], keys: ShareKeys) -> tuple[Quota, ...]:
    """Return the quotas that a request counts against: the caller's, followed by those of its wide network, if any."""
    return quotas if len(keys) == 1 else quotas + _network_quotas(quotas)


@cache
def _network_quotas(quotas: tuple[Quota, ...]) -> tuple[Quota, ...]:
    return tuple(
        Quota(
            f"{NETWORK}{quota.name}",
            quota.units * NETWORK_FACTOR,
            quota.window_s,
            needed=-(-quota.needed // NETWORK_FACTOR),
            taken=quota.taken // NETWORK_FACTOR,
            factor=NETWORK_FACTOR,
        )
        for quota in quotas
    )


@dataclass(frozen=True)
class QuotaState:
    """The quotas of one caller at one moment, followed by those of its wide network, if it has one.

    Attributes:
        quotas: those that the request counts against.
        used: shares in use, per quota.
        is_admitted: whether this request may proceed; then *used* includes what it took.
    """

    quotas: tuple[Quota, ...]
    used: tuple[int, ...]
    is_admitted: bool

    @property
    def violated(self) -> list[Quota]:
        """The quotas that cause the rejection; empty if the request is admitted."""
        if self.is_admitted:
            return []
        return [quota for quota, used in zip(self.quotas, self.used, strict=True) if quota.wait_s(used)]

    @cached_property
    def retry_after_s(self) -> int:
        """Seconds until a rejected request would be admitted."""
        return max(quota.wait_s(used) for quota, used in zip(self.quotas, self.used, strict=True))

    def after(self, tokens: int) -> "QuotaState":
        """Return the state with *tokens* more in use."""
        return replace(self, used=tuple(map(sum, zip(self.used, tokens_taken(self.quotas, tokens), strict=True))))


def tokens_taken(quotas: Sequence[Quota], tokens: int) -> tuple[int, ...]:
    """Return the shares that this number of tokens takes, per quota."""
    return tuple(tokens * quota.shares_per_unit if quota.unit == "tokens" else 0 for quota in quotas)


class RateLimitedError(ServiceError):
    """The caller's quota is used up; the request was not processed."""

    status, code, title = 429, "rate-limited", "Too many requests"

    def __init__(self, state: QuotaState) -> None:
        """State which quotas are exceeded, what they allow, and when the next request is admitted."""
        violated = state.violated
        of_caller = _limits(quota for quota in violated if quota.factor == 1)
        of_network = _limits(quota for quota in violated if quota.factor > 1)
        parts = [f"{of_caller} are allowed per caller"] if of_caller else []
        parts += [f"{of_network} are allowed for all callers of the same wide network"] if of_network else []
        super().__init__(
            f"No more than {', and '.join(parts)}; the next request is admitted in {state.retry_after_s} s.",
            retry_after_s=state.retry_after_s,
            extensions={
                "limit": violated[0].units,
                "window_seconds": violated[0].window_s,
                # The member is defined in draft-ietf-httpapi-ratelimit-headers-11, section 5.1.
                "violated-policies": [quota.name for quota in violated],
            },
        )


def _limits(quotas: Iterable[Quota]) -> str:
    return " and ".join(f"{quota.units} {quota.unit} per {quota.window_s} s" for quota in quotas)


class QuotaStore(Protocol):
    """Counts what callers have used."""

    quotas: tuple[Quota, ...]
    fallbacks: int
    """How often memory has replaced an unreachable shared store."""
    fallback_reason: str | None
    """Why memory replaces the shared store now, in one word; None: it does not."""

    @property
    def store(self) -> Store:
        """Where usage is counted now."""
        ...

    async def take(self, keys: ShareKeys) -> QuotaState:
        """Take one request from the quotas of all *keys* if all allow it; otherwise from none."""
        ...

    def charge(self, keys: ShareKeys, tokens: int) -> None:
        """Charge the tokens of a request that was admitted to all *keys*."""
        ...

    def running(self) -> AbstractAsyncContextManager[None]:
        """Keep the connection to the store open for the duration of the block."""
        ...


class NoQuotas:
    """Counts nothing and admits every request."""

    quotas: tuple[Quota, ...] = ()
    store: Store = "off"
    fallbacks = 0
    fallback_reason: str | None = None

    async def take(self, keys: ShareKeys) -> QuotaState:
        del keys
        return QuotaState((), (), is_admitted=True)

    def charge(self, keys: ShareKeys, tokens: int) -> None:
        pass

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield


class MemoryQuotas:
    """Counts in this process's memory, for a bounded number of recent callers."""

    store: Store = "memory"
    fallbacks = 0
    fallback_reason: str | None = None

    def __init__(
        self,
        quotas: tuple[Quota, ...],
        *,
        max_callers: int = MAX_CALLERS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.quotas = quotas
        self._max_callers = max_callers
        self._clock = clock
        self._use: OrderedDict[str, tuple[int, tuple[int, ...]]] = OrderedDict()
        """Per key, latest last: the time of the last update in microseconds, and the shares in use then."""

    @property
    def callers(self) -> int:
        """The number of callers and wide networks in memory."""
        return len(self._use)

    async def take(self, keys: ShareKeys) -> QuotaState:
        return self.take_now(keys)

    def take_now(self, keys: ShareKeys) -> QuotaState:
        """Do the same as `take`, without awaiting anything."""
        quotas, now_us = charged_quotas(self.quotas, keys), self._now_us()
        used = self._used(keys, quotas, now_us)
        is_admitted = all(shares + quota.needed <= quota.shares for quota, shares in zip(quotas, used, strict=True))
        if is_admitted:
            used = tuple(shares + quota.taken for quota, shares in zip(quotas, used, strict=True))
        self._keep(keys, now_us, used)
        return QuotaState(quotas, used, is_admitted)

    def charge(self, keys: ShareKeys, tokens: int) -> None:
        quotas, now_us = charged_quotas(self.quotas, keys), self._now_us()
        used = self._used(keys, quotas, now_us)
        self._keep(keys, now_us, tuple(map(sum, zip(used, tokens_taken(quotas, tokens), strict=True))))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield

    def _now_us(self) -> int:
        return round(self._clock() * US)

    def _used(self, keys: ShareKeys, quotas: tuple[Quota, ...], now_us: int) -> tuple[int, ...]:
        """Return the shares in use of each of *quotas*, which are those of the first key, then those of the second."""
        unused = now_us, (0,) * len(self.quotas)
        kept = [
            (at_us, shares)
            for at_us, all_shares in (self._use.get(key, unused) for key in keys)
            for shares in all_shares
        ]
        return tuple(
            max(0, shares - (now_us - at_us) * quota.shares_per_us)
            for (at_us, shares), quota in zip(kept, quotas, strict=True)
        )

    def _keep(self, keys: ShareKeys, now_us: int, used: tuple[int, ...]) -> None:
        count = len(self.quotas)
        for number, key in enumerate(keys):
            of_key = used[number * count : (number + 1) * count]
            # Callers that have used nothing need not be remembered: those of a wide network that is used up.
            if any(of_key) or key in self._use:
                self._use[key] = now_us, of_key
                self._use.move_to_end(key)
        while len(self._use) > self._max_callers:
            self._use.popitem(last=False)
