"""When a worker that has ended is started again: the pause doubles with each failure in a row."""

import time
from collections.abc import Callable

FIRST_PAUSE_S = 0.5
"""Pause after the second failure in a row. The first one is followed by a restart at once: most crashes are single."""
MAX_PAUSE_S = 30.0
STEADY_S = 60.0
"""A worker that ran this long ends a row of failures."""


class RestartPolicy:
    """Decides on the pause before the next start of one slot's worker."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started_s = clock()
        self._failures = 0

    @property
    def failures(self) -> int:
        """Failures in a row."""
        return self._failures

    def started(self) -> None:
        """Note that a worker was started."""
        self._started_s = self._clock()

    def pause_after_failure(self) -> float:
        """Note that the worker has ended by itself, and return the seconds until it is started again."""
        if self._clock() - self._started_s >= STEADY_S:
            self._failures = 0
        self._failures += 1
        if self._failures == 1:
            return 0.0
        return min(MAX_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self._failures - 2, 10))
