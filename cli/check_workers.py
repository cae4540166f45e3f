"""The findings of `check` on worker processes: how many, what each gets, and how much memory they take together."""

from collections.abc import Sequence
from dataclasses import dataclass

from assembly.lane_plan import LanePlan, plan_lanes
from assembly.result_cache import cache_bytes_of
from assembly.worker_share import WorkerShare, shares, worker_count
from cli.console import megabytes
from cli.findings import Finding
from config import Settings
from engine.catalog import Model
from engine.memory_estimate import (
    SHARED_PROCESS_BYTES,
    SUPERVISOR_BYTES,
    MemoryNeed,
    estimate_memory,
    memory_of_workers,
)
from host.core_places import format_cores


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes that would serve: one with all cores, or several workers.

    Attributes:
        shares: of the workers; empty: one process serves.
        plans: the lanes of each process.
        cache_bytes: memory for cached results of each process.
    """

    shares: Sequence[WorkerShare]
    plans: Sequence[LanePlan]
    cache_bytes: Sequence[int]

    @property
    def workers(self) -> int:
        return len(self.plans)

    @property
    def settings_of_each(self) -> Settings | None:
        """The settings of a worker; None: one process serves with the settings as they are."""
        return self.shares[0].settings if self.shares else None

    @property
    def lanes(self) -> int:
        return sum(plan.lanes for plan in self.plans)

    def finding(self, settings: Settings) -> Finding:
        """Describe the workers."""
        lanes = [plan.lanes for plan in self.plans]
        places = [None if share.place is None else format_cores(share.place) for share in self.shares]
        facts = {"workers": self.workers, "lanes_of_each": lanes, "cores_of_each": places}
        detail = f"{self.workers} (WORKERS={settings.workers})"
        if self.workers > 1:
            restricted = [f"{number} on cores {place}" for number, place in enumerate(places, 1) if place is not None]
            detail += f", with {_range(lanes)} each; " + (", ".join(restricted) or "no worker is restricted to cores")
        return Finding("machine", "ok", "workers", detail, facts)

    def memory(self, required: Sequence[Model]) -> MemoryNeed:
        """Estimate the memory of all processes with the *required* models."""
        return memory_of_workers(self._needs(required))

    def describe_memory(self, required: Sequence[Model]) -> str:
        """Return the parts of `memory` in words; empty: there is one process."""
        if self.workers == 1:
            return ""
        worker = max(need.bytes for need in self._needs(required)) - SHARED_PROCESS_BYTES
        parts = (
            f"{megabytes(SUPERVISOR_BYTES)} for the supervisor, {self.workers} x {megabytes(worker)} for the workers"
        )
        return f" ({parts}, {megabytes(SHARED_PROCESS_BYTES)} that they share)"

    def _needs(self, required: Sequence[Model]) -> list[MemoryNeed]:
        return [
            estimate_memory(required, plan.sessions_of, cache_bytes=cache_bytes)
            for plan, cache_bytes in zip(self.plans, self.cache_bytes, strict=True)
        ]


def plan_processes(settings: Settings) -> Processes:
    """Plan as the service would.

    Raises:
        SettingsError: WORKERS is not possible here.
    """
    if (workers := worker_count(settings)) == 1:
        return Processes((), (plan_lanes(settings),), (cache_bytes_of(settings),))
    found = shares(settings, workers)
    return Processes(
        found,
        [plan_lanes(share.settings, cores=share.cores) for share in found],
        [cache_bytes_of(share.settings) for share in found],
    )


def _range(lanes: Sequence[int]) -> str:
    low, high = min(lanes), max(lanes)
    return f"{low} {'lane' if low == 1 else 'lanes'}" if low == high else f"{low} to {high} lanes"
