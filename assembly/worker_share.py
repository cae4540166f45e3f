"""Divides what the settings state for the whole service among its worker processes."""

from config import Settings, SettingsError
from host.cores import usable_cores

CORES_PER_WORKER = 4
"""Cores per worker with WORKERS=auto.

Four lanes answer about 700 single short texts per second, which takes about 70 % of the time of a worker's main thread.
With more lanes per worker the main thread would limit them.
"""


def worker_count(settings: Settings, *, cores: int | None = None) -> int:
    """Return how many worker processes to start; 1: none, this process serves by itself.

    Raises:
        SettingsError: WORKERS is larger than the number of usable cores.
    """
    cores = cores or usable_cores()
    if settings.workers == "auto":
        return max(1, cores // CORES_PER_WORKER)
    if settings.workers > max(1, cores):
        message = (
            f"WORKERS={settings.workers} is not allowed: the service may use {cores} "
            f"{'core' if cores == 1 else 'cores'}; use at most one worker per core, or auto"
        )
        raise SettingsError(message)
    return settings.workers


def share_of(total: int, number: int, workers: int) -> int:
    """Return the share of worker *number* (from 1) in *total* things; the shares differ by at most one."""
    return total // workers + (number <= total % workers)


def settings_of_worker(settings: Settings, number: int, workers: int) -> Settings:
    """Return *settings* as worker *number* of *workers* uses them.

    Sums over all workers are what the settings state, but each worker gets at least one of a thing.
    """
    update: dict[str, object] = {"workers": 1}
    if isinstance(lanes := settings.thread_pool_workers, int):
        update["thread_pool_workers"] = max(1, share_of(lanes, number, workers))
    if (budget := settings.model_memory_budget) is not None:
        update["model_memory_budget"] = max(1, share_of(int(budget), number, workers))
    return settings.model_copy(update=update)
