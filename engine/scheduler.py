"""Who runs next: one queue, one owner of all lanes, so that models share the cores instead of fighting for them.

A request is admitted whole or refused whole, before any work. Who goes next is one number, ``arrival + estimated
service time``: small requests overtake big ones, and nothing starves, because the number of a waiting request stands
while those of later ones grow. A lane that falls free takes the first text and fills its micro-batch with texts of
like length of the same model; nothing waits for more to come, so an idle service answers at once and a busy one
batches by itself.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import structlog

from engine.admission import Admission
from engine.errors import (
    CutOffError,
    DrainingError,
    InferenceError,
    LaneLostError,
    OverloadedError,
    ServiceError,
)
from engine.jobs import WINDOW_TEXTS, Item, Job, Matrix, Run, Runnable, WaitingJobs, cut_into_runs
from engine.lane import LEAD_S, Lane
from engine.planner import cost
from engine.run_time import RunTimeEstimator
from engine.watchdog import StuckRun, Watchdog

SMALL_TOKENS = 64
"""Requests that cost up to this many tokens are small: the express lane serves them, in runs of up to this size."""
LEAD_TOKENS = 48
"""Small requests that wait are worth that only from this many tokens on: fewer make a costly run, and more may come."""
CLOSE_S = 5.0
"""So long closing waits for runs to end; whoever wanted their vectors has had the whole time to drain before."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SchedulerState:
    """What waits and runs now, and what was done since the start, for `/metrics`."""

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
    """The work that texts would be for an idle service: model runs, and seconds until they are done."""

    micro_batches: int
    seconds: float


class Scheduler:
    """Owns the queue and the lanes: `submit` admits or refuses, a free lane takes the next micro-batch."""

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
        """Prepare an idle scheduler.

        Args:
            lanes: those for work of any size; who opens them closes them.
            express: the one that runs small requests while all lanes are at big ones.
            micro_batch_tokens: padded tokens of one run at most.
            max_queue_s: work that may wait, as seconds until the lanes have done it.
            stuck_s: seconds from which on a lane that is in one run counts as stuck.
            clock: seconds, monotonic.
        """
        self._lanes = tuple(lanes)
        self._express = express
        self._watchdog = Watchdog((*lanes, express), stuck_s=stuck_s, on_overdue=self._rescue, clock=clock)
        self._micro_batch_tokens = micro_batch_tokens
        self._clock = clock
        self._small, self._big = WaitingJobs(), WaitingJobs()
        self._room = Admission(self._small, self._big, lanes=len(lanes), max_queue_s=max_queue_s)
        self._pace = RunTimeEstimator()
        self._done = SchedulerState(lanes=len(lanes))
        self._is_closed = False
        self._run_ended = asyncio.Event()

    async def submit(self, model: Runnable, items: Sequence[Item]) -> Matrix:
        """Run *items* through *model*; a caller that is cancelled takes its waiting texts along.

        Args:
            model: a leased model.
            items: its tokenised texts, at least one.

        Returns:
            Float32 vectors of shape ``(len(items), dim)``, in the order of *items*.

        Raises:
            OverloadedError: too much work waits; nothing of this request was done.
            DrainingError: the scheduler is closing.
            InferenceError: the model raised, or returned another number of vectors.
            LaneLostError: the thread that ran the model has died, or none could be started.
        """
        job = self._admit(model, items)
        self._dispatch()
        try:
            return await job.answer
        finally:
            self._drop_waiting(job)

    def estimate(self, model: Runnable, items: Sequence[Item]) -> Estimate:
        """How *items* would be cut into runs, and how long these take at the pace measured so far. Runs nothing."""
        lengths, runs = sorted((item.length for item in items), reverse=True), []
        for idle in range(len(self._lanes), 1, -1):
            budget = self._shared_budget(sum(lengths), idle)
            runs += cut_into_runs(lengths[:WINDOW_TEXTS], model.batching, budget_tokens=budget)[:1]
            lengths = lengths[runs[-1][0] :]
        runs += cut_into_runs(lengths, model.batching, budget_tokens=self._micro_batch_tokens)
        lane_s = sum(cost(texts, longest) for texts, longest in runs) * self._pace.of(model)
        return Estimate(len(runs), lane_s / min(len(self._lanes), max(1, len(runs))))

    def check(self, model: Runnable, texts: int) -> None:
        """Refuse so many texts before they are tokenised, where they would be refused whatever they hold.

        Raises:
            OverloadedError: too much work waits.
        """
        least_tokens = texts * cost(1, 1)
        if least_tokens > SMALL_TOKENS:
            self._room.claim(least_tokens * self._pace.of(model), is_small=False)

    def refusal(self) -> OverloadedError | None:
        """Why any request would be refused now, whatever it holds; None: there is room for a small one."""
        return self._room.refusal(SMALL_TOKENS)

    def state(self) -> SchedulerState:
        """What waits and runs now, and what was done since the start."""
        jobs = [*self._small, *self._big]
        return replace(
            self._done,
            waiting_requests=len(jobs),
            waiting_texts=sum(len(job.waiting) for job in jobs),
            waiting_seconds=self._room.waiting_s,
            running=self._running(),
            lanes_stuck=len(self._watchdog.stuck),
            lanes_died=sum(lane.deaths for lane in self._all_lanes),
        )

    @property
    def stuck(self) -> list[StuckRun]:
        """The runs that have been going on for too long at this moment."""
        return self._watchdog.stuck

    async def aclose(self) -> None:
        """Refuse new requests, fail what still waits, and return when no lane runs, or only such as may never end."""
        self._is_closed = True
        for job in (*self._small, *self._big):
            self._fail(job, CutOffError())
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                while any(lane.runs and not lane.is_overdue(self._clock()) for lane in self._all_lanes):
                    self._run_ended.clear()
                    await self._run_ended.wait()
        self._watchdog.close()
        for job in [job for lane in self._all_lanes for run in lane.runs for job in run.by_job()]:
            self._fail(job, CutOffError())

    def _admit(self, model: Runnable, items: Sequence[Item]) -> Job:
        if self._is_closed:
            raise DrainingError
        tokens, token_s = sum(cost(1, item.length) for item in items), self._pace.of(model)
        is_small = tokens <= SMALL_TOKENS
        counted_s = self._room.claim(tokens * token_s, is_small=is_small)
        job = Job(
            model=model,
            items=items,
            answer=asyncio.get_running_loop().create_future(),
            token_s=counted_s / tokens,
            order=self._clock() + tokens * token_s,
            is_small=is_small,
            is_counted_whole=self._room.counts_whole(counted_s),
        )
        self._queue_of(job).add(job)
        return job

    def _queue_of(self, job: Job) -> WaitingJobs:
        return self._small if job.is_small else self._big

    def _waiting(self) -> bool:
        return bool(self._small or self._big)

    @property
    def _all_lanes(self) -> tuple[Lane, ...]:
        return (*self._lanes, self._express)

    def _running(self) -> int:
        return sum(len(lane.runs) for lane in self._all_lanes)

    def _dispatch(self) -> None:
        """Let no lane idle while work waits, and let nothing that cannot be given to a lane hold up the rest."""
        try:
            self._fill_lanes()
        except Exception as error:
            log.exception("dispatch_failed")
            for queue in (self._small, self._big):
                if queue:
                    self._fail(queue.head, InferenceError(), cause=error)
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _fill_lanes(self) -> None:
        """Give every lane that takes work the micro-batch that goes next; idle lanes come first."""
        now = self._clock()
        for lane in sorted(self._lanes, key=lambda lane: len(lane.runs)):
            if lane.takes_work(now) and self._has_work_for(lane):
                self._start(lane, self._take(), now)
        if self._express_helps(now):
            self._start(self._express, self._small.take(SMALL_TOKENS), now)

    def _has_work_for(self, lane: Lane) -> bool:
        return self._waiting() if not lane.runs else bool(self._big) or self._small.tokens >= LEAD_TOKENS

    def _express_helps(self, now: float) -> bool:
        """Only while every lane is at a big request: otherwise a lane is free soon, and fuller runs cost less."""
        return bool(self._small) and not self._express.runs and all(lane.is_at_big_work(now) for lane in self._lanes)

    def _take(self) -> Run:
        """The micro-batch that goes next. Several idle lanes share what waits, so that a lone request ends sooner."""
        queue = min((queue for queue in (self._small, self._big) if queue), key=lambda queue: queue.head.order)
        return queue.take(self._shared_budget(queue.tokens, sum(not lane.runs for lane in self._lanes)))

    def _shared_budget(self, tokens: int, idle: int) -> int:
        """Padded tokens of the next run at most, where so many lanes are idle and so many tokens wait."""
        if idle <= 1:
            return self._micro_batch_tokens
        return min(self._micro_batch_tokens, max(SMALL_TOKENS, math.ceil(tokens / idle)))

    def _start(self, lane: Lane, run: Run, now: float) -> None:
        run.is_lone = len(run.parts) == 1 and not self._waiting() and not self._running()
        run.ends = max([now, *(earlier.ends for earlier in lane.runs)]) + self._pace.seconds(run)
        lane.start(run, self._finished)
        self._watchdog.watch()
        asyncio.get_running_loop().call_later(run.ends - LEAD_S - now, self._dispatch)

    def _finished(self, lane: Lane, run: Run, outcome: Matrix | Exception, seconds: float) -> None:
        """Give the lane its next micro-batch, which must not wait for the answers, then hand these out."""
        self._run_ended.set()
        self._watchdog.note_end(lane, run, seconds)
        if isinstance(outcome, Exception):
            log.warning("micro_batch_failed", model=run.model.name, texts=len(run.parts), error=type(outcome).__name__)
            self._fail_or_retry(run, outcome)
            self._dispatch()
        else:
            self._learn(run, seconds)
            self._dispatch()
            self._hand_out(run, outcome)

    def _hand_out(self, run: Run, matrix: Matrix) -> None:
        for job, rows in run.by_job().items():
            try:
                job.hand_out(rows, matrix)
            except Exception as error:  # noqa: BLE001 - the others of this run must still get theirs
                self._fail(job, InferenceError(), cause=error)

    def _rescue(self, lane: Lane) -> None:
        """What was to run after a run that may never end waits again, for any lane."""
        for run in lane.take_back():
            for job, rows in run.by_job().items():
                self._put_back(job, rows)
        self._dispatch()

    def _learn(self, run: Run, seconds: float) -> None:
        texts, longest = len(run.parts), run.longest
        self._pace.learn(run, seconds)
        self._done = replace(
            self._done,
            micro_batches=self._done.micro_batches + 1,
            texts=self._done.texts + texts,
            padded_tokens=self._done.padded_tokens + texts * longest,
        )
        log.debug("micro_batch_encoded", model=run.model.name, texts=texts, longest=longest, ms=round(seconds * 1e3, 2))

    def _fail_or_retry(self, run: Run, error: Exception) -> None:
        """Where a failed run was shared, each request runs again apart from the others: only the guilty one fails."""
        jobs = run.by_job()
        for job, rows in jobs.items():
            if isinstance(error, LaneLostError):
                self._fail(job, LaneLostError(error.detail), cause=error.__cause__)
            elif len(jobs) == 1:
                self._fail(job, InferenceError(), cause=error)
            else:
                job.is_alone = True
                self._put_back(job, rows)

    def _put_back(self, job: Job, rows: Sequence[tuple[int, int]]) -> None:
        if not job.answer.done():
            self._queue_of(job).put_back(job, [index for _, index in rows])

    def _fail(self, job: Job, error: ServiceError, *, cause: BaseException | None = None) -> None:
        self._drop_waiting(job)
        if not job.answer.done():
            error.__cause__ = cause
            job.answer.set_exception(error)

    def _drop_waiting(self, job: Job) -> None:
        """Forget the texts of *job* that no lane has taken yet."""
        if job.waiting:
            self._done = replace(self._done, dropped_texts=self._done.dropped_texts + len(job.waiting))
            self._queue_of(job).remove(job, job.waiting)
