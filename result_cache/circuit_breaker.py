"""Stops calls to a service that fails, and finds out whether it works again by one call at a time."""

import time
from collections.abc import Callable
from typing import Literal

BreakerState = Literal["closed", "open", "half-open"]


class CircuitBreaker:
    """Closed while calls succeed. Opens at the first failure; after a pause, one call may try again.

    Each failure doubles the next pause. A successful trial closes the breaker, but only a success after it shortens the
    pause again: a service that answers trials and nothing else is asked less and less often.
    """

    def __init__(
        self, *, first_pause_s: float, max_pause_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._first_pause_s = first_pause_s
        self._max_pause_s = max_pause_s
        self._clock = clock
        self._pause_s = first_pause_s
        self._open_until = 0.0
        self.state: BreakerState = "closed"

    @property
    def is_closed(self) -> bool:
        return self.state == "closed"

    @property
    def may_allow(self) -> bool:
        """Whether `allows` would return True now."""
        return self.is_closed or (self.state == "open" and self._clock() >= self._open_until)

    def allows(self) -> bool:
        """Return whether a call may begin. While it is not closed, report how each call ends."""
        if self.is_closed:
            return True
        if not self.may_allow:
            return False
        self.state = "half-open"
        return True

    def succeed(self) -> None:
        """Report a call that succeeded. Calls that began before the breaker opened do not close it."""
        if self.state == "half-open":
            self.state = "closed"
        elif self.is_closed:
            self._pause_s = self._first_pause_s

    def fail(self) -> bool:
        """Report a call that failed; return whether that opens a closed breaker."""
        if self.state == "open":
            return False
        was_closed = self.is_closed
        self.state = "open"
        self._open_until = self._clock() + self._pause_s
        self._pause_s = min(self._pause_s * 2, self._max_pause_s)
        return was_closed
