"""A model whose runs a test holds and looks at."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.jobs import Batching, Matrix


@dataclass(frozen=True, slots=True)
class Text:
    """A text of which only the length in tokens counts; its vector is its number."""

    length: int
    number: int = 0


class GatedModel:
    """Runs wait for the gate; `runs` lists the numbers of the texts of each run that has begun."""

    def __init__(self, name: str = "gated", *, is_open: bool = False, seconds_per_token: float = 0.001) -> None:
        self.name = name
        self.dim = 1
        self.batching: Batching = "mixed"
        self.seconds_per_token = seconds_per_token
        self.runs: list[list[int]] = []
        self.gate = threading.Semaphore(10_000 if is_open else 0)
        self.fails_on: set[int] = set()
        self.missing_vectors = 0
        self.lone_runs = 0
        self._begun = threading.Condition()

    def encode(self, items: Sequence[Text], *, is_lone: bool = False) -> Matrix:
        with self._begun:
            self.lone_runs += is_lone
            self.runs.append([item.number for item in items])
            self._begun.notify_all()
        assert self.gate.acquire(timeout=10)
        if self.fails_on & {item.number for item in items}:
            raise ValueError("the model cannot do this")
        vectors = np.array([[item.number] for item in items], dtype=np.float32)
        return vectors[: len(vectors) - self.missing_vectors]

    def wait_for_runs(self, count: int) -> None:
        """Blocking: until so many runs have begun."""
        with self._begun:
            assert self._begun.wait_for(lambda: len(self.runs) >= count, timeout=10)

    def open(self, runs: int = 10_000) -> None:
        """Let so many runs end."""
        self.gate.release(runs)
