"""Requests that wait, in the order in which they go, and the texts of one model that share a run."""

import asyncio
from bisect import insort
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.planner import cost, plan

Matrix = NDArray[np.float32]
Batching = Literal["mixed", "equal", "single"]
"""Which texts of a model may share a run: of any length, of equal length only, or none."""

WINDOW_TEXTS = 64
"""Texts looked at when a micro-batch is chosen; the dynamic programme over them takes well below a millisecond."""


class Item(Protocol):
    """One text, ready for the model."""

    @property
    def length(self) -> int:
        """Tokens that the model will see."""


class Runnable(Protocol):
    """A model in memory; `encode` blocks and is called from several threads at once."""

    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int: ...

    @property
    def batching(self) -> Batching: ...

    @property
    def seconds_per_token(self) -> float:
        """First guess of the model's pace: seconds of one lane per token of modelled cost."""

    def encode(self, items: Sequence[Any], *, is_lone: bool) -> Matrix:
        """Float32 vectors of shape ``(len(items), dim)``, in the order of *items*; a lone run may use all cores."""


@dataclass(slots=True, eq=False)
class Job:
    """One admitted request.

    Attributes:
        waiting: indexes into *items* that no lane has taken yet, longest text first.
        token_s: seconds of one lane per token of cost, as they count against what may wait.
        order: who goes next: the least one (seconds on the scheduler's clock).
        is_small: it may use the express lane, and shares runs with other small ones only.
        is_counted_whole: it counts against what may wait as a whole until its last text is taken.
        is_alone: a run that it shared has failed, so from now on its runs hold only its own texts.
    """

    model: Runnable
    items: Sequence[Item]
    answer: asyncio.Future[Matrix]
    token_s: float
    order: float
    is_small: bool
    is_counted_whole: bool = False
    is_alone: bool = False
    waiting: list[int] = field(default_factory=list)
    unanswered: int = field(init=False)
    vectors: Matrix = field(init=False)

    def __post_init__(self) -> None:
        self.unanswered = len(self.items)
        self.vectors = np.empty((len(self.items), self.model.dim), dtype=np.float32)
        self.put_back(range(len(self.items)))

    def hand_out(self, rows: Sequence[tuple[int, int]], matrix: Matrix) -> None:
        """Keep the pairs (row of *matrix*, index in the request); the last ones complete the answer."""
        if self.answer.done():
            return
        for row, index in rows:
            self.vectors[index] = matrix[row]
        self.unanswered -= len(rows)
        if not self.unanswered:
            self.answer.set_result(self.vectors)

    def put_back(self, indexes: Iterable[int]) -> None:
        self.waiting = sorted([*self.waiting, *indexes], key=lambda index: -self.items[index].length)

    def tokens(self, indexes: Iterable[int]) -> int:
        """Tokens of these texts as the model will see them, without padding."""
        return sum(self.items[index].length for index in indexes)

    @property
    def whole_cost_s(self) -> float:
        return self.cost_s(range(len(self.items)))

    def cost_s(self, indexes: Iterable[int]) -> float:
        """Estimated seconds of one lane for these texts, each in a run of its own."""
        return sum(cost(1, self.items[index].length) for index in indexes) * self.token_s


@dataclass(slots=True, eq=False)
class Run:
    """One micro-batch: texts of one model, perhaps of several requests.

    It is expected to end at *ends*, in seconds on the scheduler's clock. While *is_lone* nothing else runs or waits.
    """

    model: Runnable
    parts: list[tuple[Job, int]]
    ends: float = 0.0
    is_lone: bool = False

    @property
    def items(self) -> list[Item]:
        return [job.items[index] for job, index in self.parts]

    @property
    def longest(self) -> int:
        return max(item.length for item in self.items)

    @property
    def is_small(self) -> bool:
        return self.parts[0][0].is_small

    def by_job(self) -> dict[Job, list[tuple[int, int]]]:
        """Per request, the pairs (row of the run, index in the request)."""
        rows: dict[Job, list[tuple[int, int]]] = {}
        for row, (job, index) in enumerate(self.parts):
            rows.setdefault(job, []).append((row, index))
        return rows


def cut_into_runs(lengths: Sequence[int], batching: Batching, *, budget_tokens: int) -> list[tuple[int, int]]:
    """Texts of these lengths as runs: how many texts each has, and the longest one's tokens."""
    ordered = sorted(lengths, reverse=True)
    match batching:
        case "single":
            return [(1, length) for length in ordered]
        case "equal":
            fit = [
                (length, min(WINDOW_TEXTS, max(1, budget_tokens // max(1, length))))
                for length in dict.fromkeys(ordered)
            ]
            counts = Counter(ordered)
            return [
                (min(most, counts[length] - start), length)
                for length, most in fit
                for start in range(0, counts[length], most)
            ]
        case "mixed":
            runs = plan(ordered, budget_tokens=budget_tokens, most_texts=WINDOW_TEXTS)
            return [(len(run), ordered[run.start]) for run in runs]


class WaitingJobs:
    """Owns the requests of one class (small or big) that have waiting texts; the least *order* goes first.

    Attributes:
        waiting_s: estimated seconds of one lane for all waiting texts. A request that shares its runs with later ones
            is done later than its own texts alone would be; so one that is not large counts as a whole to its end.
        tokens: of all waiting texts, without padding.
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
        insort(self._jobs, job, key=lambda other: other.order)
        self.waiting_s += job.cost_s(job.waiting)
        self.tokens += job.tokens(job.waiting)

    def put_back(self, job: Job, indexes: Sequence[int]) -> None:
        """Texts of *job* that were taken wait again."""
        has_left = not job.waiting
        if has_left:
            insort(self._jobs, job, key=lambda other: other.order)
        job.put_back(indexes)
        if not job.is_counted_whole:
            self.waiting_s += job.cost_s(indexes)
        elif has_left:
            self.waiting_s += job.whole_cost_s
        self.tokens += job.tokens(indexes)

    def remove(self, job: Job, indexes: Sequence[int]) -> None:
        """Take texts of *job* out; a request without waiting texts leaves the queue."""
        self.tokens -= job.tokens(indexes)
        gone = set(indexes)
        job.waiting = [index for index in job.waiting if index not in gone]
        if not job.is_counted_whole:
            self.waiting_s -= job.cost_s(indexes)
        elif not job.waiting:
            self.waiting_s -= job.whole_cost_s
        if not job.waiting:
            self._jobs.remove(job)
        if not self._jobs:
            self.waiting_s = 0.0  # sums of floats drift; an empty queue is exactly zero

    def take(self, budget_tokens: int) -> Run:
        """The run of least modelled cost per text that holds the first text: the longest one of the head."""
        head = self.head
        window = [part for part, _ in zip(self._sharing_with(head), range(WINDOW_TEXTS), strict=False)]
        window.sort(key=lambda part: -part[0].items[part[1]].length)
        lengths = [job.items[index].length for job, index in window]
        first = window.index((head, head.waiting[0]))
        chosen = next(run for run in plan(lengths, budget_tokens=budget_tokens) if first in run)
        run = Run(head.model, [window[position] for position in chosen])
        for job, rows in run.by_job().items():
            self.remove(job, [index for _, index in rows])
        return run

    def _sharing_with(self, head: Job) -> Iterator[tuple[Job, int]]:
        """The texts that may share a run with the first text of *head*, its own first."""
        first, batching = head.waiting[0], head.model.batching
        if batching == "single":
            yield head, first
            return
        wanted = head.items[first].length if batching == "equal" else None
        for job in self._jobs:
            if job is head or (job.model is head.model and not job.is_alone and not head.is_alone):
                for index in job.waiting:
                    if wanted is None or job.items[index].length == wanted:
                        yield job, index
