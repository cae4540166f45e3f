"""FastEmbed called directly, with its own defaults, in a process of its own: what the service is compared with.

`python -m benchmarks.baseline FOLDER` loads the model in FOLDER and answers commands; see `processes.Child`.
"""

import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from fastembed import TextEmbedding

from benchmarks.processes import answer_commands
from benchmarks.texts import Stream
from benchmarks.workloads import MODEL


class Baseline:
    """Owns the model; each public method is a command."""

    def __init__(self, folder: str) -> None:
        self._model = TextEmbedding(MODEL, specific_model_path=folder)

    def call(self, *, stream: dict[str, Any], seed: str, warm_s: float, seconds: float) -> dict[str, Any]:
        """Call `embed()` once per request, one request at a time, for at least *seconds*.

        `first` in the answer is the number of the stream's first request that was timed.
        """
        requests = Stream(**stream).requests(seed)
        first = len(self._embed_for(warm_s, requests))
        began_at, began_cpu_s = time.perf_counter(), time.process_time()
        latencies_s = self._embed_for(seconds, requests)
        return {
            "seconds": time.perf_counter() - began_at,
            "cpu_s": time.process_time() - began_cpu_s,
            "first": first,
            "latencies_ms": [latency_s * 1000 for latency_s in latencies_s],
        }

    def _embed_for(self, seconds: float, requests: Iterator[list[str]]) -> list[float]:
        latencies_s: list[float] = []
        began_at = now = time.perf_counter()
        while now - began_at < seconds:
            texts = next(requests)
            called_at = time.perf_counter()
            self._embed(texts)
            now = time.perf_counter()
            latencies_s.append(now - called_at)
        return latencies_s

    def _embed(self, texts: list[str]) -> list[Any]:
        return list(self._model.embed(texts))

    def vectors(self, *, texts: list[str]) -> list[list[float]]:
        """Return one vector per text; each text is embedded alone."""
        return [np.asarray(vector, dtype=np.float64).tolist() for text in texts for vector in self._embed([text])]

    def lengths(self, *, stream: dict[str, Any], seed: str, requests: int) -> list[list[int]]:
        """Return how many tokens the model gets of each text, for the first *requests* requests."""
        texts = Stream(**stream).requests(seed)
        return [[self._model.token_count(text) for text in next(texts)] for _ in range(requests)]


def main() -> None:
    baseline = Baseline(sys.argv[1])
    answer_commands({"call": baseline.call, "vectors": baseline.vectors, "lengths": baseline.lengths})


if __name__ == "__main__":
    main()
