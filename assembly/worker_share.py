"""Divides what the settings state for the whole service among its worker processes."""

import sys
from dataclasses import dataclass

from config import Settings, SettingsError
from host.core_places import restrict_process, share_of, usable_places
from host.cores import is_quota_tight, usable_cores

CORES_PER_WORKER = 4
"""Cores per worker with WORKERS=auto.

Four lanes answer about 700 single short texts per second, which takes about 70 % of the time of a worker's main thread.
With many more lanes per worker, the main thread would limit them.
"""


def worker_count(settings: Settings, *, cores: int | None = None, platform: str = sys.platform) -> int:
    """Return how many worker processes to start; 1: none, this process serves by itself.

    Raises:
        SettingsError: WORKERS is larger than the number of usable cores, or this is Windows.
    """
    cores = cores or usable_cores()
    if platform == "win32":
        if settings.workers in ("auto", 1):
            return 1
        message = (
            f"WORKERS={settings.workers} is not allowed: on Windows the service runs in one process; use WORKERS=1"
        )
        raise SettingsError(message)
    if settings.workers == "auto":
        return max(1, cores // CORES_PER_WORKER)
    if settings.workers > cores:
        message = (
            f"WORKERS={settings.workers} is not allowed: the service may use {cores} "
            f"{'core' if cores == 1 else 'cores'}; use at most one worker per core, or auto"
        )
        raise SettingsError(message)
    return settings.workers


@dataclass(frozen=True, slots=True)
class WorkerShare:
    """What one worker gets.

    Attributes:
        settings: those of the worker; sums over all workers are what the settings of the service state.
        cores: for which it plans its lanes.
        place: the cores to which it is restricted; None: all.
    """

    settings: Settings
    cores: int
    place: frozenset[int] | None


def shares(settings: Settings, workers: int) -> list[WorkerShare]:
    """Return the shares of all *workers*. Call it before the process is restricted to its own place."""
    from assembly.lane_plan import spare_cores  # noqa: PLC0415 - it imports the engine, which the supervisor does not

    cores = usable_cores()
    cores -= spare_cores(cores, has_quota=is_quota_tight())
    places = usable_places(workers)
    return [
        WorkerShare(
            settings=_settings_of(settings, number, workers),
            cores=max(1, share_of(cores, number, workers)),
            place=places[number - 1],
        )
        for number in range(1, workers + 1)
    ]


def take_share(settings: Settings, number: int, workers: int) -> WorkerShare:
    """Restrict this process, worker *number*, to its place, and return its share."""
    share = shares(settings, workers)[number - 1]
    restrict_process(share.place)
    return share


def _settings_of(settings: Settings, number: int, workers: int) -> Settings:
    """Return *settings* as worker *number* uses them. Each worker gets at least one of a thing."""
    update: dict[str, object] = {"workers": 1}
    if isinstance(lanes := settings.thread_pool_workers, int):
        update["thread_pool_workers"] = max(1, share_of(lanes, number, workers))
    if (budget := settings.model_memory_budget) is not None:
        update["model_memory_budget"] = max(1, share_of(int(budget), number, workers))
    if settings.result_cache_mb:
        update["result_cache_mb"] = max(1, share_of(settings.result_cache_mb, number, workers))
    return settings.model_copy(update=update)
