"""Lets a free lane wait a moment for the next texts of the callers that it has just answered.

Most clients send their next text as soon as they have an answer. A lane that starts at once runs only what waits
already, and misses those texts by a millisecond: its runs are small, and each one reads all weights. So while another
lane works, a free lane waits until as many texts have arrived as it has answered. Lanes do so
as long as most waits are worth it: texts that arrive at random, not as the next ones of such callers, start at once.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from engine.lane import Lane

MAX_WAIT_S = 0.010
"""A lane waits at most this long, and no longer than its last run took. That is enough for about 10 requests of the
event loop, which meanwhile uses the lane's core if no other is free."""
MIN_SUCCESS = 0.75
"""Lanes wait while at least this share of the latest waits has ended because the texts arrived. Clients that send one
text after the other stay above it. Texts that arrive at random stay below, unless there are very many."""
SMOOTHING = 0.85
"""Weight of the previous share in the exponential moving average: the latest 7 waits make up about two thirds."""
TRIAL_INTERVAL = 8
"""If too few waits are worth it, every 8th lane waits nevertheless, if other texts wait as well, to notice a change."""


@dataclass(slots=True)
class _Wait:
    texts: int
    timer: asyncio.TimerHandle


class Gathering:
    """Owns the lanes that wait, each with the number of texts that have yet to arrive."""

    def __init__(self, on_end: Callable[[], None]) -> None:
        """Start with no lane that waits. *on_end* is called when the time of one is over."""
        self._on_end = on_end
        self._waits: dict[Lane, _Wait] = {}
        self._success = 0.0
        self._runs = 0

    def __contains__(self, lane: Lane) -> bool:
        return lane in self._waits

    def begin(self, lane: Lane, texts: int, seconds: float, *, is_crowded: bool) -> None:
        """Let *lane* wait, if that may be worth it.

        Args:
            lane: it has no other micro-batch.
            texts: of the micro-batch that it has just run; they are answered next.
            seconds: that the run took.
            is_crowded: other texts wait already.
        """
        self._runs += 1
        is_trial = is_crowded and self._runs % TRIAL_INTERVAL == 0
        if is_trial or self._success >= MIN_SUCCESS:
            timer = asyncio.get_running_loop().call_later(min(MAX_WAIT_S, seconds), self._time_out, lane)
            self._waits[lane] = _Wait(texts, timer)

    def count(self, texts: int) -> None:
        """Count *texts* that have arrived. Lanes for which they are enough no longer wait."""
        for lane, wait in tuple(self._waits.items()):
            wait.texts -= texts
            if wait.texts <= 0:
                self.end(lane)
                self._record(1.0)

    def end(self, lane: Lane) -> None:
        """Let *lane* no longer wait, if it does."""
        if (wait := self._waits.pop(lane, None)) is not None:
            wait.timer.cancel()

    def _time_out(self, lane: Lane) -> None:
        self.end(lane)
        self._record(0.0)
        self._on_end()

    def _record(self, success: float) -> None:
        self._success = SMOOTHING * self._success + (1 - SMOOTHING) * success
