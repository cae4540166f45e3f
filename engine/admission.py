"""How much work may wait: a request is admitted whole or refused whole, before any of it is done."""

from engine.errors import OverloadedError
from engine.jobs import WaitingJobs

SHARE_COUNTED_WHOLE = 0.1
"""Of what may wait: a larger request fills most of its runs itself, and counts for what is left of it."""

SHARE_ADMITTED = 0.9
"""Of what may wait: the rest is for what the estimate leaves out, such as runs that have begun and later requests that
are served before, so that nobody who is admitted waits longer than was promised."""


class Admission:
    """The bound on what waits, in seconds until the lanes have done it."""

    def __init__(self, small: WaitingJobs, big: WaitingJobs, *, lanes: int, max_queue_s: float) -> None:
        self._small = small
        self._big = big
        self._lanes = lanes
        self._max_queue_s = max_queue_s
        self._admitted_s = max_queue_s * SHARE_ADMITTED

    @property
    def waiting_s(self) -> float:
        """Seconds until the lanes have done all that waits, at the measured pace."""
        return max(0.0, self._small.waiting_s + self._big.waiting_s) / self._lanes

    def claim(self, lane_s: float, *, is_small: bool) -> float:
        """The seconds of one lane that a request of *lane_s* counts as.

        One huge request must not keep all others out: it counts as half of what may wait at most. And small requests
        overtake big ones, so these are not in their way.

        Raises:
            OverloadedError: it would wait too long.
        """
        counted_s = min(lane_s, self._admitted_s * self._lanes / 2)
        ahead_s = self._small.waiting_s / self._lanes if is_small else self.waiting_s
        if (refusal := self._overload(ahead_s, counted_s / self._lanes)) is not None:
            raise refusal
        return counted_s

    def counts_whole(self, counted_s: float) -> bool:
        """Whether a request of so many seconds of one lane is counted as a whole, see `WaitingJobs`."""
        return counted_s <= self._admitted_s * self._lanes * SHARE_COUNTED_WHOLE

    def refusal(self, small_tokens: int) -> OverloadedError | None:
        """Why even a small request, one that costs *small_tokens*, would be refused now; None: it would not."""
        if not self._small:
            return None
        small_s = small_tokens * self._small.head.token_s / self._lanes
        return self._overload(self._small.waiting_s / self._lanes, small_s)

    def _overload(self, ahead_s: float, wanted_s: float) -> OverloadedError | None:
        if ahead_s + wanted_s <= self._admitted_s:
            return None
        return OverloadedError(
            f"Work for {ahead_s:.1f} s is waiting; with this request it might be more than the "
            f"{self._max_queue_s:g} s that may wait. Nothing of it was done.",
            retry_after_s=max(1.0, ahead_s + wanted_s - self._admitted_s),
        )
