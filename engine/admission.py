"""Admits requests to the lanes whole, or rejects them whole, before any of their work begins.

There are three classes of requests, by the modelled cost in tokens. *Small* ones overtake all others. *Interactive*
ones (which include the small ones) are limited by `max_queue_s`. *Bulk* ones are worked off between them, and may wait
for as long as their callers do.
"""

from dataclasses import dataclass
from typing import Literal

from engine.errors import DeadlineError, OverloadedError
from engine.fair_queue import Caller
from engine.ledger import SHARE_OF_FREE, Account, Reservation
from engine.planner import MAX_SMALL_TOKENS

BULK_MICRO_BATCHES = 4
"""A request is bulk if its modelled cost exceeds this many full micro-batches. At 256 tokens per micro-batch, that is
about 0.1 s of one core: nobody who waits for an answer notices how such a request is worked off."""
MAX_COUNTED_SHARE = SHARE_OF_FREE / (1 + SHARE_OF_FREE) ** 2
"""An interactive request counts with at most this share of the limit, 16 %: what a new caller may hold beside one who
holds their share. So a limit below the duration of a single request (a slow model, a low MAX_QUEUE_SECONDS) does not
reject every request."""

RequestClass = Literal["small", "large", "bulk"]


@dataclass(frozen=True, slots=True)
class Work:
    """The work of one request for the lanes.

    Attributes:
        tokens: modelled cost, as if each text had a run of its own.
        lane_s: the same in seconds of one lane.
    """

    tokens: int
    lane_s: float


class Admission:
    """Owns the accounts of the ledger for work that waits for a lane."""

    def __init__(self, *, lanes: int, micro_batch_tokens: int, max_queue_s: float, max_bulk_queue_s: float) -> None:
        self.small = Account("small", max_queue_s, threads=lanes)
        self.interactive = Account("interactive", max_queue_s, threads=lanes)
        self.bulk = Account("bulk", max_bulk_queue_s, threads=lanes)
        self._lanes = lanes
        self._bulk_tokens = micro_batch_tokens * BULK_MICRO_BATCHES

    def class_of(self, tokens: int) -> RequestClass:
        """Return the class of a request with this modelled cost."""
        if tokens <= MAX_SMALL_TOKENS:
            return "small"
        return "bulk" if tokens > self._bulk_tokens else "large"

    def reserve(self, caller: Caller, work: Work, deadline_s: float) -> Reservation:
        """Reserve the lanes for a request, or reject it.

        Args:
            caller: who sent it.
            work: perhaps an estimate; `hold` corrects it.
            deadline_s: seconds until the caller no longer waits.

        Raises:
            OverloadedError: the caller holds their share of the limit, or bulk work would end after the deadline.
            DeadlineError: bulk work would end after the deadline even if nothing else were queued.
        """
        kind = self.class_of(work.tokens)
        account = self._accounts(kind)[0]
        if kind == "bulk":
            self._check_deadline(caller, work.lane_s, deadline_s)
        if kind != "bulk" or not account.is_new(caller):
            account.check(caller, self._counted_s(kind, work))
        return self.hold(caller, work)

    def hold(self, caller: Caller, work: Work) -> Reservation:
        """Count a request that was accepted, unchecked."""
        kind = self.class_of(work.tokens)
        reservation = Reservation(self._accounts(kind), caller)
        reservation.resize(self._counted_s(kind, work))
        return reservation

    def overload(self, caller: Caller, lane_s: float) -> OverloadedError | None:
        """Return the error that a small request of *caller* would get now; None: it is admitted."""
        return self.small.error(caller, lane_s) if self.small.held else None

    def _accounts(self, kind: RequestClass) -> tuple[Account, ...]:
        """Return the accounts that count a request; the first one limits it: small ones overtake large ones."""
        if kind == "small":
            return self.small, self.interactive
        return (self.interactive if kind == "large" else self.bulk,)

    def _counted_s(self, kind: RequestClass, work: Work) -> float:
        return work.lane_s if kind == "bulk" else min(work.lane_s, self.interactive.limit * MAX_COUNTED_SHARE)

    def _check_deadline(self, caller: Caller, lane_s: float, deadline_s: float) -> None:
        """Reject bulk work that would end too late, although every caller gets an equal part of the lanes."""
        accounts = self.interactive, self.bulk
        mine_s = lane_s + sum(account.held_by(caller) for account in accounts)
        all_s = lane_s + sum(account.held for account in accounts)
        callers = sum(account.callers for account in accounts) + self.bulk.is_new(caller)
        expected_s = min(all_s, mine_s * max(1, callers)) / self._lanes
        if lane_s / self._lanes > deadline_s:
            raise DeadlineError(
                f"This request would take {lane_s / self._lanes:.1f} s even if nothing else were queued, and its "
                f"deadline is in {deadline_s:.1f} s, so no part of it was computed. Send fewer texts at once, or allow "
                "more time."
            )
        if expected_s > deadline_s:
            raise OverloadedError(
                f"With the work that is queued, this request would take {expected_s:.1f} s, and its deadline is in "
                f"{deadline_s:.1f} s, so no part of it was computed. Send fewer texts at once, or allow more time.",
                retry_after_s=max(1.0, expected_s - deadline_s),
            )
