"""Plans lanes and the copies of sessions: in one place, so that the service and `check` agree."""

from dataclasses import dataclass

from config import Settings
from engine.catalog import Model
from host.cores import is_quota_tight, usable_cores

MIN_CORES_WITH_A_SPARE = 3
"""From this CPU quota on, THREAD_POOL_WORKERS=auto leaves one core of it to the threads beside the lanes.

A quota is time. Lanes that use all of it make the kernel stop every thread for part of each 100 ms: with one lane,
the 99th percentile of short texts is 65 ms at a quota of one core, and 18 ms at two (docs/production/kubernetes.md).
Below three cores, a lane is worth more than that. Without a quota, the kernel stops no thread.
"""
MAX_LONE_TEXT_THREADS = 8
"""Most threads of a run of a lone text.

An estimate: only two threads were measured. What more threads cannot shorten is reading the weights, because all
cores share the memory's bandwidth: for the bundled model, 43 MB at 10 to 40 GB/s, 1 to 4 of the 8 ms of one thread.
Each thread also lengthens the barrier after each operator. Eight threads leave 1 ms of 8 to win.
"""


@dataclass(frozen=True, slots=True)
class LanePlan:
    """The number of lanes, and the models that get a second session for lone texts.

    Attributes:
        cores: cores that the service may use.
        lanes: inference threads, at most one per core.
        spare: cores of a CPU quota that are left to the threads beside the lanes: HTTP, JSON and tokenising.
        lone_text_bytes: models up to this size get the second session, and all with an optimised copy; 0: none.
    """

    cores: int
    lanes: int
    lone_text_bytes: int
    spare: int = 0

    @property
    def unused_cores(self) -> int:
        """Cores on which neither a lane nor the threads beside the lanes run."""
        return max(0, self.cores - self.spare - self.lanes)

    @property
    def lone_text_threads(self) -> int:
        """Threads of a run of a lone text."""
        return min(self.cores, MAX_LONE_TEXT_THREADS)

    def sessions_of(self, model: Model) -> int:
        """Return the copies of *model* in memory: one for the lanes, and one for lone texts if it is small enough."""
        return 2 if self.lanes > 1 and model.memory_bytes <= self.lone_text_bytes else 1

    def has_lone_text_session(self, model: Model, *, is_mapped: bool) -> bool:
        """Whether *model* gets a session for lone texts.

        One of any size does if it *is_mapped*, run by its optimised copy: both sessions then share the weights.
        """
        return self.lanes > 1 and self.lone_text_bytes > 0 and (is_mapped or self.sessions_of(model) > 1)

    def advice(self) -> str | None:
        """Return how to use the cores that stay unused, in words for the operator; None: all are used."""
        if not (unused := self.unused_cores):
            return None
        cores = "1 usable core stays" if unused == 1 else f"{unused} usable cores stay"
        return f"{cores} unused; set THREAD_POOL_WORKERS=auto"


def plan_lanes(settings: Settings, *, cores: int | None = None) -> LanePlan:
    """Plan for the cores that this process may use, or for *cores* if it must share them."""
    has_quota = cores is None and is_quota_tight()
    cores = cores or usable_cores()
    spare = spare_cores(cores, has_quota=has_quota)
    workers = settings.thread_pool_workers
    lanes = cores - spare if workers == "auto" else min(workers, cores)
    return LanePlan(cores, lanes, int(settings.lone_text_memory), spare)


def spare_cores(cores: int, *, has_quota: bool) -> int:
    """Return how many of *cores* are left to the threads beside the lanes."""
    return 1 if has_quota and cores >= MIN_CORES_WITH_A_SPARE else 0
