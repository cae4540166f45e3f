"""The whole benchmark: which processes run when, and in which order they are measured."""

import itertools
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.load import RowError
from benchmarks.machine import memory_mb_of
from benchmarks.measure import Called, Meter, NotLoggedError, Recording, Served, bare_cpu_ms_per_text
from benchmarks.processes import BenchError, Child, Server, child, healthy_server
from benchmarks.startup import FIRST_TEXT, Start, measure_start
from benchmarks.texts import Stream
from benchmarks.workloads import BULK_ALONE, CPU_ROW, LOADS, SHARED_ROW, START_ROW, Row
from host.cores import usable_cores

MIN_COSINE = 0.9999
CHECKED_TEXTS = 16


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure."""

    rows: tuple[int, ...]
    rounds: int
    seconds: float
    warm_s: float
    start_repeats: int
    seed: str
    model_folder: Path


@dataclass(frozen=True, slots=True)
class Sample:
    """One row in one round.

    Attributes:
        called: FastEmbed with the same requests; None in the shared row.
        alone: in the shared row, the server with the bulk clients alone.
    """

    served: Served
    called: Called | None = None
    alone: Served | None = None
    bare_cpu_ms_per_text: float | None = None


@dataclass(slots=True)
class Memory:
    """Resident memory in MB after all rows."""

    server: float = math.nan
    server_peak: float = math.nan
    baseline: float = math.nan


@dataclass(slots=True)
class Findings:
    """Everything measured; by row number where it belongs to a row."""

    lanes: int
    samples: dict[int, list[Sample]] = field(default_factory=dict)
    aborted: dict[int, str] = field(default_factory=dict)
    recordings: dict[int, Recording] = field(default_factory=dict)
    memory: Memory = field(default_factory=Memory)
    starts: list[Start] = field(default_factory=list)
    min_cosine: float = math.nan


class Session:
    """Runs a plan, and owns the processes meanwhile."""

    def __init__(self, plan: Plan, log: Callable[[str], None]) -> None:
        self._plan = plan
        self._log = log
        self._findings = Findings(lanes=usable_cores())
        self._rows = [LOADS[number] for number in plan.rows if number in LOADS]

    def run(self) -> Findings:
        with ExitStack() as stack:
            baseline = stack.enter_context(child("baseline", self._plan.model_folder))
            self._check_and_record(baseline)
            if self._rows:
                bare_loop = stack.enter_context(child("bare_loop", self._plan.model_folder))
                self._measure_rows(baseline, bare_loop)
            if START_ROW in self._plan.rows:
                self._start_repeatedly(baseline)
        return self._findings

    def _check_and_record(self, baseline: Child) -> None:
        with healthy_server(log_level="DEBUG", lanes=self._findings.lanes) as server:
            self._log("comparing the server's vectors with FastEmbed's")
            self._check_vectors(server, baseline)
            if CPU_ROW in self._plan.rows:
                for row in self._rows:
                    self._log(f"row {row.number}: recording the micro-batches")
                    self._record(row, server, baseline)

    def _record(self, row: Row, server: Server, baseline: Child) -> None:
        try:
            self._findings.recordings[row.number] = self._meter(baseline).record(
                server, row, self._seed(row, "recorded")
            )
        except NotLoggedError as error:
            self._log(f"row {row.number}: {error}")
        except RowError as error:
            self._abort(row, error)

    def _measure_rows(self, baseline: Child, bare_loop: Child) -> None:
        with healthy_server(lanes=self._findings.lanes) as server:
            for number, row in itertools.product(range(1, self._plan.rounds + 1), self._rows):
                if row.number not in self._findings.aborted:
                    self._log(f"round {number} of {self._plan.rounds}, row {row.number}: {row.title}")
                    self._measure(number, row, server, baseline, bare_loop)
            memory = self._findings.memory
            memory.server, memory.server_peak = memory_mb_of(server.process.pid)
            memory.baseline, _ = memory_mb_of(baseline.pid)

    def _measure(self, number: int, row: Row, server: Server, baseline: Child, bare_loop: Child) -> None:
        meter, seed = self._meter(baseline), self._seed(row, str(number))
        is_shared = row.number == SHARED_ROW
        try:
            called = None if is_shared else meter.call(row, seed)
            alone = meter.serve(server, BULK_ALONE, self._seed(BULK_ALONE, str(number))) if is_shared else None
            served = meter.serve(server, row, seed)
        except RowError as error:
            self._abort(row, error)
            server.raise_if_ended()
            return
        bare_cpu_ms = self._replay(row, served, bare_loop)
        self._findings.samples.setdefault(row.number, []).append(Sample(served, called, alone, bare_cpu_ms))

    def _abort(self, row: Row, error: RowError) -> None:
        self._findings.aborted[row.number] = str(error)
        self._log(f"row {row.number}: {error}")

    def _replay(self, row: Row, served: Served, bare_loop: Child) -> float | None:
        if recording := self._findings.recordings.get(row.number):
            return bare_cpu_ms_per_text(bare_loop, row, recording, lanes=self._findings.lanes, served=served)
        return None

    def _start_repeatedly(self, baseline: Child) -> None:
        [expected] = baseline.ask("vectors", texts=[FIRST_TEXT])
        for number in range(1, self._plan.start_repeats + 1):
            self._log(f"start {number} of {self._plan.start_repeats}")
            start, vector = measure_start(self._plan.model_folder, lanes=self._findings.lanes)
            _raise_if_wrong(_cosine(vector, expected))
            self._findings.starts.append(start)

    def _check_vectors(self, server: Server, baseline: Child) -> None:
        """Compare vectors of short and long texts, from both endpoints, with FastEmbed's.

        Raises:
            BenchError: the server returns other vectors, or none.
        """
        texts = next(Stream("mixed", CHECKED_TEXTS, 1).requests(self._seed(BULK_ALONE, "checked")))
        expected = baseline.ask("vectors", texts=texts)
        singles = [server.post("/embed", {"text": text}) for text in texts]
        batch = server.post("/embed/batch", {"texts": texts})
        if {answer.status for answer in (batch, *singles)} != {200}:
            raise BenchError("The server did not answer the texts of the vector check with 200.")
        returned = [single.json["embedding"] for single in singles] + batch.json["embeddings"]
        self._findings.min_cosine = min(itertools.starmap(_cosine, zip(returned, expected * 2, strict=True)))
        _raise_if_wrong(self._findings.min_cosine)

    def _meter(self, baseline: Child) -> Meter:
        return Meter(baseline, self._plan.seconds, self._plan.warm_s)

    def _seed(self, row: Row, part: str) -> str:
        """Every row and round has texts of its own, so that a cache of vectors cannot help."""
        return f"{self._plan.seed}/{row.number}/{part}"


def _raise_if_wrong(cosine: float) -> None:
    if not cosine > MIN_COSINE:
        raise BenchError(f"The server's vectors are wrong: cosine {cosine:.6f} to FastEmbed's.")


def _cosine(a: list[float], b: list[float]) -> float:
    return float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))
