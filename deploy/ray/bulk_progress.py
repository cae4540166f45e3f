"""Progress of a bulk job: totals, rates and the estimated time left."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from deploy.ray.bulk_inputs import Unit
from deploy.ray.bulk_units import UnitResult

REPORT_INTERVAL_S = 5.0


@dataclass(slots=True)
class Totals:
    """What one run of a job has done.

    Attributes:
        texts: texts that this run has embedded.
        skipped: bad rows that this run has skipped.
        units_done_before: units whose output existed already.
    """

    texts: int = 0
    tokens: int = 0
    truncated: int = 0
    skipped: int = 0
    units_embedded: int = 0
    units_done_before: int = 0
    seconds: float = 0.0


class Progress:
    """Adds up the results of units, and reports a line every few seconds."""

    def __init__(
        self,
        units: Sequence[Unit],
        finished: Sequence[Unit],
        *,
        report: Callable[[str], None],
        run: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start with the *finished* units; only units that *run* embeds count towards its rates."""
        self.totals = Totals(units_done_before=len(finished))
        self._total_size = max(1, sum(map(_size, units)))
        self._finished_size = sum(map(_size, finished))
        self._new_size = 0
        self._run = run
        self._report = report
        self._clock = clock
        self._started_s = self._reported_s = clock()

    def add(self, unit: Unit, result: UnitResult) -> None:
        """Count a finished unit."""
        totals, now_s = self.totals, self._clock()
        totals.seconds = round(now_s - self._started_s, 3)
        self._new_size += _size(unit)
        if result.run == self._run:
            totals.texts += result.texts
            totals.tokens += result.tokens
            totals.truncated += result.truncated
            totals.skipped += result.skipped
            totals.units_embedded += 1
        else:
            totals.units_done_before += 1
        if now_s - self._reported_s >= REPORT_INTERVAL_S:
            self._reported_s = now_s
            self._report(self.line)

    @property
    def line(self) -> str:
        """Percentage of the whole job, rates of this run, and the estimated time left."""
        totals, done = self.totals, self._finished_size + self._new_size
        seconds = max(totals.seconds, 1e-3)
        left_s = seconds * (self._total_size - done) / self._new_size if self._new_size else 0.0
        return (
            f"{done / self._total_size:6.1%}  {totals.texts:,} texts  {totals.texts / seconds:,.0f} texts/s  "
            f"{totals.tokens / seconds:,.0f} tokens/s  {timedelta(seconds=round(left_s))} left"
        )


def _size(unit: Unit) -> int:
    """Rows or bytes; all units of a job use the same."""
    return unit.stop - unit.start
