"""What the engine did for one request: filled while it runs; read for its log line, metrics, headers and trace."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

StageName = Literal["load", "cache", "tokenize", "queue", "run"]
"""A part of a request's time. `load`: its model was not in memory; `cache`: cached results were looked up; `tokenize`;
`queue`: admitted, until its first text ran or it was dropped; `run`: from there until its last text had its vector.
Parts of one request do not overlap, except that a long request may look up cached results while some of its texts run.
"""


class Stage(NamedTuple):
    """A part of a request's time, in seconds on the monotonic clock."""

    name: StageName
    started_s: float
    ended_s: float


class _Timed:
    """Times one stage, whether it succeeds or fails."""

    __slots__ = ("_clock", "_least_s", "_name", "_stages", "_started_s")

    def __init__(self, stages: list[Stage], name: StageName, clock: Callable[[], float], least_s: float) -> None:
        self._stages, self._name, self._clock, self._least_s = stages, name, clock, least_s

    def __enter__(self) -> None:
        self._started_s = self._clock()

    def __exit__(self, *_: object) -> None:
        if (ended_s := self._clock()) - self._started_s >= self._least_s:
            self._stages.append(Stage(self._name, self._started_s, ended_s))


@dataclass(slots=True)
class RequestWork:
    """The work for one request, as far as it has come.

    Attributes:
        model: the name of the model; empty: the request did not get that far.
        texts: number of its texts.
        tokens: as its caller's quota is charged; 0 until they are known.
        truncated: number of texts of which the model saw only a part.
        hits: number of texts whose results were kept.
        coalesced: number of texts that were computed once with equal ones.
        dimension: numbers per vector; 0: no vector was computed.
        stages: what took its time, in the order in which it began.
    """

    model: str = ""
    texts: int = 0
    tokens: int = 0
    truncated: int = 0
    hits: int = 0
    coalesced: int = 0
    dimension: int = 0
    stages: list[Stage] = field(default_factory=list)

    def timed(self, name: StageName, clock: Callable[[], float], *, least_s: float = 0.0) -> _Timed:
        """Return a context manager that adds a stage, also if it fails; none if it took less than *least_s*."""
        return _Timed(self.stages, name, clock, least_s)

    def add_run(self, queued_s: float, started_s: float, ended_s: float) -> None:
        """Add a slice of the request that waited and ran; later slices of it extend the stage `run`."""
        started_s = max(queued_s, started_s)  # it may have joined the run of an equal text that had begun
        for place, (name, start, end) in enumerate(self.stages):
            if name == "run":
                self.stages[place] = Stage("run", start, max(end, ended_s))
                return
        self.stages += (Stage("queue", queued_s, started_s), Stage("run", started_s, max(started_s, ended_s)))

    def add_unfinished(self, queued_s: float, started_s: float, now_s: float) -> None:
        """Add a slice that is given up: it ran, or it only waited (*started_s* is 0)."""
        if started_s:
            self.add_run(queued_s, started_s, now_s)
        elif self.seconds("queue") is None:
            self.stages.append(Stage("queue", queued_s, now_s))

    def seconds_by_stage(self) -> dict[StageName, float]:
        """Return how long each stage took in all."""
        sums = {name: ended_s - started_s for name, started_s, ended_s in self.stages}
        if len(sums) < len(self.stages):  # few requests have a stage twice
            sums = dict.fromkeys(sums, 0.0)
            for name, started_s, ended_s in self.stages:
                sums[name] += ended_s - started_s
        return sums

    def seconds(self, name: StageName) -> float | None:
        """Return how long a stage took in all; None: there was none."""
        found = [stage.ended_s - stage.started_s for stage in self.stages if stage.name == name]
        return sum(found) if found else None
