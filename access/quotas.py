"""How much a caller may ask: quotas, what is left of them, and the memory of who has used how much.

Each quota is a token bucket, kept as what is used: a caller may use the whole quota at once, and what is used
comes back evenly, the quota in one window. So nobody ever gets more than ``quota + quota / window * seconds`` in any
stretch of seconds. Amounts are whole numbers of *shares*, a unit's share of a window's microseconds: one unit is
`window_us` shares, and each microsecond gives `units` shares back. That makes all sums exact.
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
"""Microseconds of a second."""
MAX_CALLERS = 50_000
"""Callers whose use is remembered at most, about 20 MB; who comes with new addresses again and again gets no more."""


@dataclass(frozen=True, slots=True)
class Quota:
    """So many units per window.

    Attributes:
        name: of the policy, in headers and problems; also what its units are.
        units: what may be used at once, and what comes back in one window.
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
        """Whole units that may be used at once."""
        return max(0, (self.units * self.window_us - used) // self.window_us)

    def wait_s(self, used: int) -> int:
        """Whole seconds until a request is admitted; 0: now."""
        missing = used + self.needed - self.units * self.window_us
        return max(0, -(-missing // (self.units * US)))

    def pace_s(self, used: int) -> int:
        """The time in which to use what is left, in whole seconds, so that no request is ever refused."""
        if left := self.left(used):
            return math.ceil(left * self.window_s / self.units)
        return self.wait_s(used) or math.ceil(self.window_s / self.units)


def quotas_of(*, requests: int, tokens: int | None, window_s: int) -> tuple[Quota, ...]:
    """What each caller may ask per window: so many requests, and tokens of text (None: any number).

    A request takes its unit at the door. How many tokens it has is known later, so it needs only one share to be free
    and is charged afterwards, into debt if need be: so no request is too big to be answered ever.
    """
    window_us = window_s * US
    of_requests = Quota("requests", requests, window_s, needed=window_us, taken=window_us)
    if tokens is None:
        return (of_requests,)
    return (of_requests, Quota("tokens", tokens, window_s, needed=1, taken=0))


@dataclass(frozen=True)
class QuotaState:
    """What one caller has, at one moment.

    Attributes:
        quotas: those that hold for everybody.
        used: shares in use, per quota.
        is_admitted: whether this request may go on; then *used* holds what it took.
    """

    quotas: tuple[Quota, ...]
    used: tuple[int, ...]
    is_admitted: bool

    @property
    def violated(self) -> list[Quota]:
        """The quotas that keep a refused request out."""
        if self.is_admitted:
            return []
        return [quota for quota, used in zip(self.quotas, self.used, strict=True) if quota.wait_s(used)]

    @cached_property
    def retry_after_s(self) -> int:
        """Seconds until a refused request would be admitted."""
        return max(quota.wait_s(used) for quota, used in zip(self.quotas, self.used, strict=True))

    def after(self, tokens: int) -> "QuotaState":
        """The same with so many tokens more in use."""
        return replace(self, used=tuple(map(sum, zip(self.used, tokens_taken(self.quotas, tokens), strict=True))))


def tokens_taken(quotas: Sequence[Quota], tokens: int) -> tuple[int, ...]:
    """Shares that so many tokens of text take, per quota."""
    return tuple(tokens * quota.window_us if quota.name == "tokens" else 0 for quota in quotas)


class RateLimitedError(ServiceError):
    """The caller has asked for more than its allowance; nothing of this request was done."""

    status, code, title = 429, "rate-limited", "Too many requests"

    def __init__(self, allowance: QuotaState) -> None:
        """Tell which limit it is, how much it allows, and when to come again."""
        violated = allowance.violated
        limits = " and ".join(f"{quota.units} {quota.name} per {quota.window_s} s" for quota in violated)
        super().__init__(
            f"No more than {limits} are allowed per caller; the next request is taken in {allowance.retry_after_s} s.",
            retry_after_s=allowance.retry_after_s,
            facts={
                "limit": violated[0].units,
                "window_seconds": violated[0].window_s,
                # The member that draft-ietf-httpapi-ratelimit-headers-11, section 5.1, gives to such problems.
                "violated-policies": [quota.name for quota in violated],
            },
        )


class QuotaStore(Protocol):
    """Who remembers what callers have used."""

    quotas: tuple[Quota, ...]
    fallbacks: int
    """How often memory had to stand in for a store that is shared."""
    trouble: str | None
    """Why memory stands in for it now, in one word."""

    @property
    def store(self) -> Store:
        """Where it is remembered now."""
        ...

    async def take(self, caller: str) -> QuotaState:
        """Take one request, if *caller* may have it."""
        ...

    def charge(self, caller: str, tokens: int) -> None:
        """Note the tokens of a request that was admitted."""
        ...

    def running(self) -> AbstractAsyncContextManager[None]:
        """Connect to where it is remembered; at the end, let go of it."""
        ...


class NoQuotas:
    """Counts nothing: anybody may ask any amount."""

    quotas: tuple[Quota, ...] = ()
    store: Store = "off"
    fallbacks = 0
    trouble: str | None = None

    async def take(self, caller: str) -> QuotaState:
        del caller
        return QuotaState((), (), is_admitted=True)

    def charge(self, caller: str, tokens: int) -> None:
        pass

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield


class MemoryQuotas:
    """Remembers callers in this process, those of late only: the number is bounded."""

    store: Store = "memory"
    fallbacks = 0
    trouble: str | None = None

    def __init__(
        self,
        quotas: tuple[Quota, ...],
        *,
        most_callers: int = MAX_CALLERS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.quotas = quotas
        self._most_callers = most_callers
        self._clock = clock
        self._kept: OrderedDict[str, tuple[int, tuple[int, ...]]] = OrderedDict()
        """Per caller, when it was looked at last in microseconds, and the shares in use then; the latest last."""

    @property
    def callers(self) -> int:
        """How many are remembered."""
        return len(self._kept)

    async def take(self, caller: str) -> QuotaState:
        """Take one request, if *caller* may have it."""
        return self.take_now(caller)

    def take_now(self, caller: str) -> QuotaState:
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
        """Note the tokens of a request that was admitted."""
        now_us, used = self._used(caller)
        self._keep(caller, now_us, tuple(map(sum, zip(used, tokens_taken(self.quotas, tokens), strict=True))))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield

    def _used(self, caller: str) -> tuple[int, tuple[int, ...]]:
        now_us = round(self._clock() * US)
        at_us, used = self._kept.get(caller, (now_us, (0,) * len(self.quotas)))
        passed_us = now_us - at_us
        return now_us, tuple(
            max(0, shares - passed_us * quota.units) for quota, shares in zip(self.quotas, used, strict=True)
        )

    def _keep(self, caller: str, now_us: int, used: tuple[int, ...]) -> None:
        self._kept[caller] = now_us, used
        self._kept.move_to_end(caller)
        if len(self._kept) > self._most_callers:
            self._kept.popitem(last=False)
