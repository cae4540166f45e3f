"""Places of models in memory: which are taken, which are kept for required models, and which one is evicted next."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from engine.encoder import Encoder
from engine.errors import ModelUnavailableError
from engine.load_counters import EvictionReason

RECENT_S = 600.0
"""Seconds for which a caller counts as a user of a model after its last request."""
MAX_RECENT_CALLERS = 64
"""Callers that are remembered per model, the latest ones. More would not change what is evicted."""
VOTE_DIGITS = 6
"""Digits to which votes are compared: sums of thirds are not exact."""


@dataclass(slots=True)
class LoadedModel:
    """A model in memory.

    Attributes:
        is_measured: *memory_bytes* was measured; else it is an estimate.
        load_s: seconds that loading and warming took.
        loaded_at: time of day at which it was loaded.
        loaded_s: the same moment on the manager's clock.
        used_s: when it was last leased or released, on the manager's clock.
        callers: when each recent caller last used it, the latest one last.
    """

    encoder: Encoder
    memory_bytes: int
    load_s: float
    loaded_at: datetime
    loaded_s: float
    used_s: float
    callers: OrderedDict[str, float] = field(default_factory=OrderedDict)
    is_measured: bool = False

    @property
    def last_used(self) -> datetime:
        return self.loaded_at + timedelta(seconds=self.used_s - self.loaded_s)

    def mark_used(self, caller: str, now_s: float) -> None:
        self.used_s = self.callers[caller] = now_s
        self.callers.move_to_end(caller)
        if len(self.callers) > MAX_RECENT_CALLERS:
            self.callers.popitem(last=False)


class ModelPlaces:
    """The places of models in memory. Required models have theirs from the start, loaded or not.

    Attributes:
        loaded: the models in memory by name, least recently used first.
        required: the memory of each required model, by name.
    """

    def __init__(self, *, capacity: int, budget_bytes: int | None, required: Mapping[str, int]) -> None:
        """Provide *capacity* places, and *budget_bytes* of memory (None: no limit) for all models together."""
        self.loaded: dict[str, LoadedModel] = {}
        self.required = dict(required)
        self._capacity = capacity
        self._budget_bytes = budget_bytes
        self._reserved: dict[str, int] = {}  # memory of the models that are about to load

    def why_never(self, name: str, needed_bytes: int) -> str | None:
        """Return why a model can have no place, whatever is evicted; None: it can."""
        count, budget = len(self.required), self._budget_bytes
        required_bytes = sum(self.required.values())
        if name in self.required:
            if budget is not None and required_bytes > budget:
                return (
                    f"{self._needed(required_bytes)} for all of REQUIRED_MODELS, more than MODEL_MEMORY_BUDGET allows"
                )
            return None
        if count >= self._capacity:
            plural = "s" if count > 1 else ""
            return (
                f"MAX_CACHED_MODELS={self._capacity} leaves no place beside the {count} model{plural} of "
                "REQUIRED_MODELS, which stay in memory"
            )
        if budget is not None and required_bytes + needed_bytes > budget:
            if needed_bytes > budget:
                return f"{self._needed(needed_bytes)}, more than MODEL_MEMORY_BUDGET allows for all models"
            return f"{self._needed(needed_bytes)}, more than MODEL_MEMORY_BUDGET leaves beside REQUIRED_MODELS"
        return None

    def check(self, name: str, needed_bytes: int) -> None:
        """Refuse a model that could never have a place.

        Raises:
            ModelUnavailableError: the reason is that of `why_never`.
        """
        if (cause := self.why_never(name, needed_bytes)) is not None:
            raise ModelUnavailableError(name, cause)

    @property
    def loaded_bytes(self) -> dict[str, int]:
        """What each model in memory takes, by name."""
        return {name: model.memory_bytes for name, model in self.loaded.items()}

    def reserve(self, name: str, needed_bytes: int) -> EvictionReason | None:
        """Reserve a place for a model that is about to load; return for what another one must go, None: for nothing."""
        if name not in self.required:
            others = self.loaded_bytes | self._reserved
            taken = [size for other, size in others.items() if other not in self.required]
            budget = self._budget_bytes
            has_memory = budget is None or sum([*taken, *self.required.values(), needed_bytes]) <= budget
            if len(taken) + len(self.required) >= self._capacity:
                return "capacity"
            if not has_memory:
                return "memory"
        self._reserved[name] = needed_bytes
        return None

    def release(self, name: str) -> int:
        """Give up a reservation, if there is one, and return its memory."""
        return self._reserved.pop(name, 0)

    def adopt_memory(self, measured: Mapping[str, int]) -> None:
        """Count what was measured from now on, for the models that are still in memory."""
        for name, memory_bytes in measured.items():
            if (model := self.loaded.get(name)) is not None:
                model.memory_bytes, model.is_measured = memory_bytes, True
            if name in self.required:
                self.required[name] = memory_bytes

    def mark_used(self, name: str, caller: str, now_s: float) -> None:
        """Make this model the most recently used one, if it is in memory."""
        if (model := self.loaded.get(name)) is not None:
            model.mark_used(caller, now_s)
            self.loaded[name] = self.loaded.pop(name)

    def evictable(self, now_s: float, is_leased: Callable[[str], bool] = lambda _: False) -> list[str]:
        """Return the models that may be evicted, in the order in which they go: fewest votes first, then by last use.

        Each recent caller has one vote, divided among the models that it uses. So a model that many callers use stays
        longer than one that a single caller uses, and a caller of many models makes its own ones go.
        """
        callers = {
            name: [caller for caller, used_s in model.callers.items() if now_s - used_s <= RECENT_S]
            for name, model in self.loaded.items()
            if name not in self.required
        }
        used_by = Counter(caller for names in callers.values() for caller in names)
        votes = {
            name: round(sum(1 / used_by[caller] for caller in names), VOTE_DIGITS) for name, names in callers.items()
        }
        return sorted((name for name in votes if not is_leased(name)), key=lambda name: votes[name])

    @staticmethod
    def _needed(size_bytes: int) -> str:
        return f"it needs {size_bytes / 1e6:.0f} MB"
