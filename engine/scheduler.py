"""Decides which texts run next, and on which lane.

One scheduler owns the queue and all lanes, so models share the cores instead of competing for them.

- **Admission** (`engine.admission`): `submit` admits a request whole, or rejects it whole before any work. The limit is
  on the queued work, in estimated seconds.
- **Queue** (`engine.job_queue`): each request has one number, its arrival plus its estimated run time, and the lowest
  goes first. So small requests overtake large ones. No request starves: its number stays, later ones grow.
- **Micro-batches** (`engine.planner`): a free lane takes the first text of the queue, and fills the micro-batch with
  texts of the same model and of similar length, so that little padding is computed. There is no batching timer: an
  idle service starts every text at once, and in a busy one the waiting texts form the batches.
- **Lanes** (`engine.lane`): one thread per usable core. Each gets its next micro-batch shortly before the current one
  is expected to end, so that its thread need not wait for the event loop.
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
from dataclasses import dataclass, replace

import structlog

from engine.admission import Admission
from engine.duration_estimator import DurationEstimator
from engine.errors import CutOffError, DrainingError, InferenceError, LaneLostError, OverloadedError, ServiceError
from engine.job_queue import Item, Job, JobQueue, MicroBatch, RunnableModel
from engine.lane import PREFETCH_S, Lane
from engine.planner import MAX_PLANNED_TEXTS, cost, plan_micro_batches
from engine.vectors import Matrix
from engine.watchdog import StuckRun, Watchdog

MAX_SMALL_TOKENS = 64
"""A request is small up to this modelled cost, in tokens; the express lane's micro-batches have at most this many
padded tokens. A search query of 10 words costs about 25. The express lane shares the cores with the other lanes, and
64 tokens need one only for a moment."""
MIN_PREFETCH_TOKENS = 48
"""Small requests are queued on a busy lane only once they total this many tokens. Fewer would waste the fixed cost of a
run, and more may arrive before the lane is free."""
CLOSE_TIMEOUT_S = 5.0
"""How long closing waits for running micro-batches. The callers had the whole shutdown timeout before."""

log = structlog.get_logger()


@dataclass(slots=True)
class SchedulerState:
    """What waits and runs at this moment, and what was done since the start.

    Attributes:
        waiting_seconds: until the lanes have done all waiting work.
        running: micro-batches that run, or are queued on a lane.
        lanes: without the express lane.
        lanes_died: threads that died and were replaced.
        dropped_texts: texts that never ran, because their request failed or its caller left.
    """

    waiting_requests: int = 0
    waiting_texts: int = 0
    waiting_seconds: float = 0.0
    running: int = 0
    lanes: int = 0
    lanes_stuck: int = 0
    lanes_died: int = 0
    micro_batches: int = 0
    texts: int = 0
    padded_tokens: int = 0
    dropped_texts: int = 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """The work for some texts on an idle service: the number of model runs, and the seconds until they are done."""

    micro_batches: int
    seconds: float


class Scheduler:
    """Owns the queue and the lanes. `submit` is the only way to run a model."""

    def __init__(
        self,
        *,
        lanes: Sequence[Lane],
        express: Lane,
        micro_batch_tokens: int,
        max_queue_s: float,
        stuck_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create an idle scheduler. The caller closes the lanes.

        Args:
            lanes: the lanes for work of any size.
            express: the lane for small requests while all others are busy with large ones.
            micro_batch_tokens: maximum padded tokens of a micro-batch.
            max_queue_s: limit on the queued work, in seconds until the lanes have done it.
            stuck_s: seconds after which a model run counts as stuck.
            clock: returns seconds, monotonic; the same as the lanes'.
        """
        self._lanes = tuple(lanes)
        self._express = express
        self._all_lanes = (*lanes, express)
        self._watchdog = Watchdog(self._all_lanes, stuck_s=stuck_s, on_overdue=self._requeue_unstarted, clock=clock)
        self._micro_batch_tokens = micro_batch_tokens
        self._clock = clock
        self._small, self._large = JobQueue(), JobQueue()
        self._admission = Admission(self._small, self._large, lanes=len(lanes), max_queue_s=max_queue_s)
        self._durations = DurationEstimator()
        self._totals = SchedulerState(lanes=len(lanes))  # only the counters since the start are kept up to date here
        self._is_closed = False
        self._batch_ended = asyncio.Event()

    async def submit(self, model: RunnableModel, items: Sequence[Item]) -> Matrix:
        """Run *items* through *model*. If the caller is cancelled, its waiting texts are dropped.

        Args:
            model: a leased model.
            items: texts that were tokenised for it, at least one.

        Returns:
            Float32 vectors of shape ``(len(items), dim)``, in the order of *items*.

        Raises:
            OverloadedError: too much work is queued; no part of this request was computed.
            DrainingError: the scheduler is closing.
            InferenceError: the model raised an error, or returned vectors of the wrong shape.
            LaneLostError: the thread that ran the model died, or none could be started.
        """
        job = self._admit(model, items)
        self._dispatch()
        try:
            return await job.result
        finally:
            self._drop_waiting(job)

    def estimate(self, model: RunnableModel, items: Sequence[Item]) -> Estimate:
        """Return the micro-batches of *items* on an idle service, and their duration at the measured speed."""
        lengths, batches = sorted((item.length for item in items), reverse=True), []
        for idle in range(len(self._lanes), 1, -1):  # as `_take` does while lanes are idle
            budget = self._budget_tokens(sum(lengths), idle)
            first = plan_micro_batches(lengths[:MAX_PLANNED_TEXTS], model.batching, budget_tokens=budget)[:1]
            batches += [(len(batch), lengths[0]) for batch in first]
            lengths = lengths[batches[-1][0] :]
        rest = plan_micro_batches(lengths, model.batching, budget_tokens=self._micro_batch_tokens)
        batches += [(len(batch), lengths[batch[0]]) for batch in rest]
        lane_s = sum(cost(texts, longest) for texts, longest in batches) * self._durations.seconds_per_token(model)
        return Estimate(len(batches), lane_s / min(len(self._lanes), max(1, len(batches))))

    def check_admission(self, model: RunnableModel, texts: int) -> None:
        """Reject a request of *texts* before it is tokenised, if it would be rejected however short its texts are.

        Raises:
            OverloadedError: too much work is queued.
        """
        min_tokens = texts * cost(1, 1)
        if min_tokens > MAX_SMALL_TOKENS:
            self._admission.admit(min_tokens * self._durations.seconds_per_token(model), is_small=False)

    def overload(self) -> OverloadedError | None:
        """Return the error that any request would get now, whatever it contains; None: a small one is admitted."""
        return self._admission.small_overload(MAX_SMALL_TOKENS)

    def state(self) -> SchedulerState:
        jobs = [*self._small, *self._large]
        return replace(
            self._totals,
            waiting_requests=len(jobs),
            waiting_texts=sum(len(job.waiting) for job in jobs),
            waiting_seconds=self._admission.waiting_s,
            running=self._running(),
            lanes_stuck=len(self._watchdog.stuck),
            lanes_died=sum(lane.restarts for lane in self._all_lanes),
        )

    @property
    def stuck(self) -> list[StuckRun]:
        """The model runs that take too long at this moment."""
        return self._watchdog.stuck

    async def aclose(self) -> None:
        """Reject new requests, fail the waiting ones, and wait for running micro-batches, except overdue ones."""
        self._is_closed = True
        for job in (*self._small, *self._large):
            self._fail(job, CutOffError())
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                while any(lane.batches and not lane.is_overdue(self._clock()) for lane in self._all_lanes):
                    self._batch_ended.clear()
                    await self._batch_ended.wait()
        self._watchdog.close()
        for job in [job for lane in self._all_lanes for batch in lane.batches for job in batch.rows_by_job()]:
            self._fail(job, CutOffError())

    def _admit(self, model: RunnableModel, items: Sequence[Item]) -> Job:
        """Add the request to the queue, or raise."""
        if self._is_closed:
            raise DrainingError
        tokens = sum(cost(1, item.length) for item in items)
        lane_s = tokens * self._durations.seconds_per_token(model)
        is_small = tokens <= MAX_SMALL_TOKENS
        counted_s = self._admission.admit(lane_s, is_small=is_small)
        job = Job(
            model=model,
            items=items,
            result=asyncio.get_running_loop().create_future(),
            counted_s_per_token=counted_s / tokens,
            sort_key=self._clock() + lane_s,
            is_small=is_small,
            counts_in_full=self._admission.counts_in_full(counted_s),
        )
        self._queue_of(job).add(job)
        return job

    def _queue_of(self, job: Job) -> JobQueue:
        return self._small if job.is_small else self._large

    def _has_waiting(self) -> bool:
        return bool(self._small or self._large)

    def _running(self) -> int:
        return sum(len(lane.batches) for lane in self._all_lanes)

    def _dispatch(self) -> None:
        """Start what can start. A job that cannot be dispatched fails, so that it does not block the others."""
        try:
            self._fill_lanes()
        except Exception as error:
            log.exception("dispatch_failed")
            for queue in (self._small, self._large):
                if queue:
                    self._fail(queue.head, InferenceError(), cause=error)
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _fill_lanes(self) -> None:
        """Submit the next micro-batch to each lane that accepts work, idle lanes first."""
        now = self._clock()
        for lane in sorted(self._lanes, key=lambda lane: len(lane.batches)):
            if lane.accepts_work(now) and self._has_work_for(lane):
                self._start(lane, self._take(), now)
        if self._needs_express(now):
            self._start(self._express, self._small.take(MAX_SMALL_TOKENS), now)

    def _has_work_for(self, lane: Lane) -> bool:
        if not lane.batches:
            return self._has_waiting()
        return bool(self._large) or self._small.tokens >= MIN_PREFETCH_TOKENS

    def _needs_express(self, now: float) -> bool:
        """Whether small requests wait and no lane is free soon; else a lane runs them, in fewer micro-batches."""
        if not self._small or self._express.batches:
            return False
        return all(lane.is_busy_with_large(now) for lane in self._lanes)

    def _take(self) -> MicroBatch:
        """Take the next micro-batch from the queue."""
        queue = min((queue for queue in (self._small, self._large) if queue), key=lambda queue: queue.head.sort_key)
        return queue.take(self._budget_tokens(queue.tokens, sum(not lane.batches for lane in self._lanes)))

    def _budget_tokens(self, waiting_tokens: int, idle_lanes: int) -> int:
        """Return the maximum padded tokens of the next micro-batch.

        Several idle lanes share the waiting tokens, so that a single request ends sooner.
        """
        if idle_lanes <= 1:
            return self._micro_batch_tokens
        return min(self._micro_batch_tokens, max(MAX_SMALL_TOKENS, math.ceil(waiting_tokens / idle_lanes)))

    def _start(self, lane: Lane, batch: MicroBatch, now: float) -> None:
        batch.is_lone = len(batch.parts) == 1 and not self._has_waiting() and not self._running()
        starts = max([now, *(earlier.expected_end for earlier in lane.batches)])
        batch.expected_end = starts + self._durations.seconds(batch)
        lane.submit(batch, self._on_done)
        self._watchdog.watch()
        asyncio.get_running_loop().call_later(batch.expected_end - PREFETCH_S - now, self._dispatch)

    def _on_done(self, lane: Lane, batch: MicroBatch, outcome: Matrix | Exception, seconds: float) -> None:
        """Give the lane its next micro-batch first, then deliver the vectors: the lane must not wait for that."""
        self._batch_ended.set()
        self._watchdog.record_end(lane, batch, seconds)
        if isinstance(outcome, Exception):
            log.warning(
                "micro_batch_failed", model=batch.model.name, texts=len(batch.parts), error=type(outcome).__name__
            )
            self._fail_or_isolate(batch, outcome)
            self._dispatch()
        else:
            self._record(batch, seconds)
            self._dispatch()
            self._deliver(batch, outcome)

    def _record(self, batch: MicroBatch, seconds: float) -> None:
        self._durations.record(batch, seconds)
        texts, longest = len(batch.parts), batch.longest
        self._totals.micro_batches += 1
        self._totals.texts += texts
        self._totals.padded_tokens += texts * longest
        log.debug(
            "micro_batch_encoded", model=batch.model.name, texts=texts, longest=longest, ms=round(seconds * 1e3, 2)
        )

    def _deliver(self, batch: MicroBatch, matrix: Matrix) -> None:
        for job, rows in batch.rows_by_job().items():
            try:
                job.deliver(rows, matrix)
            except Exception as error:  # noqa: BLE001 - the other jobs of this micro-batch must still get their vectors
                self._fail(job, InferenceError(), cause=error)

    def _fail_or_isolate(self, batch: MicroBatch, error: Exception) -> None:
        """Fail the only job of a failed micro-batch. If there are several, requeue each to run without the others."""
        jobs = batch.rows_by_job()
        for job, rows in jobs.items():
            if isinstance(error, LaneLostError):
                self._fail(job, LaneLostError(error.detail), cause=error.__cause__)
            elif len(jobs) == 1:
                self._fail(job, InferenceError(), cause=error)
            else:
                job.is_isolated = True
                self._requeue(job, rows)

    def _requeue_unstarted(self, lane: Lane) -> None:
        """Requeue what waits behind a micro-batch that may never end, so that another lane can run it."""
        for batch in lane.withdraw():
            for job, rows in batch.rows_by_job().items():
                self._requeue(job, rows)
        self._dispatch()

    def _requeue(self, job: Job, rows: Sequence[tuple[int, int]]) -> None:
        if not job.result.done():
            self._queue_of(job).requeue(job, [index for _, index in rows])

    def _fail(self, job: Job, error: ServiceError, *, cause: BaseException | None = None) -> None:
        self._drop_waiting(job)
        if not job.result.done():
            error.__cause__ = cause
            job.result.set_exception(error)

    def _drop_waiting(self, job: Job) -> None:
        """Remove the texts of *job* that no lane has taken yet."""
        if job.waiting:
            self._totals.dropped_texts += len(job.waiting)
            self._queue_of(job).remove(job, job.waiting)
