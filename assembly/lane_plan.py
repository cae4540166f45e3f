"""Plans lanes and the copies of sessions: in one place, so that the service and `check` agree."""

from dataclasses import dataclass

from config import Settings
from engine.catalog import Model
from host.cores import usable_cores


@dataclass(frozen=True, slots=True)
class LanePlan:
    """The number of lanes, and the models that get a second session for lone texts.

    Attributes:
        cores: cores that the service may use.
        lanes: inference threads, at most one per core.
        lone_text_bytes: models up to this size in memory get the second session; 0: no model does.
    """

    cores: int
    lanes: int
    lone_text_bytes: int

    def sessions_of(self, model: Model) -> int:
        """Return the copies of *model* in memory: one for the lanes, and one for lone texts if it is small enough."""
        return 2 if self.lanes > 1 and model.memory_bytes <= self.lone_text_bytes else 1


def plan_lanes(settings: Settings, *, cores: int | None = None) -> LanePlan:
    """Plan for the cores that this process may use, or for *cores* if it must share them."""
    cores = cores or usable_cores()
    return LanePlan(cores, min(settings.thread_pool_workers, cores), int(settings.lone_text_memory))
