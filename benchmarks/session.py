"""The whole benchmark: which process lives when, and who is measured after whom."""

import itertools
import json
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.cpu import memory_mb_of, usable_cores
from benchmarks.measure import Called, Meter, Recording, Served, bare_cpu_ms_per_text
from benchmarks.processes import (
    BenchError,
    Child,
    NotLoggedError,
    RowError,
    Server,
    child,
    healthy_server,
    refuse_if_ended,
)
from benchmarks.rows import BESIDE_ROW, BULK_ALONE, CPU_ROW, LOADS, START_ROW, Row
from benchmarks.startup import FIRST_TEXT, Start, embed_once, measure_start
from benchmarks.texts import Stream

MIN_COSINE = 0.9999
CHECKED_TEXTS = 16


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked for."""

    rows: tuple[int, ...]
    rounds: int
    seconds: float
    warm_s: float
    start_repeats: int
    seed: str
    model_folder: Path


@dataclass(frozen=True, slots=True)
class Turn:
    """One row in one round: each side once."""

    served: Served
    called: Called | None = None
    alone: Served | None = None
    bare_cpu_ms_per_text: float | None = None


@dataclass(slots=True)
class Memory:
    """Resident memory, MB, when all rows were done."""

    server: float = math.nan
    server_peak: float = math.nan
    baseline: float = math.nan


@dataclass(slots=True)
class Findings:
    """Everything measured."""

    lanes: int
    turns: dict[int, list[Turn]] = field(default_factory=dict)
    aborted: dict[int, str] = field(default_factory=dict)
    recordings: dict[int, Recording] = field(default_factory=dict)
    memory: Memory = field(default_factory=Memory)
    starts: list[Start] = field(default_factory=list)
    least_cosine: float = math.nan


class Session:
    """Runs a plan; owns the processes while it does."""

    def __init__(self, plan: Plan, tell: Callable[[str], None]) -> None:
        self._plan = plan
        self._tell = tell
        self._findings = Findings(lanes=usable_cores())
        self._rows = [LOADS[number] for number in plan.rows if number in LOADS]

    def run(self) -> Findings:
        with ExitStack() as stack:
            baseline = stack.enter_context(child("baseline", self._plan.model_folder))
            self._check_and_record(baseline)
            if self._rows:
                bare = stack.enter_context(child("bare", self._plan.model_folder))
                self._take_turns(baseline, bare)
            if START_ROW in self._plan.rows:
                self._start_repeatedly(baseline)
        return self._findings

    def _check_and_record(self, baseline: Child) -> None:
        with healthy_server(log_level="DEBUG", lanes=self._findings.lanes) as server:
            self._tell("checking the server's vectors against FastEmbed's")
            self._check_vectors(server, baseline)
            if CPU_ROW in self._plan.rows:
                for row in self._rows:
                    self._tell(f"row {row.number}: recording the micro-batches")
                    self._record(row, server, baseline)

    def _record(self, row: Row, server: Server, baseline: Child) -> None:
        meter = self._meter(baseline)
        try:
            self._findings.recordings[row.number] = meter.record(server, row, self._seed(row, "recorded"))
        except NotLoggedError as error:
            self._tell(f"row {row.number}: {error}")
        except RowError as error:
            self._abort(row, error)

    def _take_turns(self, baseline: Child, bare: Child) -> None:
        with healthy_server(log_level="INFO", lanes=self._findings.lanes) as server:
            for turn, row in itertools.product(range(1, self._plan.rounds + 1), self._rows):
                if row.number not in self._findings.aborted:
                    self._tell(f"round {turn} of {self._plan.rounds}, row {row.number}: {row.title}")
                    self._take_turn(turn, row, server, baseline, bare)
            memory = self._findings.memory
            memory.server, memory.server_peak = memory_mb_of(server.process.pid)
            memory.baseline, _ = memory_mb_of(baseline.pid)

    def _take_turn(self, turn: int, row: Row, server: Server, baseline: Child, bare: Child) -> None:
        meter, seed = self._meter(baseline), self._seed(row, str(turn))
        beside = row.number == BESIDE_ROW
        try:
            called = None if beside else meter.call(row, seed)
            alone = meter.serve(server, BULK_ALONE, self._seed(BULK_ALONE, str(turn))) if beside else None
            served = meter.serve(server, row, seed)
        except RowError as error:
            self._abort(row, error)
            refuse_if_ended(server)
            return
        least = self._bare(row, served, bare)
        self._findings.turns.setdefault(row.number, []).append(Turn(served, called, alone, least))

    def _abort(self, row: Row, error: RowError) -> None:
        self._findings.aborted[row.number] = str(error)
        self._tell(f"row {row.number}: {error}")

    def _bare(self, row: Row, served: Served, bare: Child) -> float | None:
        if recording := self._findings.recordings.get(row.number):
            return bare_cpu_ms_per_text(bare, row, recording, lanes=self._findings.lanes, served=served)
        return None

    def _start_repeatedly(self, baseline: Child) -> None:
        [wanted] = baseline.ask("vectors", texts=[FIRST_TEXT])
        for turn in range(1, self._plan.start_repeats + 1):
            self._tell(f"start {turn} of {self._plan.start_repeats}")
            start, vector = measure_start(self._plan.model_folder, lanes=self._findings.lanes)
            refuse_if_wrong(cosine(vector, wanted))
            self._findings.starts.append(start)

    def _check_vectors(self, server: Server, baseline: Child) -> None:
        """Compare vectors of short and long texts, from both endpoints, with FastEmbed's.

        Raises:
            BenchError: the server gives others, or none.
        """
        [texts] = itertools.islice(Stream("mixed", CHECKED_TEXTS, 1).requests(self._seed(BULK_ALONE, "checked")), 1)
        wanted = baseline.ask("vectors", texts=texts)
        singles = [embed_once(server, {"text": text}, "/embed") for text in texts]
        batch = embed_once(server, {"texts": texts}, "/embed/batch")
        if batch is None or None in singles:
            raise BenchError("The server did not answer 200 to the texts its vectors are checked with.")
        given = [json.loads(single or b"")["embedding"] for single in singles] + json.loads(batch)["embeddings"]
        self._findings.least_cosine = min(cosine(ours, theirs) for ours, theirs in zip(given, wanted * 2, strict=True))
        refuse_if_wrong(self._findings.least_cosine)

    def _meter(self, baseline: Child) -> Meter:
        return Meter(baseline, self._plan.seconds, self._plan.warm_s)

    def _seed(self, row: Row, turn: str) -> str:
        """Every row and round has texts of its own, so remembered vectors cannot help."""
        return f"{self._plan.seed}/{row.number}/{turn}"


def refuse_if_wrong(similarity: float) -> None:
    if not similarity > MIN_COSINE:
        raise BenchError(f"The server's vectors are wrong: cosine {similarity:.6f} to FastEmbed's.")


def cosine(a: list[float], b: list[float]) -> float:
    return float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))
