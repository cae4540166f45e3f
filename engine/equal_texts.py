"""Coalesces equal texts of all jobs: a text runs once for all callers that have sent it.

Texts are equal if they have the same key (`Job.keys`) and run on the same model object: a model that was loaded again
is another one. Each text waits for itself, in the order of its own job. When a lane takes it, the equal texts of other
jobs leave the queue as well and are *attached* to it; one that arrives while it runs is attached at once. So a query
does not wait for the bulk job that sent the text first, and a caller that disconnects affects no other.
"""

from collections.abc import Iterable

from engine.job_queue import Job, MicroBatch, Part, RunnableModel

TextId = tuple[RunnableModel, bytes]


class EqualTexts:
    """Owns the index of the texts that have keys: those that wait, and those of micro-batches that lanes have.

    Of equal texts, one is in the index, and the others are in a list besides it, which few texts need.
    """

    def __init__(self) -> None:
        self._waiting: dict[TextId, Part] = {}
        self._others: dict[TextId, list[Part]] = {}  # that wait as well
        self._taken: dict[TextId, tuple[MicroBatch, int]] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting or self._taken)

    @property
    def are_waiting(self) -> bool:
        """Whether any two waiting texts are equal."""
        return bool(self._others)

    def add(self, job: Job, indexes: Iterable[int]) -> None:
        """Note that these texts of *job* wait."""
        if (keys := job.keys) is None:
            return
        model, waiting = job.model, self._waiting
        for index in indexes:
            text = (model, keys[index])
            if text in waiting:
                self._others.setdefault(text, []).append((job, index))
            else:
                waiting[text] = (job, index)

    def remove(self, job: Job, indexes: Iterable[int]) -> None:
        """Note that these texts of *job* no longer wait."""
        if (keys := job.keys) is None:
            return
        for index in indexes:
            text = (job.model, keys[index])
            self._wait([part for part in self._pop(text) if part != (job, index)], text)

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
            taken[text] = (batch, row)
            if text not in self._others:
                del waiting[text]
                continue
            others = [other for other in self._pop(text) if other != part]
            found += [(row, other) for other in others if _may_share(other[0], batch)]
            self._wait([other for other in others if not _may_share(other[0], batch)], text)
        return found

    def end(self, batch: MicroBatch) -> None:
        """Note that no text can be attached to *batch* any more: it has ended, or waits again."""
        model, taken = batch.model, self._taken
        for job, index in batch.parts:
            if (keys := job.keys) is not None:
                text = (model, keys[index])
                if (run := taken.get(text)) is not None and run[0] is batch:  # else another run of it began later
                    del taken[text]

    def find_taken(self, job: Job, indexes: Iterable[int]) -> dict[MicroBatch, list[tuple[int, int]]]:
        """Return the micro-batches that contain equals of these texts of *job*: pairs (row, index) for each."""
        found: dict[MicroBatch, list[tuple[int, int]]] = {}
        model, taken = job.model, self._taken
        if (keys := job.keys) is None or not taken:
            return found
        for index in indexes:
            if (run := taken.get((model, keys[index]))) is not None and _may_share(job, run[0]):
                found.setdefault(run[0], []).append((run[1], index))
        return found

    def _pop(self, text: TextId) -> list[Part]:
        """Remove and return the waiting equals of a text."""
        return [self._waiting.pop(text), *self._others.pop(text, ())]

    def _wait(self, parts: list[Part], text: TextId) -> None:
        """Let equal texts wait; no other equal ones do."""
        if parts:
            self._waiting[text] = parts[0]
        if len(parts) > 1:
            self._others[text] = parts[1:]


def _may_share(job: Job, batch: MicroBatch) -> bool:
    """Whether texts of *job* may be attached to *batch*: after a failure, not to texts of several other jobs."""
    return not job.is_isolated or batch.parts[0][0].is_isolated
