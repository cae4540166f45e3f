"""Estimates how long micro-batches take, from the measured durations of earlier ones."""

from weakref import WeakKeyDictionary

from engine.job_queue import MicroBatch, RunnableModel
from engine.planner import cost

SMOOTHING = 0.9
"""Weight of the previous estimate in the exponential moving average. At 0.9 the latest 10 micro-batches make up about
two thirds of the estimate, and a single outlier moves it by a tenth of its deviation."""


class DurationEstimator:
    """Owns the measured speed of each model, for as long as the model is in memory."""

    def __init__(self) -> None:
        self._seconds_per_token: WeakKeyDictionary[RunnableModel, float] = WeakKeyDictionary()

    def seconds_per_token(self, model: RunnableModel) -> float:
        """Return the seconds of one lane per token of modelled cost; before its first run, the model's own estimate."""
        return self._seconds_per_token.get(model, model.seconds_per_token)

    def seconds(self, batch: MicroBatch) -> float:
        """Return how many seconds *batch* is expected to take on one lane."""
        return cost(len(batch.parts), batch.longest) * self.seconds_per_token(batch.model)

    def record(self, batch: MicroBatch, seconds: float) -> None:
        """Learn from the measured duration of *batch*, unless it was a lone text, which runs on all cores."""
        if not batch.is_lone:
            measured = seconds / cost(len(batch.parts), batch.longest)
            previous = self.seconds_per_token(batch.model)
            self._seconds_per_token[batch.model] = SMOOTHING * previous + (1 - SMOOTHING) * measured
