"""How fast each model runs, learned from its runs."""

from weakref import WeakKeyDictionary

from engine.jobs import Run, Runnable
from engine.planner import cost

MEMORY = 0.9
"""Weight of what was known before when a run teaches the model's pace (an exponential moving average)."""


class RunTimeEstimator:
    """Owns what is known of each model's pace, as long as the model is in memory."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Runnable, float] = WeakKeyDictionary()

    def of(self, model: Runnable) -> float:
        """Seconds of one lane per token of modelled cost; before its first run, the model's own guess."""
        return self._known.get(model, model.seconds_per_token)

    def seconds(self, run: Run) -> float:
        """How long *run* is expected to take."""
        return cost(len(run.parts), run.longest) * self.of(run.model)

    def learn(self, run: Run, seconds: float) -> None:
        """*run* took so long."""
        if not run.is_lone:  # all cores worked on that one, which says nothing of a lane's pace
            measured = seconds / cost(len(run.parts), run.longest)
            self._known[run.model] = MEMORY * self.of(run.model) + (1 - MEMORY) * measured
