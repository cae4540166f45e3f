"""The scheduler's queue: waiting requests in order, and the texts that share the next micro-batch."""

import asyncio
from bisect import insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import numpy as np

from engine.planner import MAX_PLANNED_TEXTS, Batching, cheapest_split, cost
from engine.vectors import Matrix


class Item(Protocol):
    """One tokenised text."""

    @property
    def length(self) -> int:
        """Number of tokens that the model sees."""


class RunnableModel(Protocol):
    """A model in memory. `encode` blocks; several threads call it at once."""

    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int: ...

    @property
    def batching(self) -> Batching: ...

    @property
    def seconds_per_token(self) -> float:
        """First estimate of the model's speed: seconds of one lane per token of modelled cost."""

    def encode(self, items: Sequence[Any], *, is_lone: bool) -> Matrix:
        """Return one row per item, in order: float32, shape ``(len(items), dim)``. A lone run may use all cores."""


@dataclass(slots=True, eq=False)
class Job:
    """One admitted request.

    Attributes:
        model: the model that runs it.
        items: its tokenised texts.
        result: resolves to the vectors, in the order of *items*, or to an error.
        counted_s_per_token: seconds of one lane per token of modelled cost, as admission counts them; see
            `Admission.admit`.
        sort_key: arrival plus estimated run time, in seconds on the scheduler's clock; the lowest goes first.
        is_small: the express lane may run it, and it shares micro-batches with small jobs only.
        counts_in_full: its whole cost counts as waiting until its last text is taken; see `JobQueue`.
        is_isolated: a shared micro-batch has failed, so from now on its micro-batches contain only its own texts.
        waiting: indexes of *items* that no lane has taken yet, longest text first.
        unfinished: number of texts whose vectors are still missing.
        vectors: float32, shape ``(len(items), dim)``, filled as micro-batches end.
    """

    model: RunnableModel
    items: Sequence[Item]
    result: asyncio.Future[Matrix]
    counted_s_per_token: float
    sort_key: float
    is_small: bool
    counts_in_full: bool = False
    is_isolated: bool = False
    waiting: list[int] = field(default_factory=list)
    unfinished: int = field(init=False)
    vectors: Matrix = field(init=False)

    def __post_init__(self) -> None:
        self.unfinished = len(self.items)
        self.vectors = np.empty((len(self.items), self.model.dim), dtype=np.float32)
        self.requeue(range(len(self.items)))

    def deliver(self, rows: Sequence[tuple[int, int]], matrix: Matrix) -> None:
        """Copy the pairs (row of *matrix*, index of the text); the last ones resolve *result*."""
        if self.result.done():
            return
        for row, index in rows:
            self.vectors[index] = matrix[row]
        self.unfinished -= len(rows)
        if not self.unfinished:
            self.result.set_result(self.vectors)

    def requeue(self, indexes: Iterable[int]) -> None:
        self.waiting = sorted([*self.waiting, *indexes], key=lambda index: -self.items[index].length)

    def tokens_of(self, indexes: Iterable[int]) -> int:
        """Return the tokens of these texts as the model sees them, without padding."""
        return sum(self.items[index].length for index in indexes)

    def counted_s(self, indexes: Iterable[int]) -> float:
        """Return the seconds of one lane for these texts if each had a run of its own, as admission counts them."""
        return sum(cost(1, self.items[index].length) for index in indexes) * self.counted_s_per_token

    @property
    def total_s(self) -> float:
        """The same for all texts of the job."""
        return self.counted_s(range(len(self.items)))


@dataclass(slots=True, eq=False)
class MicroBatch:
    """Texts of one model, perhaps of several jobs, that run together.

    Attributes:
        model: the model that runs them.
        parts: per text, its job and its index there.
        expected_end: on the scheduler's clock, in seconds.
        is_lone: it is a single text, and nothing else runs or waits, so it may use all cores.
    """

    model: RunnableModel
    parts: list[tuple[Job, int]]
    expected_end: float = 0.0
    is_lone: bool = False

    @property
    def items(self) -> list[Item]:
        return [job.items[index] for job, index in self.parts]

    @property
    def longest(self) -> int:
        """Tokens of the longest text: the others are padded to it."""
        return max(item.length for item in self.items)

    @property
    def is_small(self) -> bool:
        """Whether it consists of small jobs; small and large jobs never share a micro-batch."""
        return self.parts[0][0].is_small

    def rows_by_job(self) -> dict[Job, list[tuple[int, int]]]:
        """Return, per job, the pairs (row of the micro-batch, index of the text in the job)."""
        rows: dict[Job, list[tuple[int, int]]] = {}
        for row, (job, index) in enumerate(self.parts):
            rows.setdefault(job, []).append((row, index))
        return rows


class JobQueue:
    """Owns the jobs of one class (small or large) that have waiting texts, ordered by `Job.sort_key`.

    A job whose micro-batches are shared with later jobs ends later than its own texts suggest, so the sum of waiting
    texts would be too optimistic. Jobs with `Job.counts_in_full` therefore count with all of their texts until the last
    one is taken. A large job fills most of its micro-batches itself, and counts with its waiting texts only.

    Attributes:
        waiting_s: counted seconds of one lane for the jobs in the queue.
        tokens: tokens of all waiting texts, without padding.
    """

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        self.waiting_s = 0.0
        self.tokens = 0

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(tuple(self._jobs))

    @property
    def head(self) -> Job:
        return self._jobs[0]

    def add(self, job: Job) -> None:
        insort(self._jobs, job, key=lambda other: other.sort_key)
        self.waiting_s += job.counted_s(job.waiting)
        self.tokens += job.tokens_of(job.waiting)

    def requeue(self, job: Job, indexes: Sequence[int]) -> None:
        """Let texts of *job* that were taken wait again."""
        was_taken_whole = not job.waiting
        if was_taken_whole:
            insort(self._jobs, job, key=lambda other: other.sort_key)
        job.requeue(indexes)
        if not job.counts_in_full:
            self.waiting_s += job.counted_s(indexes)
        elif was_taken_whole:
            self.waiting_s += job.total_s
        self.tokens += job.tokens_of(indexes)

    def remove(self, job: Job, indexes: Sequence[int]) -> None:
        """Remove waiting texts of *job*; a job without waiting texts leaves the queue."""
        self.tokens -= job.tokens_of(indexes)
        removed = set(indexes)
        job.waiting = [index for index in job.waiting if index not in removed]
        if not job.counts_in_full:
            self.waiting_s -= job.counted_s(indexes)
        elif not job.waiting:
            self.waiting_s -= job.total_s
        if not job.waiting:
            self._jobs.remove(job)
        if not self._jobs:
            self.waiting_s = 0.0  # sums of floats drift; an empty queue is exactly zero

    def take(self, budget_tokens: int) -> MicroBatch:
        """Remove and return the next micro-batch.

        It contains the longest waiting text of the first job. The others are those that go with it in the cheapest
        split of the first texts in the queue that may share its run.
        """
        head = self.head
        window = list(islice(self._candidates(head), MAX_PLANNED_TEXTS))
        window.sort(key=lambda part: -part[0].items[part[1]].length)
        lengths = [job.items[index].length for job, index in window]
        first = window.index((head, head.waiting[0]))
        chosen = next(part for part in cheapest_split(lengths, budget_tokens=budget_tokens) if first in part)
        batch = MicroBatch(head.model, [window[position] for position in chosen])
        for job, rows in batch.rows_by_job().items():
            self.remove(job, [index for _, index in rows])
        return batch

    def _candidates(self, head: Job) -> Iterator[tuple[Job, int]]:
        """Yield the texts that may share a run with the first text of *head*, which comes first."""
        first, batching = head.waiting[0], head.model.batching
        if batching == "single":
            yield head, first
            return
        wanted = head.items[first].length if batching == "equal" else None
        for job in self._jobs:
            if job is head or (job.model is head.model and not job.is_isolated and not head.is_isolated):
                for index in job.waiting:
                    if wanted is None or job.items[index].length == wanted:
                        yield job, index
