"""Limits the queued work: a request is admitted whole or rejected whole, before any of it is computed."""

from engine.errors import OverloadedError
from engine.job_queue import JobQueue

ADMITTED_SHARE = 0.9
"""Share of the limit that admission fills. The rest covers what the estimate leaves out, such as micro-batches that run
already and later requests that go first, so that no admitted request waits longer than the limit."""

MAX_SHARE_IN_FULL = 0.1
"""Up to this share of the admitted work, a job counts in full until its last text is taken; see `JobQueue`. A larger
job fills most of its micro-batches itself, so counting its finished part would reject others for nothing."""


class Admission:
    """The limit on queued work, in seconds until the lanes have done it."""

    def __init__(self, small: JobQueue, large: JobQueue, *, lanes: int, max_queue_s: float) -> None:
        self._small = small
        self._large = large
        self._lanes = lanes
        self._max_queue_s = max_queue_s
        self._admitted_s = max_queue_s * ADMITTED_SHARE

    @property
    def waiting_s(self) -> float:
        """Seconds until the lanes have done all waiting work, at the measured speed."""
        return max(0.0, self._small.waiting_s + self._large.waiting_s) / self._lanes

    def admit(self, lane_s: float, *, is_small: bool) -> float:
        """Return the seconds of one lane that a request counts with, or reject it.

        A request counts with at most half of the limit, so one huge request does not lock all others out. Small
        requests overtake large ones, so for them only the waiting small ones count.

        Args:
            lane_s: estimated seconds of one lane for the request.
            is_small: whether the request is small.

        Raises:
            OverloadedError: with this request, more work would wait than the limit allows.
        """
        counted_s = min(lane_s, self._admitted_s * self._lanes / 2)
        ahead_s = self._small.waiting_s / self._lanes if is_small else self.waiting_s
        if (error := self._overload(ahead_s, counted_s / self._lanes)) is not None:
            raise error
        return counted_s

    def counts_in_full(self, counted_s: float) -> bool:
        """Whether a job of this many counted seconds of one lane counts in full; see `JobQueue`."""
        return counted_s <= self._admitted_s * self._lanes * MAX_SHARE_IN_FULL

    def small_overload(self, tokens: int) -> OverloadedError | None:
        """Return the error that a small request of *tokens* of modelled cost would get now; None: it is admitted."""
        if not self._small:
            return None
        small_s = tokens * self._small.head.counted_s_per_token / self._lanes
        return self._overload(self._small.waiting_s / self._lanes, small_s)

    def _overload(self, ahead_s: float, request_s: float) -> OverloadedError | None:
        excess_s = ahead_s + request_s - self._admitted_s
        if excess_s <= 0:
            return None
        return OverloadedError(
            f"Queued work takes {ahead_s:.1f} s. With this request it could exceed the limit of "
            f"{self._max_queue_s:g} s, so no part of the request was computed.",
            retry_after_s=max(1.0, excess_s),
        )
