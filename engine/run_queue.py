"""Everything that waits for a lane: chooses whose work goes next, and which texts form the next micro-batch.

- *Whose*: start-time fair queueing between callers (`engine.fair_queue`). Everyone whose texts are in a micro-batch
  pays an equal part of its cost per text: padding and the run itself included.
- *What*: of one caller's jobs, the one with the lowest `Job.sort_key`. Interactive jobs get most of the lanes while
  bulk jobs of the same caller wait as well.
- *Once*: equal texts of several jobs run once (`engine.equal_texts`). Each caller pays for each of their texts as if it
  had run: what a text costs does not depend on what others send, and sending a popular text earns nothing.
"""

import math
from collections.abc import Callable, Iterator, Sequence

from engine.equal_texts import EqualTexts
from engine.fair_queue import Caller, FairClock
from engine.job_queue import Job, JobQueue, MicroBatch
from engine.planner import MAX_SMALL_TOKENS

INTERACTIVE_WEIGHT = 4
"""Of one caller's work, interactive jobs get 4 times as much of the lanes as bulk jobs while both wait."""
MAX_LEAD_S = 1.0
"""Texts that fill the micro-batches of others, or get the rows of equal texts, put their caller's virtual time at most
this far after the present. So a caller who got much in this way is soon next again."""
INTERACTIVE, BULK = ("interactive",), ("bulk",)


class RunQueue:
    """Owns the jobs that have waiting texts, and the virtual times of their callers.

    Attributes:
        chosen: the job with which the next micro-batch begins, while it is taken.
        equal_texts: the texts that wait or run, by their keys.
    """

    def __init__(
        self, seconds: Callable[[MicroBatch], float], is_overdue: Callable[[MicroBatch], bool] = lambda _: False
    ) -> None:
        """Start empty.

        Args:
            seconds: returns the expected duration of a micro-batch on a lane.
            is_overdue: returns whether a micro-batch that was taken is overdue, or waits behind one that is.
        """
        self._seconds, self._is_overdue = seconds, is_overdue
        self.equal_texts = EqualTexts()
        self._small, self._large = JobQueue(), JobQueue()
        self.chosen: Job | None = None
        self._clock = FairClock()
        self._within: dict[Caller, FairClock] = {}  # of callers with waiting bulk: interactive against bulk

    def __bool__(self) -> bool:
        return bool(self._small.jobs or self._large.jobs)

    def __iter__(self) -> Iterator[Job]:
        yield from self._small
        yield from self._large

    @property
    def has_large(self) -> bool:
        return bool(self._large.jobs)

    @property
    def has_small(self) -> bool:
        return bool(self._small.jobs)

    @property
    def small_tokens(self) -> int:
        """Tokens of all waiting texts of small jobs, without padding."""
        return self._small.tokens

    def has_full_batch(self, budget_tokens: int) -> bool:
        """Return whether the next micro-batch would not be fuller later: there is large work, or enough small work."""
        return self.has_large or self.small_tokens >= budget_tokens

    def add(self, job: Job) -> None:
        """Add a new job: the texts that get the rows of equal ones that run do not wait."""
        if job.keys is not None:
            job.waiting = self._attach_to_taken(job, job.waiting)
            self.equal_texts.add(job, job.waiting)
        if job.waiting:
            self._queue_of(job).add(job)
        else:
            job.count_waiting()

    def requeue(self, job: Job, indexes: list[int]) -> None:
        """Let texts of *job* that were taken wait again, unless equal ones run."""
        if waiting := self._attach_to_taken(job, indexes):
            self._queue_of(job).requeue(job, waiting)
            self.equal_texts.add(job, waiting)

    def end(self, batch: MicroBatch) -> None:
        """Attach nothing to *batch* from now on: it has ended, or its texts will wait again."""
        self.equal_texts.end(batch)

    def drop(self, job: Job) -> int:
        """Remove all waiting texts of *job*, and return their number."""
        dropped = job.waiting
        if dropped:
            self._queue_of(job).remove(job, dropped)
            self.equal_texts.remove(job, dropped)
            self._forget_idle(job.caller)
        return len(dropped)

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
        self._clock.age(batch.expected_s, len(heads))
        return batch

    def take_small(self) -> MicroBatch:
        """Remove and return the next micro-batch of small jobs, for the express lane."""
        head = self._next(self._small.heads)
        if not self.has_large:  # else the caller of a large job may have got less
            self._clock.advance(head.caller)
        return self._take(self._small, head, MAX_SMALL_TOKENS)

    def _take(self, queue: JobQueue, head: Job, budget_tokens: int) -> MicroBatch:
        self.chosen = head  # if this fails, it is the job to blame
        batch = queue.take(head, budget_tokens, has_equal_texts=self.equal_texts.are_waiting)
        batch.expected_s = self._seconds(batch)
        per_text_s = batch.expected_s / len(batch.parts)
        for job, rows in batch.rows_by_job.items():
            is_first = job.caller == head.caller
            self._charge(job, per_text_s * len(rows), math.inf if is_first else MAX_LEAD_S)
        for job, indexes in self._attach_waiting(batch).items():
            self._charge(job, per_text_s * len(indexes), MAX_LEAD_S)
        self.chosen = None
        return batch

    def _attach_waiting(self, batch: MicroBatch) -> dict[Job, list[int]]:
        """Attach the waiting texts that equal one of *batch*; return their indexes per job."""
        attached: dict[Job, list[int]] = {}
        for row, (job, index) in self.equal_texts.take(batch):
            batch.attach(job, row, index)
            attached.setdefault(job, []).append(index)
        for job, indexes in attached.items():
            self._queue_of(job).remove(job, indexes)
        return attached

    def _attach_to_taken(self, job: Job, indexes: list[int]) -> list[int]:
        """Attach those of these texts of *job* whose equals run or will run soon; return the others."""
        found = self.equal_texts.find_taken(job, indexes)
        if not found:
            return indexes
        attached = set[int]()
        for batch, rows in found.items():
            if self._is_overdue(batch):
                continue
            for row, index in rows:
                batch.attach(job, row, index)
                attached.add(index)
            self._charge(job, self._seconds(batch) / len(batch.parts) * len(rows), MAX_LEAD_S)
        return [index for index in indexes if index not in attached]

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

    def _charge(self, job: Job, seconds: float, max_lead_s: float) -> None:
        """Let the caller of *job* pay for texts that take this many seconds of a lane."""
        self._clock.charge(job.caller, seconds, max_lead=max_lead_s)
        if (within := self._within.get(job.caller)) is not None:
            flow, weight = (BULK, INTERACTIVE_WEIGHT) if job.is_bulk else (INTERACTIVE, 1)
            within.charge(flow, seconds * weight)
        self._forget_idle(job.caller)

    def _forget_idle(self, caller: Caller) -> None:
        """Forget the virtual times within *caller* when no bulk job waits: nothing has to give way."""
        if caller in self._within and not self._large.has_bulk(caller):
            del self._within[caller]
