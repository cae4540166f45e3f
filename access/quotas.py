"""Quotas: how many requests and tokens a caller may use, and counters of what each caller has used.

Each quota is a token bucket that stores what is in use. A caller may use the whole quota at once; it refills evenly,
one quota per window. So no caller gets more than ``quota + quota / window * seconds`` in any period of that many
seconds. Amounts are whole numbers of *shares*, which makes all sums exact: one unit (a request or a token) is
`window_us` shares, and each microsecond frees `units` shares.
"""

import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol

from engine.errors import ServiceError

Store = Literal["off", "memory", "redis"]

US = 1_000_000
"""Microseconds in a second."""
MAX_CALLERS = 50_000
"""Maximum number of callers in memory, about 20 MB. The least recently seen are dropped first."""


@dataclass(frozen=True, slots=True)
class Quota:
    """A number of units per window.

    Attributes:
        name: what is counted, `requests` or `tokens`; also the name of the policy in headers and problem documents.
        units: the number that may be used at once, and that becomes free again in one window.
        window_s: the window, in seconds.
        needed: shares that must be free for a request to be admitted.
        taken: shares that a request takes when it is admitted.
    """

    name: str
    units: int
    window_s: int
    needed: int
    taken: int

    @property
    def window_us(self) -> int:
        return self.window_s * US

    def left(self, used: int) -> int:
        """Return the whole units that may be used at once."""
        return max(0, (self.units * self.window_us - used) // self.window_us)

    def wait_s(self, used: int) -> int:
        """Return the whole seconds until a request is admitted; 0: now."""
        missing = used + self.needed - self.units * self.window_us
        return max(0, -(-missing // (self.units * US)))

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


@dataclass(frozen=True)
class QuotaState:
    """The quotas of one caller at one moment.

    Attributes:
        quotas: the same for all callers.
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
    return tuple(tokens * quota.window_us if quota.name == "tokens" else 0 for quota in quotas)


class RateLimitedError(ServiceError):
    """The caller's quota is used up; the request was not processed."""

    status, code, title = 429, "rate-limited", "Too many requests"

    def __init__(self, state: QuotaState) -> None:
        """State which quotas are exceeded, what they allow, and when the next request is admitted."""
        violated = state.violated
        limits = " and ".join(f"{quota.units} {quota.name} per {quota.window_s} s" for quota in violated)
        super().__init__(
            f"No more than {limits} are allowed per caller; the next request is admitted in {state.retry_after_s} s.",
            retry_after_s=state.retry_after_s,
            extensions={
                "limit": violated[0].units,
                "window_seconds": violated[0].window_s,
                # The member is defined in draft-ietf-httpapi-ratelimit-headers-11, section 5.1.
                "violated-policies": [quota.name for quota in violated],
            },
        )


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

    async def take(self, caller: str) -> QuotaState:
        """Take one request from the quotas of *caller* (`Principal.quota_key`) if they allow it."""
        ...

    def charge(self, caller: str, tokens: int) -> None:
        """Charge the tokens of a request that was admitted."""
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

    async def take(self, caller: str) -> QuotaState:
        del caller
        return QuotaState((), (), is_admitted=True)

    def charge(self, caller: str, tokens: int) -> None:
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
        """Per caller, latest last: the time of the last update in microseconds, and the shares in use then."""

    @property
    def callers(self) -> int:
        """The number of callers in memory."""
        return len(self._use)

    async def take(self, caller: str) -> QuotaState:
        return self.take_now(caller)

    def take_now(self, caller: str) -> QuotaState:
        """Do the same as `take`, without awaiting anything."""
        now_us, used = self._used(caller)
        is_admitted = all(
            shares + quota.needed <= quota.units * quota.window_us
            for quota, shares in zip(self.quotas, used, strict=True)
        )
        if is_admitted:
            used = tuple(shares + quota.taken for quota, shares in zip(self.quotas, used, strict=True))
        self._keep(caller, now_us, used)
        return QuotaState(self.quotas, used, is_admitted)

    def charge(self, caller: str, tokens: int) -> None:
        now_us, used = self._used(caller)
        self._keep(caller, now_us, tuple(map(sum, zip(used, tokens_taken(self.quotas, tokens), strict=True))))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield

    def _used(self, caller: str) -> tuple[int, tuple[int, ...]]:
        now_us = round(self._clock() * US)
        at_us, used = self._use.get(caller, (now_us, (0,) * len(self.quotas)))
        passed_us = now_us - at_us
        return now_us, tuple(
            max(0, shares - passed_us * quota.units) for quota, shares in zip(self.quotas, used, strict=True)
        )

    def _keep(self, caller: str, now_us: int, used: tuple[int, ...]) -> None:
        self._use[caller] = now_us, used
        self._use.move_to_end(caller)
        if len(self._use) > self._max_callers:
            self._use.popitem(last=False)
