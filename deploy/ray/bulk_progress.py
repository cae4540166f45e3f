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
    """What a job has done.

    Attributes:
        texts: texts embedded by all runs of the job; so are *tokens*, *truncated* and *skipped* (bad rows).
        texts_this_run: texts that this run has embedded.
        units_embedded: units that this run has written.
        units_done_before: units whose output existed already.
        seconds: duration of this run.
    """

    texts: int = 0
    tokens: int = 0
    truncated: int = 0
    skipped: int = 0
    texts_this_run: int = 0
    tokens_this_run: int = 0
    units_embedded: int = 0
    units_done_before: int = 0
    seconds: float = 0.0

    def add(self, result: UnitResult, *, is_new: bool) -> None:
        """Count a unit, which this run has written if it *is_new*."""
        self.texts += result.texts
        self.tokens += result.tokens
        self.truncated += result.truncated
        self.skipped += result.skipped
        if is_new:
            self.texts_this_run += result.texts
            self.tokens_this_run += result.tokens
            self.units_embedded += 1
        else:
            self.units_done_before += 1

    def summary(self, skipped_files: str) -> str:
        """Describe the whole job in one line, and this run if there were others."""
        skipped = f"{self.skipped:,} rows skipped" + (f" (listed in {skipped_files})" if self.skipped else "")
        done = (
            f"Done: {self.texts:,} texts ({self.truncated:,} truncated), {self.tokens:,} tokens, {skipped}, "
            f"in {self.units_embedded + self.units_done_before:,} files."
        )
        if self.units_done_before:
            before = f"{self.units_done_before:,} files existed already"
            return f"{done} This run: {self.texts_this_run:,} texts in {self.seconds:,.1f} s; {before}."
        return f"{done} It took {self.seconds:,.1f} s."


class Progress:
    """Adds up the results of units, and reports a line every few seconds."""

    def __init__(
        self,
        units: Sequence[Unit],
        finished: Sequence[tuple[Unit, UnitResult]],
        *,
        report: Callable[[str], None],
        run: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start with the *finished* units; only units that *run* embeds count towards its rates."""
        self.totals = Totals()
        for _, result in finished:
            self.totals.add(result, is_new=False)
        self._total_size = max(1, sum(map(_size, units)))
        self._finished_size = sum(_size(unit) for unit, _ in finished)
        self._new_size = 0
        self._run = run
        self._report = report
        self._clock = clock
        self._started_s = self._reported_s = clock()

    def add(self, unit: Unit, result: UnitResult) -> None:
        """Count a finished unit."""
        now_s = self._clock()
        self.totals.seconds = round(now_s - self._started_s, 3)
        self._new_size += _size(unit)
        self.totals.add(result, is_new=result.run == self._run)
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
            f"{done / self._total_size:6.1%}  {totals.texts:,} texts  {totals.texts_this_run / seconds:,.0f} texts/s  "
            f"{totals.tokens_this_run / seconds:,.0f} tokens/s  {timedelta(seconds=round(left_s))} left"
        )


def _size(unit: Unit) -> int:
    """Rows or bytes; all units of a job use the same."""
    return unit.stop - unit.start
