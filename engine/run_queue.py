"""Everything that waits for a lane: chooses whose work goes next, and which texts form the next micro-batch.

- *Whose*: start-time fair queueing between callers (`engine.fair_queue`). Everyone whose texts are in a micro-batch
  pays an equal part of its cost per text: padding and the run itself included.
- *What*: of one caller's jobs, the one with the lowest `Job.sort_key`. Interactive jobs get most of the lanes while
  bulk jobs of the same caller wait as well.
"""

import math
from collections.abc import Callable, Iterator, Sequence

from engine.fair_queue import Caller, FairClock
from engine.job_queue import Job, JobQueue, MicroBatch
from engine.planner import MAX_SMALL_TOKENS

INTERACTIVE_WEIGHT = 4
"""Of one caller's work, interactive jobs get 4 times as much of the lanes as bulk jobs while both wait."""
MAX_LEAD_S = 1.0
"""Texts that fill the micro-batches of others put their caller's virtual time at most this far after the present. So a
caller who got much in this way is soon next again."""
INTERACTIVE, BULK = ("interactive",), ("bulk",)


class RunQueue:
    """Owns the jobs that have waiting texts, and the virtual times of their callers.

    Attributes:
        chosen: the job with which the next micro-batch begins, while it is taken.
    """

    def __init__(self, seconds: Callable[[MicroBatch], float]) -> None:
        """Start empty.

        Args:
            seconds: returns the expected duration of a micro-batch on a lane.
        """
        self._seconds = seconds
        self._small, self._large = JobQueue(), JobQueue()
        self.chosen: Job | None = None
        self._clock = FairClock()
        self._within: dict[Caller, FairClock] = {}  # of callers with waiting bulk: interactive against bulk

    def __bool__(self) -> bool:
        return bool(self._small or self._large)

    def __iter__(self) -> Iterator[Job]:
        yield from self._small
        yield from self._large

    @property
    def has_large(self) -> bool:
        return bool(self._large)

    @property
    def has_small(self) -> bool:
        return bool(self._small)

    @property
    def small_tokens(self) -> int:
        """Tokens of all waiting texts of small jobs, without padding."""
        return self._small.tokens

    def has_full_batch(self, budget_tokens: int) -> bool:
        """Return whether the next micro-batch would not be fuller later: there is large work, or enough small work."""
        return self.has_large or self.small_tokens >= budget_tokens

    def add(self, job: Job) -> None:
        self._queue_of(job).add(job)

    def requeue(self, job: Job, indexes: Sequence[int]) -> None:
        """Let texts of *job* that were taken wait again."""
        self._queue_of(job).requeue(job, indexes)

    def drop(self, job: Job) -> int:
        """Remove all waiting texts of *job*, and return their number."""
        dropped = len(job.waiting)
        if dropped:
            self._queue_of(job).remove(job, job.waiting)
            self._forget_idle(job.caller)
        return dropped

    @property
    def heads(self) -> list[Job]:
        """The first jobs of each class and caller; the next micro-batch begins with one of them."""
        return [*self._small.heads, *self._large.heads]

    def take(self, budget: Callable[[int], int]) -> MicroBatch:
        """Remove and return the next micro-batch; *budget* returns its padded tokens for those that wait with it."""
        heads = self.heads
        head = self._next(heads)
        self._clock.advance(head.caller)
        queue = self._queue_of(head)
        batch = self._take(queue, head, budget(queue.tokens))
        self._clock.age(self._seconds(batch), len(heads))
        return batch

    def take_small(self) -> MicroBatch:
        """Remove and return the next micro-batch of small jobs, for the express lane."""
        head = self._next(self._small.heads)
        if not self.has_large:  # else the caller of a large job may have got less
            self._clock.advance(head.caller)
        return self._take(self._small, head, MAX_SMALL_TOKENS)

    def _take(self, queue: JobQueue, head: Job, budget_tokens: int) -> MicroBatch:
        self.chosen = head  # if this fails, it is the job to blame
        batch = queue.take(head, budget_tokens)
        self._charge(batch, head.caller)
        self.chosen = None
        return batch

    def _queue_of(self, job: Job) -> JobQueue:
        return self._small if job.is_small else self._large

    def _next(self, heads: Sequence[Job]) -> Job:
        """Return the job that goes first of *heads*: the first job of each class and caller."""
        caller = min(heads, key=lambda job: (self._clock.time(job.caller), job.sort_key)).caller
        own = [job for job in heads if job.caller == caller]
        flows = {BULK if job.is_bulk else INTERACTIVE for job in own}
        if len(flows) > 1:
            self._within.setdefault(caller, FairClock())
        if (within := self._within.get(caller)) is not None:
            flow = min(flows, key=lambda flow: (within.time(flow), flow == BULK))
            within.advance(flow)
            own = [job for job in own if job.is_bulk == (flow == BULK)]
        return min(own, key=lambda job: job.sort_key)

    def _charge(self, batch: MicroBatch, first: Caller) -> None:
        """Let the callers of *batch* pay for it, each for their own texts; *first* is the one who was next."""
        per_text_s = self._seconds(batch) / len(batch.parts)
        for job, rows in batch.rows_by_job.items():
            seconds = per_text_s * len(rows)
            max_lead_s = math.inf if job.caller == first else MAX_LEAD_S
            self._clock.charge(job.caller, seconds, max_lead=max_lead_s)
            if (within := self._within.get(job.caller)) is not None:
                flow, weight = (BULK, INTERACTIVE_WEIGHT) if job.is_bulk else (INTERACTIVE, 1)
                within.charge(flow, seconds * weight)
            self._forget_idle(job.caller)

    def _forget_idle(self, caller: Caller) -> None:
        """Forget the virtual times within *caller* when no bulk job waits: nothing has to give way."""
        if caller in self._within and not self._large.has_bulk(caller):
            del self._within[caller]
