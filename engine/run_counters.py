"""Counts model runs: how long they took, how many texts they had, and how much of them was padding. Imports little."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from telemetry.histograms import DURATIONS_S, RATIOS, RUN_TEXTS, Buckets, Histogram


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCounts:
    """What was counted of model runs since the start.

    Attributes:
        seconds: of each model's runs, by its name; of `DURATIONS_S`.
        texts: per run; of `RUN_TEXTS`.
        padding: the share of each run's tokens that are padding, 0 to 1; of `RATIOS`.
    """

    seconds: dict[str, Buckets]
    texts: Buckets
    padding: Buckets


class RunCounters:
    """Owns the counters of model runs.

    Attributes:
        runs: their number.
        texts: in all of them.
        padded_tokens: in all of them, padding included.
    """

    def __init__(self) -> None:
        self.runs = self.texts = self.padded_tokens = 0
        self._seconds: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(DURATIONS_S))
        self._texts_per_run = Histogram(RUN_TEXTS)
        self._padding = Histogram(RATIOS)

    def record(self, model: str, lengths: Sequence[int], seconds: float) -> None:
        """Count a run of *model* that has succeeded; *lengths*: tokens of each text, without padding."""
        texts = len(lengths)
        padded_tokens = texts * max(lengths)
        self.runs += 1
        self.texts += texts
        self.padded_tokens += padded_tokens
        self._seconds[model].observe(seconds)
        self._texts_per_run.observe(texts)
        self._padding.observe(1 - sum(lengths) / padded_tokens)

    def read(self) -> RunCounts:
        return RunCounts(
            seconds={name: found.read() for name, found in self._seconds.items()},
            texts=self._texts_per_run.read(),
            padding=self._padding.read(),
        )
