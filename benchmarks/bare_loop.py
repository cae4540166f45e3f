"""The bare loop: given micro-batches on ONNX Runtime and nothing else, the least CPU that they can cost.

`python -m benchmarks.bare_loop FOLDER` loads the model in FOLDER and answers commands; see `processes.Child`.
"""

import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from fastembed import TextEmbedding
from numpy.typing import NDArray

from benchmarks.processes import answer_commands
from benchmarks.workloads import MODEL

Feeds = dict[str, NDArray[np.int64]]

WARM_RUNS = 8


class BareLoop:
    """Runs shapes through the session that FastEmbed creates with one thread, on plain threads."""

    def __init__(self, folder: str) -> None:
        embedding: Any = TextEmbedding(MODEL, specific_model_path=folder, threads=1)
        self._session: Any = embedding.model.model
        self._inputs = [node.name for node in self._session.get_inputs()]
        self._rng = np.random.default_rng(0)
        self._feeds: dict[tuple[int, int], Feeds] = {}

    def replay(self, *, shapes: list[tuple[int, int]], threads: int) -> dict[str, float]:
        """Run each shape (texts, longest) once, on *threads* threads, and return wall-clock and CPU seconds."""
        feeds = [self._feed(texts, longest) for texts, longest in shapes]
        self._run_all(feeds[:WARM_RUNS], threads)
        began_at, began_cpu_s = time.perf_counter(), time.process_time()
        self._run_all(feeds, threads)
        return {"seconds": time.perf_counter() - began_at, "cpu_s": time.process_time() - began_cpu_s}

    def _run_all(self, feeds: list[Feeds], threads: int) -> None:
        left = iter(feeds)
        lanes = [threading.Thread(target=self._run_lane, args=(left,)) for _ in range(threads)]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()

    def _run_lane(self, feeds: Iterator[Feeds]) -> None:
        for feed in feeds:  # the threads share the iterator, so each run is taken once
            self._session.run(None, feed)

    def _feed(self, texts: int, longest: int) -> Feeds:
        """Return random token ids with full attention: the cost of a run does not depend on the tokens."""
        shape = (texts, longest)
        if shape not in self._feeds:
            arrays = {
                "input_ids": self._rng.integers(1000, 30000, shape, dtype=np.int64),
                "attention_mask": np.ones(shape, dtype=np.int64),
                "token_type_ids": np.zeros(shape, dtype=np.int64),
            }
            self._feeds[shape] = {name: arrays[name] for name in self._inputs}
        return self._feeds[shape]


def main() -> None:
    answer_commands({"replay": BareLoop(sys.argv[1]).replay})


if __name__ == "__main__":
    main()
