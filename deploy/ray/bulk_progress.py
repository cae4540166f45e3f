"""How far a bulk job is, and when it will be done."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deploy.ray.bulk_embedder import Done
from deploy.ray.bulk_inputs import Unit

TOLD_EVERY_S = 5.0


@dataclass(slots=True)
class Totals:
    """What a run of a job has done: *texts* are those it has embedded itself, *skipped* the bad rows it left out."""

    texts: int = 0
    tokens: int = 0
    truncated: int = 0
    skipped: int = 0
    units_embedded: int = 0
    units_done_before: int = 0
    seconds: float = 0.0


class Progress:
    """Adds up what units become, and tells it now and then."""

    def __init__(
        self,
        units: Sequence[Unit],
        there: Sequence[Unit],
        *,
        tell: Callable[[str], None],
        run: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with the units that are *there* already; only what *run* embeds counts as done by it."""
        self.totals = Totals(units_done_before=len(there))
        self._size = max(1, sum(map(_size_of, units)))
        self._there = sum(map(_size_of, there))
        self._new = 0
        self._run = run
        self._tell = tell
        self._clock = clock
        self._started = self._told = clock()

    def note(self, unit: Unit, done: Done) -> None:
        """A unit is done."""
        totals, now = self.totals, self._clock()
        totals.seconds = round(now - self._started, 3)
        self._new += _size_of(unit)
        if done.run == self._run:
            totals.texts += done.texts
            totals.tokens += done.tokens
            totals.truncated += done.truncated
            totals.skipped += done.skipped
            totals.units_embedded += 1
        else:
            totals.units_done_before += 1
        if now - self._told >= TOLD_EVERY_S:
            self._told = now
            self._tell(self.line)

    @property
    def line(self) -> str:
        """One line for people: the share of all that is done, the pace of this run, the time that is left."""
        totals, share = self.totals, (self._there + self._new) / self._size
        seconds = max(totals.seconds, 1e-3)
        left_s = seconds * (self._size - self._there - self._new) / self._new if self._new else 0.0
        return (
            f"{share:6.1%}  {totals.texts:,} texts  {totals.texts / seconds:,.0f} texts/s  "
            f"{totals.tokens / seconds:,.0f} tokens/s  {_told(left_s)} left"
        )


def _size_of(unit: Unit) -> int:
    """Rows, or bytes: in one job all are of one kind."""
    return unit.stop - unit.start


def _told(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"
