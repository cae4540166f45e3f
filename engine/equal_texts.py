"""Finds equal texts of all jobs, so that a text runs once for all who have sent it.

Texts are equal if they have the same key (`Job.keys`) and run on the same model object: a model that was loaded again
is another one. Each text waits for itself, in the order of its own job. When a lane takes it, the equal texts of other
jobs leave the queue as well and are *attached* to it; one that arrives while it runs is attached at once. So a query
does not wait for the bulk job that sent the text first, and a caller who leaves takes nothing away from others.
"""

from collections.abc import Iterable

from engine.job_queue import Job, MicroBatch, Part, RunnableModel

TextId = tuple[RunnableModel, bytes]


class EqualTexts:
    """Owns the index of the texts that have keys: those that wait, and those of micro-batches that lanes have."""

    def __init__(self) -> None:
        self._waiting: dict[TextId, list[Part]] = {}
        self._number_waiting = 0
        self._taken: dict[TextId, tuple[MicroBatch, int]] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting or self._taken)

    @property
    def are_waiting(self) -> bool:
        """Whether any two waiting texts are equal."""
        return self._number_waiting > len(self._waiting)

    def add(self, job: Job, indexes: Iterable[int]) -> None:
        """Note that these texts of *job* wait."""
        if (keys := job.keys) is None:
            return
        model, waiting = job.model, self._waiting
        for index in indexes:
            self._number_waiting += 1
            text = (model, keys[index])
            if (parts := waiting.get(text)) is None:
                waiting[text] = [(job, index)]
            else:
                parts.append((job, index))

    def remove(self, job: Job, indexes: Iterable[int]) -> None:
        """Note that these texts of *job* no longer wait."""
        if (keys := job.keys) is None:
            return
        for index in indexes:
            self._number_waiting -= 1
            text = (job.model, keys[index])
            parts = self._waiting[text]
            if len(parts) == 1:
                del self._waiting[text]
            else:
                parts.remove((job, index))

    def take(self, batch: MicroBatch) -> list[tuple[int, Part]]:
        """Note that the texts of *batch* no longer wait and will run.

        Returns:
            The waiting texts that equal one of them, each with its row of *batch*. They no longer wait, either.
        """
        found: list[tuple[int, Part]] = []
        model, waiting, taken = batch.model, self._waiting, self._taken
        for row, part in enumerate(batch.parts):
            job, index = part
            if (keys := job.keys) is None:
                continue
            text = (model, keys[index])
            parts = waiting.pop(text)
            self._number_waiting -= 1
            taken[text] = (batch, row)
            if len(parts) > 1:
                others = [other for other in parts if other != part]
                found += [(row, other) for other in others if _may_share(other[0], batch)]
                if isolated := [other for other in others if not _may_share(other[0], batch)]:
                    waiting[text] = isolated
        self._number_waiting -= len(found)
        return found

    def end(self, batch: MicroBatch) -> None:
        """Note that no text can be attached to *batch* any more: it has ended, or waits again."""
        model, taken = batch.model, self._taken
        for job, index in batch.parts:
            if job.keys is not None:
                text = (model, job.keys[index])
                if (run := taken.get(text)) is not None and run[0] is batch:  # else another run of it began later
                    del taken[text]

    def find_taken(self, job: Job, indexes: Iterable[int]) -> dict[MicroBatch, list[tuple[int, int]]]:
        """Return the micro-batches that contain equals of these texts of *job*: pairs (row, index) for each."""
        found: dict[MicroBatch, list[tuple[int, int]]] = {}
        if (keys := job.keys) is None or not self._taken:
            return found
        for index in indexes:
            if (run := self._taken.get((job.model, keys[index]))) is not None and _may_share(job, run[0]):
                found.setdefault(run[0], []).append((run[1], index))
        return found


def _may_share(job: Job, batch: MicroBatch) -> bool:
    """Whether texts of *job* may be attached to *batch*: after a failure, not to texts of several other jobs."""
    return not job.is_isolated or batch.parts[0][0].is_isolated
