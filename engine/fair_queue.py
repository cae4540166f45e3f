"""Start-time fair queueing: decides whose work goes next, so that no caller can make the others wait.

Each caller has a virtual time: the work done for them so far, in whatever unit the queue uses. The waiting caller with
the lowest one goes first, and pays for what is done. A caller who was idle starts at the virtual time of the work that
runs now: they are next, but they cannot save up credit. The algorithm is that of P. Goyal, H. M. Vin and H. Cheng,
"Start-time Fair Queuing", SIGCOMM 1996. One addition: the present moves on a little with all that is done, so that
a stream of ever new callers does not starve the others.
"""

import math
from bisect import insort
from typing import Generic, TypeVar

T = TypeVar("T")

Caller = tuple[str, ...]
"""The keys under which a caller is known, narrowest first: one name, or an IPv6 /64 and the /48 that contains it."""
ANYONE: Caller = ("",)
"""The caller of work that belongs to no particular caller."""

WIDE_SHARE = 16
"""A wide key (such as an IPv6 /48) pays this fraction of the work of the callers in it. Together they get at most as
much as 16 other callers: enough for a site with many users, and not enough for one attacker with 65,536 addresses."""
AGING = 16
"""The present moves on by one part in this many of what is done per waiting caller. So a waiting caller gets at least
that part of an equal share, however many new callers arrive, and no caller loses more than that part of theirs."""
MIN_PRUNED = 1024
"""Virtual times in memory up to this number are not searched for outdated ones."""


class FairClock:
    """The virtual times of callers. All amounts are in the unit of the caller of `charge`."""

    def __init__(self) -> None:
        self._now = 0.0
        self._times: dict[str, float] = {}
        self._prune_above = MIN_PRUNED

    @property
    def remembered(self) -> int:
        """The number of virtual times in memory."""
        return len(self._times)

    def time(self, caller: Caller) -> float:
        """Return the virtual time of *caller*: the latest of its keys', and never before the present."""
        times, latest = self._times, self._now
        for key in caller:
            time = times.get(key, latest)
            if time > latest:  # noqa: PLR1730 - twice as fast as max(), and each pick asks for all waiting callers
                latest = time
        return latest

    def advance(self, caller: Caller) -> None:
        """Move the present forward to the time of *caller*: that of least virtual time among all that wait."""
        self._now = self.time(caller)
        if len(self._times) > self._prune_above:
            self._times = {key: time for key, time in self._times.items() if time > self._now}
            self._prune_above = max(MIN_PRUNED, 2 * len(self._times))

    def age(self, amount: float, waiting: int) -> None:
        """Move the present forward for work that was charged, while this many callers waited."""
        self._now += amount / (AGING * waiting)

    def charge(self, caller: Caller, amount: float, *, max_lead: float = math.inf) -> None:
        """Add work that is done for *caller* now, but put their virtual time at most *max_lead* after the present."""
        times, now = self._times, self._now
        for position, key in enumerate(caller):
            time = max(now, times.get(key, now))
            times[key] = max(time, min(time + (amount / WIDE_SHARE if position else amount), now + max_lead))


class FairQueue(Generic[T]):
    """Waiting items of several callers. Fair between callers; one caller's items are in the order of their numbers."""

    def __init__(self) -> None:
        self._clock = FairClock()
        self._waiting: dict[Caller, list[tuple[float, int, float, T]]] = {}
        self._added = 0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, item: T, *, caller: Caller, cost: float, order: float = 0.0) -> None:
        """Add *item*. Among one caller's items the lowest *order* goes first, then the earliest."""
        self._added += 1
        self._length += 1
        insort(self._waiting.setdefault(caller, []), (order, self._added, cost, item))

    @property
    def callers(self) -> list[Caller]:
        """The callers whose items wait."""
        return list(self._waiting)

    def first(self, caller: Caller) -> T | None:
        """Return the item of *caller* that goes first; None: there is none."""
        items = self._waiting.get(caller)
        return items[0][-1] if items else None

    def pop(self) -> T:
        """Remove and return the next item, and charge its cost to its caller."""
        caller = min(self._waiting, key=self._clock.time)
        self._clock.advance(caller)
        waiting = len(self._waiting)
        _, _, cost, item = self._take(caller, 0)
        self._clock.charge(caller, cost)
        self._clock.age(cost, waiting)
        return item

    def remove(self, item: T, caller: Caller) -> None:
        """Remove *item* of *caller*, if it waits, without charging its cost: it will not be done."""
        for index, (*_, waiting) in enumerate(self._waiting.get(caller, ())):
            if waiting is item:
                self._take(caller, index)
                return

    def _take(self, caller: Caller, index: int) -> tuple[float, int, float, T]:
        items = self._waiting[caller]
        entry = items.pop(index)
        self._length -= 1
        if not items:
            del self._waiting[caller]
        return entry
