"""Gives the outcome of each micro-batch to its jobs: vectors, an error, or another attempt."""

from collections.abc import Iterable, Sequence

from engine.errors import InferenceError, LaneLostError, ServiceError
from engine.job_queue import Job, MicroBatch
from engine.run_queue import RunQueue
from engine.vectors import Matrix


class JobOutcomes:
    """Resolves the results of jobs, and removes or requeues their waiting texts in the queue.

    Attributes:
        dropped_texts: texts that were removed from the queue before a lane took them.
    """

    def __init__(self, queue: RunQueue) -> None:
        self.dropped_texts = 0
        self._queue = queue

    def deliver(self, batch: MicroBatch, matrix: Matrix) -> None:
        """Give the rows of *matrix* to the jobs of *batch*."""
        for job in batch.attached:
            if not job.result.done():
                job.coalesced += 1
        for job, rows in batch.rows_by_job.items():
            job.started_s, job.ended_s = job.started_s or batch.started_s, batch.ended_s
            try:
                job.deliver(rows, matrix)
            except Exception as error:  # noqa: BLE001 - the other jobs of this micro-batch must still get their vectors
                self.fail(job, InferenceError(), cause=error)

    def fail_or_isolate(self, batch: MicroBatch, error: Exception) -> None:
        """Fail each job that has all texts of a failed micro-batch. Requeue the others, to run on their own."""
        for job, rows in batch.rows_by_job.items():
            job.started_s = job.started_s or batch.started_s
            if isinstance(error, LaneLostError):
                self.fail(job, LaneLostError(error.detail), cause=error.__cause__)
            elif len({row for row, _ in rows}) == len(batch.parts):  # alone, it would run the same texts again
                self.fail(job, InferenceError(), cause=error)
            else:
                job.is_isolated = True
                self._requeue(job, rows)

    def requeue(self, batches: Sequence[MicroBatch]) -> None:
        """Let the texts of micro-batches that no thread has started wait again."""
        for batch in batches:
            self._queue.end(batch)
        for batch in batches:
            for job, rows in batch.rows_by_job.items():
                self._requeue(job, rows)

    def fail(self, job: Job, error: ServiceError, *, cause: BaseException | None = None) -> None:
        """Remove the waiting texts of *job*, and resolve its result to *error* unless it is resolved."""
        self.drop_waiting(job)
        if not job.result.done():
            error.__cause__ = cause
            job.result.set_exception(error)

    def drop(self, job: Job, taken: Iterable[MicroBatch]) -> None:
        """Remove the waiting texts of *job* and ignore its result: its caller has left.

        *taken* are the micro-batches that lanes have: one of them may be the first run of *job*.
        """
        self.drop_waiting(job)
        if job.unfinished and not job.started_s:
            started = [batch.started_s for batch in taken if batch.started_s and job in batch.rows_by_job]
            job.started_s = min(started, default=0.0)
        if not job.result.done():
            job.result.cancel()
        elif not job.result.cancelled():
            job.result.exception()  # otherwise asyncio logs that it was never retrieved

    def drop_waiting(self, job: Job) -> None:
        """Remove the texts of *job* that no lane has taken yet."""
        self.dropped_texts += self._queue.drop(job)

    def _requeue(self, job: Job, rows: Sequence[tuple[int, int]]) -> None:
        if not job.result.done():
            self._queue.requeue(job, [index for _, index in rows])
