"""Watches the lanes: finds micro-batches that run too long, and threads that have died.

`Watchdog.stuck` is computed on request. While any lane works, a timer on the event loop also checks all lanes about
once a second. It logs what it finds, and has micro-batches moved that wait behind an overdue one.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from engine.job_queue import MicroBatch
from engine.lane import Lane

CHECK_INTERVAL_S = 1.0
"""Seconds between two checks. Less when a run counts as stuck earlier than that. A check takes microseconds, and a run
is overdue only after a second."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class StuckRun:
    """A model run that takes too long: the model's name, and the seconds since the run started."""

    model: str
    seconds: float


class Watchdog:
    """Owns the list of reported stuck runs, so that each is logged once when it is found and once when it ends."""

    def __init__(
        self,
        lanes: Sequence[Lane],
        *,
        stuck_s: float,
        on_overdue: Callable[[Lane], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare a watchdog; `watch` starts its timer.

        Args:
            lanes: all lanes.
            stuck_s: seconds after which a run counts as stuck.
            on_overdue: called at each check, for each lane that is overdue.
            clock: returns seconds, monotonic; the same as the lanes'.
        """
        self._lanes = lanes
        self._stuck_s = stuck_s
        self._on_overdue = on_overdue
        self._clock = clock
        self._reported: set[MicroBatch] = set()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def stuck(self) -> list[StuckRun]:
        """The runs that are stuck at this moment."""
        return [StuckRun(batch.model.name, seconds) for _, batch, seconds in self._stuck()]

    def watch(self) -> None:
        """Check the lanes regularly from now on, until none of them works."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(min(CHECK_INTERVAL_S, self._stuck_s), self._on_timer)

    def check(self) -> None:
        """Find and handle dead threads, overdue lanes and stuck runs."""
        now = self._clock()
        for lane in self._lanes:
            lane.check_thread()
            if lane.is_overdue(now):
                self._on_overdue(lane)
        for lane, batch, seconds in self._stuck():
            if batch not in self._reported:
                self._reported.add(batch)
                log.error("lane_stuck", lane=lane.name, seconds=round(seconds, 3), **_facts(batch))

    def record_end(self, lane: Lane, batch: MicroBatch, seconds: float) -> None:
        """Log that a stuck run has ended, after *seconds*; other ends are not logged."""
        if batch in self._reported:
            self._reported.remove(batch)
            log.warning("lane_freed", lane=lane.name, seconds=round(seconds, 3), **_facts(batch))

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _stuck(self) -> list[tuple[Lane, MicroBatch, float]]:
        now = self._clock()
        # Each lane is read once: its thread may end the run at any moment.
        running = [(lane, *run) for lane in self._lanes if (run := lane.running)]
        return [(lane, batch, now - since) for lane, batch, since in running if now - since > self._stuck_s]

    def _on_timer(self) -> None:
        self._timer = None
        try:
            self.check()
        finally:
            if any(lane.batches for lane in self._lanes):
                self.watch()


def _facts(batch: MicroBatch) -> dict[str, object]:
    return {"model": batch.model.name, "texts": len(batch.parts), "longest": batch.longest}
