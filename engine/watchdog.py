"""Looks after the lanes: which of them is in one run for too long, and which one's thread is gone.

What is stuck is computed when it is asked for. For the log, and to help those who wait behind such a run, a timer of
the event loop looks about once a second, as long as a lane is at work.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from engine.jobs import Run
from engine.lane import Lane

LOOK_S = 1.0
"""Seconds between two looks at most."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class StuckRun:
    """A model run that has been going on for too long, and for how many seconds."""

    model: str
    seconds: float


class Watchdog:
    """Owns what was told of stuck runs: each is told once when it is found, and once when it has ended at last."""

    def __init__(
        self,
        lanes: Sequence[Lane],
        *,
        stuck_s: float,
        on_overdue: Callable[[Lane], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Watch nothing yet.

        Args:
            lanes: all there are.
            stuck_s: seconds from which on a run is stuck.
            on_overdue: is told, at each look, of each lane whose run should have ended long ago.
            clock: seconds, monotonic; the lanes' own.
        """
        self._lanes = lanes
        self._stuck_s = stuck_s
        self._on_overdue = on_overdue
        self._clock = clock
        self._told: set[Run] = set()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def stuck(self) -> list[StuckRun]:
        """What is stuck at this moment."""
        return [StuckRun(run.model.name, seconds) for _, run, seconds in self._stuck()]

    def watch(self) -> None:
        """Look again and again from now on, until no lane is at work."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(min(LOOK_S, self._stuck_s), self._look_again)

    def look(self) -> None:
        """Notice dead threads, overdue lanes and stuck runs."""
        now = self._clock()
        for lane in self._lanes:
            lane.look()
            if lane.is_overdue(now):
                self._on_overdue(lane)
        for lane, run, seconds in self._stuck():
            if run not in self._told:
                self._told.add(run)
                log.error("lane_stuck", lane=lane.name, seconds=round(seconds, 3), **_facts(run))

    def note_end(self, lane: Lane, run: Run, seconds: float) -> None:
        """Tell of the end of a run that was stuck."""
        if run in self._told:
            self._told.remove(run)
            log.warning("lane_freed", lane=lane.name, seconds=round(seconds, 3), **_facts(run))

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _stuck(self) -> list[tuple[Lane, Run, float]]:
        now = self._clock()
        begun = [(lane, *lane.begun) for lane in self._lanes if lane.begun]
        return [(lane, run, now - since) for lane, run, since in begun if now - since > self._stuck_s]

    def _look_again(self) -> None:
        self._timer = None
        try:
            self.look()
        finally:
            if any(lane.runs for lane in self._lanes):
                self.watch()


def _facts(run: Run) -> dict[str, object]:
    return {"model": run.model.name, "texts": len(run.parts), "longest": run.longest}
