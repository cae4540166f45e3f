"""Admits requests to the lanes whole, or rejects them whole, before any of their work begins.

There are three classes of requests, by the modelled cost in tokens. *Small* ones overtake all others. *Interactive*
ones (which include the small ones) are limited by `max_queue_s`. *Bulk* ones are worked off between them, and may wait
for as long as their callers do.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from engine.errors import DeadlineError, OverloadedError
from engine.fair_queue import Caller
from engine.job_queue import Item, Job, RunnableModel
from engine.ledger import SHARE_OF_FREE, Account, Reservation
from engine.planner import MAX_SMALL_TOKENS, RUN_COST_TOKENS, separate_cost

BULK_MICRO_BATCHES = 4
"""A request is bulk if its modelled cost exceeds this many full micro-batches. At 256 tokens per micro-batch, that is
about 0.1 s of one core: the order in which such a request is worked off makes no visible difference."""
MAX_COUNTED_SHARE = SHARE_OF_FREE / (1 + SHARE_OF_FREE) ** 2
"""An interactive request counts with at most this share of the limit, 16 %: what a new caller may hold beside one who
holds their share. So a limit below the duration of a single request (a slow model, a low MAX_QUEUE_SECONDS) does not
reject every request."""

RequestClass = Literal["small", "large", "bulk"]


class Work(NamedTuple):
    """The work of one request for the lanes.

    Attributes:
        tokens: modelled cost, as if each text had a run of its own.
        lane_s: the same in seconds of one lane.
        least_s: of bulk work, seconds of one lane if its texts share full micro-batches without padding; None: as
            *lane_s*.
    """

    tokens: int
    lane_s: float
    least_s: float | None = None


@dataclass(slots=True, eq=False)
class Admitted:
    """A request that was admitted whole. Its texts may run in several jobs, one after another.

    Attributes:
        model: runs its texts.
        tokens: modelled cost of all its texts.
        kind: its class, which is that of each of its jobs.
        sort_key: as `Job.sort_key`, the same for all its jobs, so that they run in the order in which they start.
        reservation: what is held for texts that no job has got yet.
        coalesced: number of its texts that got the vector of an equal text, of the jobs that `Scheduler.run` has run.
        counted_s_per_token: as `Job.counted_s_per_token`.
    """

    model: RunnableModel
    tokens: int
    kind: RequestClass
    sort_key: float
    reservation: Reservation
    coalesced: int = 0
    counted_s_per_token: float = field(init=False)

    def __post_init__(self) -> None:
        self.counted_s_per_token = self.reservation.amount / self.tokens

    def job(self, items: Sequence[Item], keys: Sequence[bytes] | None, *, is_last: bool) -> Job:
        """Return a job for all texts, or for a slice; the one that *is_last* holds what is left of the reservation."""
        return Job(
            model=self.model,
            items=items,
            result=asyncio.get_running_loop().create_future(),
            counted_s_per_token=self.counted_s_per_token,
            sort_key=self.sort_key,
            is_small=self.kind == "small",
            is_bulk=self.kind == "bulk",
            keys=keys,
            reservation=self.reservation if is_last else self.split(items),
        )

    def split(self, items: Sequence[Item]) -> Reservation:
        """Hold less by the part of *items*; return an empty reservation for a job that holds it from now on."""
        part_s = separate_cost(len(items), sum(item.length for item in items)) * self.counted_s_per_token
        self.reservation.resize(max(0.0, self.reservation.amount - part_s))
        return Reservation(self.reservation.accounts, self.reservation.caller)


class Admission:
    """Owns the accounts of the ledger for work that waits for a lane."""

    def __init__(self, *, lanes: int, micro_batch_tokens: int, max_queue_s: float, max_bulk_queue_s: float) -> None:
        self.small = Account("small", max_queue_s, threads=lanes)
        self.interactive = Account("interactive", max_queue_s, threads=lanes)
        self.bulk = Account("bulk", max_bulk_queue_s, threads=lanes)
        self._lanes = lanes
        self._micro_batch_tokens = micro_batch_tokens
        self._bulk_tokens = micro_batch_tokens * BULK_MICRO_BATCHES

    def work(self, lengths: Sequence[int], seconds_per_token: float) -> Work:
        """Return the work of texts with this many tokens each, for a model of this speed."""
        real_tokens = sum(lengths)
        tokens = separate_cost(len(lengths), real_tokens)
        if tokens <= self._bulk_tokens:
            return Work(tokens, tokens * seconds_per_token)
        least_tokens = real_tokens + RUN_COST_TOKENS * math.ceil(real_tokens / self._micro_batch_tokens)
        return Work(tokens, tokens * seconds_per_token, min(tokens, least_tokens) * seconds_per_token)

    def class_of(self, tokens: int) -> RequestClass:
        """Return the class of a request with this modelled cost."""
        if tokens <= MAX_SMALL_TOKENS:
            return "small"
        return "bulk" if tokens > self._bulk_tokens else "large"

    def reserve(self, caller: Caller, work: Work, deadline_s: float) -> Reservation:
        """Reserve the lanes for a request, or reject it.

        Args:
            caller: who sent it.
            work: perhaps an estimate; `correct` replaces it.
            deadline_s: seconds until the caller no longer waits.

        Raises:
            OverloadedError: the caller holds their share of the limit, or bulk work would end after the deadline.
            DeadlineError: bulk work would end after the deadline even if nothing else were queued.
        """
        kind = self.class_of(work.tokens)
        accounts = self._accounts(kind)
        if kind == "bulk":
            self._check_deadline(caller, work.lane_s if work.least_s is None else work.least_s, deadline_s)
        counted_s = self._counted_s(accounts, work)
        if not self._is_first_bulk(kind, caller):
            accounts[0].check(caller, counted_s, ignored=self._ignored_s(kind, caller))
        return _hold(accounts, caller, counted_s)

    def correct(self, estimate: Reservation, work: Work) -> Reservation:
        """Replace the *estimate* of an accepted request by its actual *work*, which may be of another class.

        It moves to the account of that class if its caller may hold it there. Otherwise it stays where it was admitted:
        an estimate that is too high, such as that of English, must not fill an account that rejects other callers.
        """
        estimate.resize(0.0)
        caller, kind = estimate.caller, self.class_of(work.tokens)
        accounts = self._accounts(kind)
        if accounts[0] is not estimate.accounts[0] and not self._is_first_bulk(kind, caller):
            counted_s, ignored_s = self._counted_s(accounts, work), self._ignored_s(kind, caller)
            if accounts[0].excess(caller, counted_s, ignored=ignored_s) > 0:
                accounts = estimate.accounts
        return _hold(accounts, caller, self._counted_s(accounts, work))

    def overload(self, caller: Caller, lane_s: float) -> OverloadedError | None:
        """Return the error that a small request of *caller* would get now; None: it is admitted."""
        return self.small.error(caller, lane_s) if self.small.held else None

    def _accounts(self, kind: RequestClass) -> Sequence[Account]:
        """Return the accounts that count a request; the first one limits it: small ones overtake large ones."""
        if kind == "small":
            return self.small, self.interactive
        return (self.interactive if kind == "large" else self.bulk,)

    def _counted_s(self, accounts: Sequence[Account], work: Work) -> float:
        is_bulk = accounts[0] is self.bulk
        return work.lane_s if is_bulk else min(work.lane_s, self.interactive.limit * MAX_COUNTED_SHARE)

    def _is_first_bulk(self, kind: RequestClass, caller: Caller) -> bool:
        """Whether it is the caller's only bulk work, which no limit but the deadline rejects."""
        return kind == "bulk" and self.bulk.is_new(caller)

    def _ignored_s(self, kind: RequestClass, caller: Caller) -> float:
        """Return the work in the account that does not count against *caller*: small requests of others.

        Large work does not limit those, so together they may exceed the limit, and would leave no room for a newcomer.
        """
        return self.small.held - self.small.held_by(caller) if kind == "large" else 0.0

    def _check_deadline(self, caller: Caller, lane_s: float, deadline_s: float) -> None:
        """Reject bulk work that would end too late, although every caller gets an equal part of the lanes.

        *lane_s* is the least that it may take: work that could be done in time is tried.
        """
        accounts = self.interactive, self.bulk
        mine_s = lane_s + sum(account.held_by(caller) for account in accounts)
        all_s = lane_s + sum(account.held for account in accounts)
        callers = len({caller[0], *self.interactive.holders, *self.bulk.holders})
        expected_s = min(all_s, mine_s * callers) / self._lanes
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


def _hold(accounts: Sequence[Account], caller: Caller, counted_s: float) -> Reservation:
    reservation = Reservation(accounts, caller)
    reservation.resize(counted_s)
    return reservation
