"""What the scheduler reports to `/metrics`."""

from dataclasses import dataclass


@dataclass(slots=True)
class SchedulerState:
    """What waits and runs at this moment, and what was done since the start.

    Attributes:
        waiting_seconds: until the lanes have done all waiting work that is not bulk.
        running: micro-batches that run, or are queued on a lane.
        lanes: without the express lane.
        lanes_died: threads that died and were replaced.
        dropped_texts: texts that never ran, because their request failed or its caller left.
    """

    waiting_requests: int = 0
    waiting_texts: int = 0
    waiting_seconds: float = 0.0
    running: int = 0
    lanes: int = 0
    lanes_stuck: int = 0
    lanes_died: int = 0
    micro_batches: int = 0
    texts: int = 0
    padded_tokens: int = 0
    dropped_texts: int = 0
