"""Counts what happened to models: loads, failures and evictions."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal, get_args

EvictionReason = Literal["ttl", "capacity", "memory", "reload", "shutdown"]
"""Why a model was evicted. `ttl`: it was not used for MODEL_CACHE_TTL; `capacity`, `memory`: another one needed its
place (MAX_CACHED_MODELS) or its memory (MODEL_MEMORY_BUDGET); `reload`: its files have changed; `shutdown`: the service
ends, so metrics do not contain it."""
EVICTION_REASONS: Final = tuple(reason for reason in get_args(EvictionReason) if reason != "shutdown")
"""The reasons while the service runs."""


@dataclass(slots=True)
class ModelLoads:
    """What happened to one model since the start, and what it takes now.

    Attributes:
        loads: that have succeeded.
        failures: loads that have failed; those that were refused in the pause after a failure do not count.
        seconds: what the loads took, without downloads.
        evictions: by reason.
        memory_bytes: what it takes, as measured or estimated; 0: it is not in memory.
    """

    loads: int = 0
    failures: int = 0
    seconds: float = 0.0
    evictions: Counter[str] = field(default_factory=Counter)
    memory_bytes: int = 0


class LoadCounters:
    """Owns the counters of all models that were loaded, or failed to load."""

    def __init__(self) -> None:
        self._models: defaultdict[str, ModelLoads] = defaultdict(ModelLoads)

    def count_load(self, name: str, seconds: float) -> None:
        """Count a load that has succeeded."""
        self._models[name].loads += 1
        self._models[name].seconds += seconds

    def count_failure(self, name: str) -> None:
        """Count a load that has failed."""
        self._models[name].failures += 1

    def count_eviction(self, name: str, reason: EvictionReason) -> None:
        """Count that a model was removed from memory."""
        self._models[name].evictions[reason] += 1

    def read(self, loaded_bytes: Mapping[str, int]) -> dict[str, ModelLoads]:
        """Return what was counted; *loaded_bytes*: the memory of the models that are in memory."""
        return {
            name: replace(found, evictions=found.evictions.copy(), memory_bytes=loaded_bytes.get(name, 0))
            for name, found in self._models.items()
        }
