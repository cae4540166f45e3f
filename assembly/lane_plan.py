"""The one place that plans lanes and session copies: the service and `check` must agree on both."""

from dataclasses import dataclass

from config import Settings
from engine.catalog import Model
from host.cores import usable_cores


@dataclass(frozen=True, slots=True)
class LanePlan:
    """How many lanes run models, and which models get a second session for lone texts.

    Attributes:
        cores: usable cores.
        lanes: inference threads, never more than *cores*.
        lone_text_bytes: a model of up to this size gets the second session; 0: none does.
    """

    cores: int
    lanes: int
    lone_text_bytes: int

    def sessions_of(self, model: Model) -> int:
        """Copies of *model* in memory: one for the lanes, and one for lone texts if the model is small enough."""
        return 2 if self.lanes > 1 and model.memory_bytes <= self.lone_text_bytes else 1


def plan_lanes(settings: Settings, *, cores: int | None = None) -> LanePlan:
    """Plan for this machine, or for *cores* if the process owns only a share of it."""
    cores = cores or usable_cores()
    return LanePlan(cores, min(settings.thread_pool_workers, cores), int(settings.lone_text_memory))
