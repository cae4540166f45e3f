"""The sessions of one loaded model."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np

from engine.fastembed_adapter import Method, Session
from engine.self_check import MAX_DRIFT, drift_of
from engine.tokenizer import TokenizedText
from engine.vectors import Matrix


class Sessions:
    """A model's sessions: one with a single thread, and perhaps one that runs a lone text on all cores.

    Lanes that work beside each other use the first. The second is for a text that arrives while nothing else runs:
    sharing one run among threads costs throughput, but a lone text has cores to spare.
    """

    def __init__(self, one_thread: Session) -> None:
        self.one_thread = one_thread
        self.lone_text: Session | None = None
        self._lone_text_threads = 1

    def run(self, method: Method, items: Sequence[TokenizedText], *, is_lone: bool) -> Matrix:
        session = (self.lone_text if is_lone else None) or self.one_thread
        return session.run(method, items)

    def open_lone_text(self, threads: int, items: Sequence[TokenizedText]) -> float:
        """Open the session for lone texts, with *threads* threads, unless its vectors of *items* differ.

        Returns:
            How far they are from those of the other session; see `engine.self_check.drift_of`.
        """
        lone_text = self.one_thread.open_lone_text_session(threads)
        drift = drift_of(lone_text.run("embed", items), self.one_thread.run("embed", items))
        if drift <= MAX_DRIFT:
            self.lone_text, self._lone_text_threads = lone_text, threads
        return drift

    def adopt(self, copy: Path, runs: Sequence[Sequence[TokenizedText]], methods: Sequence[Method]) -> bool:
        """Use the optimised copy with the graph *copy* from now on; False if any vector differs in any bit.

        Runs that have begun end with the old sessions.

        Args:
            copy: the graph.
            runs: texts to compare, those of one run together.
            methods: with which each is run.

        Raises:
            Exception: whatever ONNX Runtime raises.
        """
        session = self.one_thread.open_copy(copy)
        for method, items in product(methods, runs):
            if not np.array_equal(session.run(method, items), self.one_thread.run(method, items), equal_nan=True):
                return False
        lone_text = session.open_lone_text_session(self._lone_text_threads) if self.lone_text else None
        self.one_thread, self.lone_text = session, lone_text
        return True
