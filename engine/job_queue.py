"""Waiting requests of one class in order, and the texts that share the next micro-batch."""

import asyncio
from bisect import insort
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, Protocol

import numpy as np

from engine.fair_queue import Caller
from engine.ledger import Reservation
from engine.planner import MAX_PLANNED_TEXTS, Batching, cheapest_split, separate_cost
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


NEIGHBOURS = 8
"""Longer texts that are planned together with the one that must run, and half of the shorter ones; more if more of its
length fit into a run. To plan all that may share the run takes two to three times as long, and finds no better runs."""
EMPTY: Matrix = np.empty((0, 0), np.float32)


@dataclass(slots=True, eq=False)
class Job:
    """One admitted request.

    Attributes:
        model: the model that runs it.
        items: its tokenised texts.
        result: resolves to the vectors, in the order of *items*, or to an error.
        counted_s_per_token: seconds of one lane per token of modelled cost, as the ledger counts them.
        sort_key: arrival plus estimated run time, in seconds on the scheduler's clock. Among the jobs of one caller,
            the lowest goes first.
        is_small: the express lane may run it, and it shares micro-batches with small jobs only.
        is_bulk: it is so large that interactive requests of the same caller go before it.
        reservation: what it holds in the ledger, and for whom.
        keys: of each of *items*: texts of one model with equal keys have equal vectors, so they run once for all; None:
            no other job shares its vectors.
        is_isolated: a shared micro-batch has failed, so from now on its micro-batches contain only its own texts.
        waiting: indexes of *items* that no lane has taken yet, longest text first.
        caller: whose it is.
        tokens: tokens of *items* as the model sees them, without padding.
        unfinished: number of texts whose vectors are still missing.
        coalesced: number of texts that got the vector of an equal text; final once *result* is resolved.
        on_rows: called with *vectors* and the indexes of those that have come, before *result* resolves; None: not at
            all.
        queued_s: when it began to wait, in seconds on the scheduler's clock.
        started_s: when its first text began to run, known once that run has ended or the job is dropped; 0: none has.
        ended_s: when its last run ended.
        vectors: float32, shape ``(len(items), dim)``, filled as micro-batches end; empty before the first one.
    """

    model: RunnableModel
    items: Sequence[Item]
    result: asyncio.Future[Matrix]
    counted_s_per_token: float
    sort_key: float
    is_small: bool
    is_bulk: bool = False
    reservation: Reservation = field(default_factory=lambda: Reservation(()))
    keys: Sequence[bytes] | None = None
    is_isolated: bool = False
    waiting: list[int] = field(default_factory=list)
    caller: Caller = field(init=False)
    tokens: int = field(init=False)
    unfinished: int = field(init=False)
    coalesced: int = 0
    on_rows: Callable[[Matrix, Sequence[int]], None] | None = None
    queued_s: float = 0.0
    started_s: float = 0.0
    ended_s: float = 0.0
    vectors: Matrix = field(init=False)

    def __post_init__(self) -> None:
        self.caller = self.reservation.caller  # an attribute: the queues read it many times per request
        self.tokens = sum([item.length for item in self.items])
        self.unfinished = len(self.items)
        self.vectors = EMPTY
        self.requeue(range(len(self.items)))

    def deliver(self, rows: Sequence[tuple[int, int]], matrix: Matrix) -> None:
        """Take the pairs (row of *matrix*, index of the text); the last ones resolve *result*."""
        if self.result.done():
            return
        if len(rows) == len(self.items):
            self.vectors = _in_order(rows, matrix)
        else:
            if not self.vectors.size:
                self.vectors = np.empty((len(self.items), self.model.dim), dtype=np.float32)
            self.vectors[[index for _, index in rows]] = matrix[[row for row, _ in rows]]
        self.unfinished -= len(rows)
        if self.on_rows is not None:
            self.on_rows(self.vectors, [index for _, index in rows])
        if not self.unfinished:
            self.result.set_result(self.vectors)

    def requeue(self, indexes: Iterable[int]) -> None:
        self.waiting = sorted([*self.waiting, *indexes], key=lambda index: -self.items[index].length)

    def tokens_of(self, indexes: Collection[int]) -> int:
        """Return the tokens of these texts as the model sees them, without padding."""
        items = self.items
        if len(indexes) == len(items):
            return self.tokens
        return sum([items[index].length for index in indexes])

    def counted_s(self, indexes: Collection[int]) -> float:
        """Return the seconds of one lane for these texts if each had a run of its own, as admission counts them."""
        return separate_cost(len(indexes), self.tokens_of(indexes)) * self.counted_s_per_token

    def count_taken(self, indexes: Sequence[int]) -> None:
        """Count these texts as taken, once they are no longer in *waiting*.

        A job that shares its micro-batches with later ones ends later than its own texts suggest. So it counts in full
        until its last text is taken. A bulk job fills most of its micro-batches itself, and counts with the texts that
        wait.
        """
        if not self.waiting:
            self.reservation.resize(0.0)
        elif self.is_bulk:
            self.reservation.resize(self.reservation.amount - self.counted_s(indexes))

    def count_waiting(self) -> None:
        """Count the texts that wait; a job that is not bulk counts in full while any do."""
        all_count = self.waiting and not self.is_bulk
        self.reservation.resize(self.counted_s(range(len(self.items)) if all_count else self.waiting))


def _in_order(rows: Sequence[tuple[int, int]], matrix: Matrix) -> Matrix:
    """Return the rows of *matrix* for all texts of a job, given its pairs (row of *matrix*, index of the text)."""
    if len(rows) == 1:
        return matrix[rows[0][0] : rows[0][0] + 1]
    row_of = {index: row for row, index in rows}
    return matrix[[row_of[index] for index in range(len(rows))]]


Part = tuple[Job, int]
"""A text: its job, and its index there."""


@dataclass(slots=True, eq=False)
class MicroBatch:
    """Texts of one model, perhaps of several jobs, that run together. No two have the same key.

    Attributes:
        model: the model that runs them.
        parts: the texts.
        expected_end: on the scheduler's clock, in seconds.
        started_s: when it began to run, on the same clock.
        ended_s: when it ended.
        is_lone: it is a single text, and nothing else runs or waits, so it may use all cores.
        items: the texts as the model gets them.
        longest: tokens of the longest text: the others are padded to it.
        rows_by_job: per job, the pairs (row of the micro-batch, index of the text in the job), attached ones included.
        attached: the job of each text that equals one of *parts* and gets its row.
    """

    model: RunnableModel
    parts: list[Part]
    expected_end: float = 0.0
    started_s: float = 0.0
    ended_s: float = 0.0
    is_lone: bool = False
    items: list[Item] = field(init=False)
    longest: int = field(init=False)
    rows_by_job: dict[Job, list[tuple[int, int]]] = field(init=False)
    attached: list[Job] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.items = [job.items[index] for job, index in self.parts]
        self.longest = max(item.length for item in self.items)
        self.rows_by_job = {}
        for row, (job, index) in enumerate(self.parts):
            self.rows_by_job.setdefault(job, []).append((row, index))

    def attach(self, job: Job, row: int, index: int) -> None:
        """Let a text of *job* get this row, which is that of an equal text."""
        self.rows_by_job.setdefault(job, []).append((row, index))
        self.attached.append(job)

    @property
    def is_small(self) -> bool:
        """Whether it consists of small jobs; small and large jobs never share a micro-batch."""
        return self.parts[0][0].is_small


Flow = tuple[Caller, bool]
"""The jobs of one caller that are bulk, or that are not."""


class JobQueue:
    """Owns the jobs of one class (small or large) that have waiting texts, ordered by `Job.sort_key`.

    Attributes:
        tokens: tokens of all waiting texts, without padding.
    """

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        self._by_flow: dict[Flow, list[Job]] = {}
        self.tokens = 0

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(tuple(self._jobs))

    @property
    def heads(self) -> list[Job]:
        """The first job of each flow."""
        return [jobs[0] for jobs in self._by_flow.values()]

    def has_bulk(self, caller: Caller) -> bool:
        """Return whether a bulk job of *caller* waits."""
        return (caller, True) in self._by_flow

    def add(self, job: Job) -> None:
        self._insert(job)
        job.count_waiting()
        self.tokens += job.tokens_of(job.waiting)

    def requeue(self, job: Job, indexes: Sequence[int]) -> None:
        """Let texts of *job* that were taken wait again."""
        if not job.waiting:
            self._insert(job)
        job.requeue(indexes)
        job.count_waiting()
        self.tokens += job.tokens_of(indexes)

    def remove(self, job: Job, indexes: Sequence[int]) -> None:
        """Remove waiting texts of *job*; a job without waiting texts leaves the queue."""
        self.tokens -= job.tokens_of(indexes)
        removed = set(indexes)
        job.waiting = [index for index in job.waiting if index not in removed]
        job.count_taken(indexes)
        if not job.waiting:
            self._jobs.remove(job)
            flow = job.caller, job.is_bulk
            self._by_flow[flow].remove(job)
            if not self._by_flow[flow]:
                del self._by_flow[flow]

    def take(self, head: Job, budget_tokens: int, *, has_equal_texts: bool = False) -> MicroBatch:
        """Remove and return the next micro-batch, which begins with *head*.

        It contains the longest waiting text of *head*. The others are those that go with it in the cheapest split of
        the first texts in the queue that may share its run and are about as long, of any caller: sharing a run saves
        work for all. If it *has_equal_texts*, one of each is considered.
        """
        candidates = self._candidates(head)
        window = list(islice(_distinct(candidates) if has_equal_texts else candidates, MAX_PLANNED_TEXTS))
        window.sort(key=lambda part: -part[0].items[part[1]].length)
        lengths = [job.items[index].length for job, index in window]
        first = window.index((head, head.waiting[0]))
        reach = max(NEIGHBOURS, budget_tokens // max(1, lengths[first]))
        start = max(0, first - reach)
        parts = cheapest_split(lengths[start : first + 2 * reach], budget_tokens=budget_tokens)
        chosen = next(part for part in parts if first - start in part)
        batch = MicroBatch(head.model, [window[start + position] for position in chosen])
        for job, rows in batch.rows_by_job.items():
            self.remove(job, [index for _, index in rows])
        return batch

    def _insert(self, job: Job) -> None:
        for jobs in (self._jobs, self._by_flow.setdefault((job.caller, job.is_bulk), [])):
            insort(jobs, job, key=lambda other: other.sort_key)

    def _candidates(self, head: Job) -> Iterator[Part]:
        """Yield the texts that may share a run with the first text of *head*, which comes first."""
        first, batching = head.waiting[0], head.model.batching
        if batching == "single":
            yield head, first
            return
        wanted = head.items[first].length if batching == "equal" else None
        others = (job for job in self._jobs if job.model is head.model and job is not head and not job.is_isolated)
        for job in chain([head], () if head.is_isolated else others):
            for index in job.waiting:
                if wanted is None or job.items[index].length == wanted:
                    yield job, index


def _distinct(parts: Iterable[Part]) -> Iterator[Part]:
    """Yield the first text with each key, and all texts without one."""
    seen = set[bytes]()
    for job, index in parts:
        if job.keys is None:
            yield job, index
        elif (key := job.keys[index]) not in seen:
            seen.add(key)
            yield job, index
