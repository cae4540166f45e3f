"""What answers report of a model in memory, be it this process's or that of another worker."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol, Self, runtime_checkable

from engine.fingerprint import ModelFingerprint
from engine.model_places import LoadedModel
from engine.optimised_copy import CopyState
from engine.self_check import SelfCheckResult


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedFacts:
    """A model in memory.

    Attributes:
        memory_bytes: what it takes, in all processes that have it.
        is_measured: *memory_bytes* was measured in each of them; else it is an estimate.
        load_s: seconds that loading and warming took.
        loaded_at: when it was loaded.
        last_used: when it was last leased or released.
        expires_at: when it is evicted unless it is used before; None: never.
        max_tokens: its longest input.
        copy_state: whether it runs by its optimised copy.
        workers: how many processes have it in memory. The other facts are those of the one that used it last, but for
            `loaded_at`, the earliest.
    """

    memory_bytes: int
    is_measured: bool
    load_s: float
    loaded_at: datetime
    last_used: datetime
    expires_at: datetime | None
    max_tokens: int | None
    fingerprint: ModelFingerprint | None
    self_check: SelfCheckResult | None
    copy_state: CopyState
    workers: int = 1

    @classmethod
    def of(cls, loaded: LoadedModel, expires_at: datetime | None) -> Self:
        """Return the facts of a model in this process."""
        encoder = loaded.encoder
        return cls(
            memory_bytes=loaded.memory_bytes,
            is_measured=loaded.is_measured,
            load_s=loaded.load_s,
            loaded_at=loaded.loaded_at,
            last_used=loaded.last_used,
            expires_at=expires_at,
            max_tokens=encoder.max_tokens,
            fingerprint=encoder.fingerprint,
            self_check=encoder.self_check,
            copy_state=encoder.copy_state,
        )


@runtime_checkable
class ModelsInMemory(Protocol):
    """Knows which models are in memory, in any process of the service."""

    async def read(self) -> Mapping[str, LoadedFacts]:
        """Return them by name, least recently used first."""
        ...


def merge_facts(of_workers: Iterable[Mapping[str, LoadedFacts]]) -> dict[str, LoadedFacts]:
    """Return the models that are in memory of any worker, least recently used first."""
    by_name: dict[str, list[LoadedFacts]] = {}
    for models in of_workers:
        for name, facts in models.items():
            by_name.setdefault(name, []).append(facts)
    merged = {}
    for name, found in sorted(by_name.items(), key=lambda item: max(facts.last_used for facts in item[1])):
        latest = max(found, key=lambda facts: facts.last_used)
        merged[name] = replace(
            latest,
            loaded_at=min(facts.loaded_at for facts in found),
            memory_bytes=sum(facts.memory_bytes for facts in found),
            is_measured=all(facts.is_measured for facts in found),
            workers=len(found),
        )
    return merged
