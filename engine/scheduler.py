"""Decides which texts run next, and on which lane.

One scheduler owns the queue and all lanes, so models share the cores instead of competing for them.

- **Admission** (`engine.admission`): `reserve` and `admit` admit a request whole, or reject it whole before any work.
  The limit is on the queued work, in estimated seconds, and each caller may hold a share of it.
- **Queue** (`engine.run_queue`): fair between callers. Of one caller's requests, each has one number, its arrival plus
  its estimated run time, and the lowest goes first. So small requests overtake large ones. No request starves: its
  number stays, later ones grow.
- **Micro-batches** (`engine.planner`): a free lane takes the first text of the queue, and fills the micro-batch with
  texts of the same model and of similar length, so that little padding is computed. An idle service starts texts at
  once; short ones that arrive in the same iteration of the event loop share runs, of fewer texts if more than two lanes
  are idle. In a busy one the waiting texts form the batches; a lane waits 10 ms at most, for the next texts of the
  callers that it has just answered (`engine.gathering`).
- **Equal texts** of several requests run once (`engine.equal_texts`). They wait, count and are charged like others.
- **Lanes** (`engine.lane`): one thread per usable core. If there is enough work, each gets its next micro-batch shortly
  before the current one is expected to end, so that its thread need not wait for the event loop.
- **Express lane**: one more thread, for small requests only. It works while every lane is busy with a large request, so
  a query does not wait for a micro-batch of a bulk job to end.
- **Failures**: if a micro-batch of several requests fails, each of them runs again on its own, so only the request that
  causes the failure fails. The watchdog (`engine.watchdog`) finds runs that hang; what waits behind one is requeued.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog

from engine.admission import Admission, Admitted
from engine.duration_estimator import DurationEstimator
from engine.errors import CutOffError, DrainingError, InferenceError, OverloadedError
from engine.fair_queue import ANYONE, Caller
from engine.gathering import Gathering
from engine.job_outcomes import JobOutcomes
from engine.job_queue import Item, Job, MicroBatch, RunnableModel
from engine.lane import PREFETCH_S, Lane
from engine.ledger import Account, Reservation
from engine.planner import MAX_SMALL_TOKENS
from engine.run_counters import RunCounters
from engine.run_queue import RunQueue
from engine.scheduler_state import SchedulerState
from engine.vectors import Matrix
from engine.watchdog import StuckRun, Watchdog
from engine.work_estimate import Estimate, budget_tokens, estimate_work

CLOSE_TIMEOUT_S = 5.0
"""How long closing waits for running micro-batches. The callers had the whole shutdown timeout before."""

log = structlog.get_logger()


class Scheduler:
    """Owns the queue and the lanes. `admit`, then `run` or `start`, is the only way to run a model."""

    def __init__(
        self,
        *,
        lanes: Sequence[Lane],
        express: Lane,
        micro_batch_tokens: int,
        max_queue_s: float,
        max_bulk_queue_s: float,
        stuck_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create an idle scheduler. The caller closes the lanes.

        Args:
            lanes: the lanes for work of any size.
            express: the lane for small requests while all others are busy with large ones.
            micro_batch_tokens: maximum padded tokens of a micro-batch.
            max_queue_s: limit on the queued interactive work, in seconds until the lanes have done it.
            max_bulk_queue_s: the same for bulk work.
            stuck_s: seconds after which a model run counts as stuck.
            clock: returns seconds, monotonic; the same as the lanes'.
        """
        self._lanes = tuple(lanes)
        self._express = express
        self._all_lanes = (*lanes, express)
        self._watchdog = Watchdog(self._all_lanes, stuck_s=stuck_s, on_overdue=self._requeue_unstarted, clock=clock)
        self._micro_batch_tokens = micro_batch_tokens
        self._clock = clock
        self._durations = DurationEstimator()
        self._queue = RunQueue(self._durations.seconds, self._is_overdue)
        self._outcomes = JobOutcomes(self._queue)
        self._admission = Admission(
            lanes=len(lanes),
            micro_batch_tokens=micro_batch_tokens,
            max_queue_s=max_queue_s,
            max_bulk_queue_s=max_bulk_queue_s,
        )
        self._runs = RunCounters()
        self._is_closed = self._is_dispatch_due = False
        self._batch_ended = asyncio.Event()
        self._gathering = Gathering(self._dispatch)
        self._prefetch: asyncio.TimerHandle | None = None

    def reserve(self, model: RunnableModel, lengths: Sequence[int], caller: Caller, deadline_s: float) -> Reservation:
        """Reserve the lanes for a request before it is tokenised.

        Args:
            model: a leased model.
            lengths: estimated tokens per text as the model sees them; at least one text.
            caller: who sent it.
            deadline_s: seconds until the caller no longer waits.

        Raises:
            OverloadedError: the caller has too much work queued; no part of this request was computed.
        """
        work = self._admission.work(lengths, self._durations.seconds_per_token(model))
        return self._admission.reserve(caller, work, deadline_s)

    def admit(
        self,
        model: RunnableModel,
        items: Sequence[Item],
        *,
        caller: Caller = ANYONE,
        deadline_s: float = math.inf,
        reservation: Reservation | None = None,
    ) -> Admitted:
        """Admit a request, so that `run` or `start` can run its texts.

        Args:
            model: a leased model.
            items: texts that were tokenised for it, at least one.
            caller: who sent them.
            deadline_s: seconds until the caller no longer waits.
            reservation: of this request, from `reserve`; None: it is admitted now.

        Returns:
            The request. Its reservation is the caller's to give back.

        Raises:
            OverloadedError: the caller has too much work queued; no part of this request was computed.
            DrainingError: the scheduler is closing.
        """
        if self._is_closed:
            raise DrainingError
        work = self._admission.work([item.length for item in items], self._durations.seconds_per_token(model))
        if reservation is None:
            held = self._admission.reserve(caller, work, deadline_s)
        else:
            held = self._admission.correct(reservation, work)
        return Admitted(model, work.tokens, self._admission.class_of(work.tokens), self._clock() + work.lane_s, held)

    async def run(self, admitted: Admitted, items: Sequence[Item], keys: Sequence[bytes] | None = None) -> Matrix:
        """Run all *items* of an admitted request. If its caller is cancelled, its waiting texts are dropped.

        Args:
            admitted: the request; `Admitted.coalesced` is final afterwards.
            items: its texts.
            keys: as `Job.keys`.

        Returns:
            Float32 vectors of shape ``(len(items), dim)``, in the order of *items*.

        Raises:
            InferenceError: the model raised an error, or returned vectors of the wrong shape.
            LaneLostError: the thread that ran the model died, or none could be started.
        """
        job = self.start(admitted, items, keys=keys)
        try:
            return await job.result
        finally:
            self.drop(job)
            admitted.coalesced += job.coalesced

    def start(
        self, admitted: Admitted, items: Sequence[Item], *, is_last: bool = True, keys: Sequence[bytes] | None = None
    ) -> Job:
        """Queue texts of an admitted request: all of them, or a slice. The caller must `drop` the job at its end.

        The job takes over its part of the request's reservation, or what is left of it if the slice *is_last*.
        *keys* are `Job.keys`; `Job.coalesced` is final once `Job.result` is resolved.

        Raises:
            DrainingError: the scheduler is closing.
        """
        if self._is_closed:
            raise DrainingError
        job = admitted.job(items, keys, is_last=is_last)
        job.queued_s = self._clock()
        self._queue.add(job)
        self._gathering.count(len(items))
        if not self._is_dispatch_due:  # once for all requests that arrive in one iteration of the event loop
            self._is_dispatch_due = True
            asyncio.get_running_loop().call_soon(self._dispatch)
        return job

    def drop(self, job: Job) -> None:
        """Remove the waiting texts of *job* and ignore its result."""
        self._outcomes.drop(job, [batch for lane in self._all_lanes for batch in lane.batches])

    def estimate(self, model: RunnableModel, items: Sequence[Item]) -> Estimate:
        """Return the micro-batches of *items* on an idle service, and their duration at the measured speed."""
        return estimate_work(
            [item.length for item in items],
            model.batching,
            lanes=len(self._lanes),
            micro_batch_tokens=self._micro_batch_tokens,
            seconds_per_token=self._durations.seconds_per_token(model),
        )

    def is_tight(self) -> bool:
        """Return whether `overload` may return an error for some caller. It does not, as long as much room is free."""
        return self._admission.small.held >= self._admission.small.limit / 2

    def overload(self, caller: Caller = ANYONE) -> OverloadedError | None:
        """Return the error that any request of *caller* would get now; None: a small one is admitted."""
        waiting = next(iter(self._queue), None)
        if waiting is None:
            return None
        return self._admission.overload(caller, MAX_SMALL_TOKENS * self._durations.seconds_per_token(waiting.model))

    @property
    def accounts(self) -> tuple[Account, ...]:
        """The accounts of the ledger for work that waits for a lane."""
        return self._admission.interactive, self._admission.bulk

    def state(self) -> SchedulerState:
        jobs, busy_s = list(self._queue), {lane.name: lane.busy_s for lane in self._all_lanes}
        return SchedulerState(
            waiting_requests=len(jobs),
            waiting_texts=sum(len(job.waiting) for job in jobs),
            waiting_seconds=self._admission.interactive.backlog.seconds,
            running=self._running(),
            lanes=len(self._lanes),
            lanes_stuck=len(self._watchdog.stuck),
            lanes_died=sum(lane.restarts for lane in self._all_lanes),
            micro_batches=self._runs.runs,
            texts=self._runs.texts,
            padded_tokens=self._runs.padded_tokens,
            dropped_texts=self._outcomes.dropped_texts,
            runs=self._runs.read(),
            lanes_busy_s=sum(busy_s[lane.name] for lane in self._lanes),
            busy_s=busy_s,
        )

    @property
    def stuck(self) -> list[StuckRun]:
        """The model runs that take too long at this moment."""
        return self._watchdog.stuck

    async def aclose(self) -> None:
        """Reject new requests, fail the waiting ones, and wait for running micro-batches, except overdue ones."""
        self._is_closed = True
        for job in tuple(self._queue):
            self._outcomes.fail(job, CutOffError())
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                while any(lane.batches and not lane.is_overdue(self._clock()) for lane in self._all_lanes):
                    self._batch_ended.clear()
                    await self._batch_ended.wait()
        self._watchdog.close()
        for job in [job for lane in self._all_lanes for batch in lane.batches for job in batch.rows_by_job]:
            self._outcomes.fail(job, CutOffError())

    def _running(self) -> int:
        return sum(len(lane.batches) for lane in self._all_lanes)

    def _is_overdue(self, batch: MicroBatch) -> bool:
        return any(batch in lane.batches and lane.is_overdue(self._clock()) for lane in self._all_lanes)

    def _dispatch(self) -> None:
        """Start what can start. A job that cannot be dispatched fails, so that it does not block the others."""
        self._is_dispatch_due = False
        if not self._queue:
            return
        try:
            self._fill_lanes()
        except Exception as error:
            log.exception("dispatch_failed")
            for job in [self._queue.chosen] if self._queue.chosen is not None else self._queue.heads:
                self._outcomes.fail(job, InferenceError(), cause=error)
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _fill_lanes(self) -> None:
        """Submit the next micro-batch to each lane that accepts work, idle lanes first, and plan when to look again."""
        now = self._clock()
        for lane in sorted(self._lanes, key=lambda lane: len(lane.batches)):
            if lane.accepts_work(now) and self._has_work_for(lane):
                self._start(lane, self._take(), now)
        if self._needs_express(now):
            self._start(self._express, self._queue.take_small(), now)
        if self._prefetch is not None:
            self._prefetch.cancel()
        starts = [lane.batches[0].expected_end - PREFETCH_S for lane in self._lanes if len(lane.batches) == 1]
        later = [start - now for start in starts if start > now]
        if later and self._queue.has_full_batch(self._micro_batch_tokens):
            self._prefetch = asyncio.get_running_loop().call_later(min(later), self._dispatch)

    def _has_work_for(self, lane: Lane) -> bool:
        """Whether *lane* should get a micro-batch now: a busy one only if it would not be fuller later."""
        if self._queue.has_full_batch(self._micro_batch_tokens):
            return True
        if lane.batches or not self._queue:
            return False
        return lane not in self._gathering or not any(other.batches for other in self._lanes)

    def _needs_express(self, now: float) -> bool:
        """Whether small requests wait and no lane is free soon; else a lane runs them, in fewer micro-batches."""
        if not self._queue.has_small or self._express.batches:
            return False
        return all(lane.is_busy_with_large(now) for lane in self._lanes)

    def _take(self) -> MicroBatch:
        """Take the next micro-batch from the queue."""
        idle, most = sum(not lane.batches for lane in self._lanes), self._micro_batch_tokens
        return self._queue.take(lambda waiting_tokens: budget_tokens(waiting_tokens, idle, micro_batch_tokens=most))

    def _start(self, lane: Lane, batch: MicroBatch, now: float) -> None:
        self._gathering.end(lane)
        batch.is_lone = len(batch.parts) == 1 and not self._queue and not self._running()
        starts = max([now, *(earlier.expected_end for earlier in lane.batches)])
        batch.expected_end = starts + batch.expected_s
        lane.submit(batch, self._on_done)
        self._watchdog.watch()

    def _on_done(self, lane: Lane, batch: MicroBatch, outcome: Matrix | Exception, seconds: float) -> None:
        """Give the lane its next micro-batch first, then deliver the vectors: the lane must not wait for that."""
        self._batch_ended.set()
        batch.ended_s = batch.started_s + seconds
        self._queue.end(batch)
        self._watchdog.record_end(lane, batch, seconds)
        if isinstance(outcome, Exception):
            name, texts = batch.model.name, len(batch.parts)
            log.warning("micro_batch_failed", model=name, texts=texts, error=type(outcome).__name__)
            self._outcomes.fail_or_isolate(batch, outcome)
            self._dispatch()
        else:
            self._record(batch, seconds)
            if batch.is_small and not lane.batches and lane is not self._express:
                self._gathering.begin(lane, len(batch.parts), seconds, is_crowded=bool(self._queue))
            self._dispatch()
            self._outcomes.deliver(batch, outcome)

    def _record(self, batch: MicroBatch, seconds: float) -> None:
        self._durations.record(batch, seconds)
        self._runs.record(batch.model.name, [item.length for item in batch.items], seconds)
        name, texts, longest = batch.model.name, len(batch.parts), batch.longest
        log.debug("micro_batch_encoded", model=name, texts=texts, longest=longest, ms=round(seconds * 1e3, 2))

    def _requeue_unstarted(self, lane: Lane) -> None:
        """Requeue what waits behind a micro-batch that may never end, so that another lane can run it."""
        self._outcomes.requeue(lane.withdraw())
        self._dispatch()
