"""The ledger: every kind of work has a limit on what may wait, and a fair share of it for each caller.

Work is reserved before it begins, or rejected: nothing that was accepted is ever thrown out. A caller may hold at most
`SHARE_OF_FREE` times the room that is still free. Alone, they get 80 % of the limit; two get 44 % each; a new
caller always finds room. Switches share their buffers in this way: A. K. Choudhury and E. L. Hahne, "Dynamic Queue
Length Thresholds for Shared-Memory Packet Switches", IEEE/ACM Transactions on Networking 6 (1998).
"""

from collections.abc import KeysView, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from engine.errors import OverloadedError
from engine.fair_queue import ANYONE, WIDE_SHARE, Caller

SHARE_OF_FREE = 4
"""How many times the free room one caller may hold, called alpha in the source."""
ROUNDING = 1e-9
"""Amounts below this fraction of the limit are taken for rounding errors: sums of floats drift."""

Kind = Literal["start", "decode", "lookup", "results", "tokenize", "small", "interactive", "bulk"]

SUBJECTS: dict[Kind, tuple[str, str]] = {
    "start": ("Requests that wait to start take", "of the event loop"),
    "decode": ("Large bodies that wait to be decoded take", "for large bodies"),
    "lookup": ("Lookups of cached results take", "of the event loop under overload"),
    "results": ("Cached results of answers that are not received yet take", "of texts in long answers"),
    "tokenize": ("Texts that wait to be tokenised take", "MAX_QUEUE_SECONDS"),
    "small": ("Queued short requests take", "MAX_QUEUE_SECONDS"),
    "interactive": ("Queued work takes", "MAX_QUEUE_SECONDS"),
    "bulk": ("Queued bulk work takes", "MAX_BULK_QUEUE_SECONDS"),
}
"""How the rejection of each kind of work begins, and the limit that it names."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """The work of one kind that waits: seconds until it is done, the limit, and the callers who hold it."""

    seconds: float
    limit_seconds: float
    callers: int


class Account:
    """The limit on the waiting work of one kind, in seconds of one thread, and what each caller holds of it.

    Attributes:
        limit: what may be held in all, in seconds of one thread.
        held: what is held by all callers.
    """

    def __init__(self, kind: Kind, limit_s: float, *, threads: int = 1) -> None:
        """Start empty.

        Args:
            kind: the kind of work.
            limit_s: limit, in seconds until the work is done.
            threads: how many threads do the work at once.
        """
        self.kind = kind
        self.limit = limit_s * threads
        self.held = 0.0
        self._threads = threads
        self._held_by: dict[str, float] = {}  # by the narrowest key of each caller
        self._held_in: dict[str, float] = {}  # by the keys of wide networks

    @property
    def backlog(self) -> Backlog:
        return Backlog(self.held / self._threads, self.limit / self._threads, self.callers)

    def held_by(self, caller: Caller) -> float:
        """Return what *caller* holds, under the narrowest key."""
        return self._held_by.get(caller[0], 0.0)

    def is_new(self, caller: Caller) -> bool:
        """Return whether *caller*, and everyone in the same wide network, holds nothing."""
        return not (caller[0] in self._held_by or any(key in self._held_in for key in caller[1:]))

    @property
    def callers(self) -> int:
        """How many callers hold something."""
        return len(self._held_by)

    @property
    def holders(self) -> KeysView[str]:
        """The narrowest keys of the callers who hold something."""
        return self._held_by.keys()

    def excess(self, caller: Caller, amount: float, *, ignored: float = 0.0) -> float:
        """Return by how much *amount* exceeds what *caller* may still reserve; at most 0: it may be reserved.

        Of what others hold, *ignored* takes none of the caller's room.
        """
        free = max(0.0, self.limit - self.held + ignored) * SHARE_OF_FREE
        held = self._held_by.get(caller[0], 0.0)
        for key in caller[1:]:
            held = max(held, self._held_in.get(key, 0.0) / WIDE_SHARE)
        return amount - (free - held) / (SHARE_OF_FREE + 1) - self.limit * ROUNDING

    def check(self, caller: Caller, amount: float, *, ignored: float = 0.0) -> None:
        """Reject *amount* if the caller may not reserve it.

        Raises:
            OverloadedError: the caller holds their share of the limit.
        """
        excess = self.excess(caller, amount, ignored=ignored)
        if excess > 0:
            raise self._rejection(caller, excess)

    def error(self, caller: Caller, amount: float, *, ignored: float = 0.0) -> OverloadedError | None:
        """Return the error with which `check` would reject *amount*; None: it would not."""
        excess = self.excess(caller, amount, ignored=ignored)
        return self._rejection(caller, excess) if excess > 0 else None

    def _rejection(self, caller: Caller, excess: float) -> OverloadedError:
        threads, (subject, limit) = self._threads, SUBJECTS[self.kind]
        yours = f"{self.held_by(caller) / threads:.1f} s of it is yours"
        for key in caller[1:]:
            yours += f", {self._held_in.get(key, 0.0) / threads:.1f} s is that of your network"
        return OverloadedError(
            f"{subject} {self.held / threads:.1f} s; {yours}. With this request you would exceed your share of the "
            f"limit of {self.limit / threads:g} s ({limit}), so no part of it was computed.",
            retry_after_s=max(1.0, excess * (SHARE_OF_FREE + 1) / SHARE_OF_FREE / threads),
        )

    def hold(self, caller: Caller, amount: float) -> None:
        """Count *amount* more for *caller*; unchecked."""
        self.held += amount
        key = caller[0]
        self._held_by[key] = self._held_by.get(key, 0.0) + amount
        for key in caller[1:]:
            self._held_in[key] = self._held_in.get(key, 0.0) + amount

    def release(self, caller: Caller, amount: float) -> None:
        """Count *amount* less for *caller*."""
        self.held -= amount
        self._reduce(self._held_by, caller[0], amount)
        for key in caller[1:]:
            self._reduce(self._held_in, key, amount)
        if not self._held_by:
            self.held = 0.0  # an empty account is exactly zero
            self._held_in.clear()

    def _reduce(self, held: dict[str, float], key: str, amount: float) -> None:
        left = held.get(key, 0.0) - amount
        if left > self.limit * ROUNDING:
            held[key] = left
        else:
            held.pop(key, None)


@dataclass(slots=True, eq=False)
class Reservation:
    """What one request holds in some accounts. As a context manager, it is given back at the end of the block."""

    accounts: Sequence[Account]
    caller: Caller = ANYONE
    amount: float = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.resize(0.0)

    def resize(self, amount: float) -> None:
        """Hold *amount* from now on; unchecked, because accepted work is not thrown out."""
        change = amount - self.amount
        if not change:
            return
        self.amount = amount
        for account in self.accounts:
            if change > 0:
                account.hold(self.caller, change)
            elif change < 0:
                account.release(self.caller, -change)
