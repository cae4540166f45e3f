"""Times of one request: which part of them the service took, as opposed to its client."""

from dataclasses import dataclass


@dataclass(slots=True)
class RequestTimes:
    """When a request was received and answered, in seconds on the monotonic clock.

    Attributes:
        started_s: its head was complete.
        client_s: how long the service waited for its body.
        answered_s: its answer began; None: it has not.
    """

    started_s: float
    client_s: float = 0.0
    answered_s: float | None = None

    def service_s(self, now_s: float) -> float:
        """Return how long the service took until the answer began, or until now.

        A client that sends its request slowly does not count, and neither does one that reads its answer slowly. For an
        answer that is written while it is computed, this is the time until its first part.
        """
        ended_s = now_s if self.answered_s is None else self.answered_s
        return ended_s - self.started_s - self.client_s
