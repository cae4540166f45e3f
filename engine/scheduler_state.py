"""What the scheduler reports to `/metrics`."""

from dataclasses import dataclass, field

from engine.run_counters import RunCounters, RunCounts


@dataclass(slots=True)
class SchedulerState:
    """What waits and runs at this moment, and what was done since the start.

    Attributes:
        waiting_seconds: until the lanes have done all waiting work that is not bulk.
        running: micro-batches that run, or are queued on a lane.
        lanes: without the express lane.
        lanes_died: threads that died and were replaced.
        dropped_texts: texts that never ran, because their request failed or its caller left.
        runs: histograms of model runs.
        lanes_busy_s: seconds in which `lanes` ran models since the start, so it grows by `lanes` per second at most.
        busy_s: the same of each lane and of the express lane, by name; runs that go on are included.
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
    runs: RunCounts = field(default_factory=lambda: RunCounters().read())
    lanes_busy_s: float = 0.0
    busy_s: dict[str, float] = field(default_factory=dict)
