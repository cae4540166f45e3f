"""A model whose runs a test can hold and observe, without ONNX Runtime."""

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.job_queue import Job, MicroBatch
from engine.planner import Batching
from engine.vectors import Matrix


@dataclass(frozen=True, slots=True)
class Text:
    """A tokenised text of *length* tokens. Its vector is its *number*."""

    length: int
    number: int = 0


class GatedModel:
    """A model whose runs wait until the gate is open. `runs` lists the texts' numbers of each run that has started."""

    def __init__(self, name: str = "gated", *, is_open: bool = False, seconds_per_token: float = 0.001) -> None:
        self.name = name
        self.dim = 1
        self.batching: Batching = "mixed"
        self.seconds_per_token = seconds_per_token
        self.runs: list[list[int]] = []
        self.gate = threading.Semaphore(10_000 if is_open else 0)
        self.fails_on: set[int] = set()
        self.omitted_vectors = 0
        self.lone_runs = 0
        self._started = threading.Condition()

    def encode(self, items: Sequence[Text], *, is_lone: bool = False) -> Matrix:
        with self._started:
            self.lone_runs += is_lone
            self.runs.append([item.number for item in items])
            self._started.notify_all()
        assert self.gate.acquire(timeout=10)
        if self.fails_on & {item.number for item in items}:
            raise ValueError("the model cannot run this text")
        vectors = np.array([[item.number] for item in items], dtype=np.float32)
        return vectors[: len(vectors) - self.omitted_vectors]

    def wait_for_runs(self, count: int) -> None:
        """Block until *count* runs have started."""
        with self._started:
            assert self._started.wait_for(lambda: len(self.runs) >= count, timeout=10)

    async def started(self, runs: int) -> None:
        """Wait until this many runs have started."""
        await asyncio.to_thread(self.wait_for_runs, runs)

    def open(self, runs: int = 10_000) -> None:
        """Let this many runs end."""
        self.gate.release(runs)


class DyingModel(GatedModel):
    """A model that ends the thread that runs it."""

    def encode(self, items: Sequence[Text], *, is_lone: bool = False) -> Matrix:
        super().encode(items, is_lone=is_lone)
        raise SystemExit("not an error of the model")


def batch_of(
    model: GatedModel,
    number: int = 0,
    *,
    length: int = 10,
    expected_end: float = 0.0,
    is_small: bool = True,
    is_lone: bool = False,
) -> MicroBatch:
    """Return a micro-batch of one text, whose job is in no queue."""
    nobody: Any = None  # waits for the result
    job = Job(model, [Text(length, number)], nobody, counted_s_per_token=1.0, sort_key=0.0, is_small=is_small)
    return MicroBatch(model, [(job, 0)], expected_end=expected_end, is_lone=is_lone)
