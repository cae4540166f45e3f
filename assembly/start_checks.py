"""Checks before the required models are loaded: settings without effect, memory, and the cache folder."""

from collections.abc import Iterable, Sequence

import structlog

from assembly.lane_plan import LanePlan
from config import Settings, find_unknown_names
from engine.catalog import Model
from engine.hub import is_cached
from engine.memory_estimate import estimate_memory, tight_memory_fields, why_impossible
from engine.model_folders import why_unusable
from host.folder_permissions import why_not_writable
from host.memory import memory_limit

log = structlog.get_logger()


def log_settings_without_effect(settings: Settings) -> None:
    """Log settings without effect, such as a mistyped name or a folder that does not exist. Blocks."""
    for found in find_unknown_names():
        log.warning("setting_unknown", name=found.name, place=found.place, meant=found.closest, advice=str(found))
    if not settings.models_dir.is_dir():
        log.info("models_dir_missing", folder=settings.models_dir.name)


def log_unusable_folders(models: Iterable[Model]) -> None:
    """Log each model folder that cannot be loaded, as far as the beginning of its files shows. Blocks."""
    for model in models:
        if model.folder and (reason := why_unusable(model.folder)):
            log.warning("model_folder_unusable", model=model.name, folder=model.folder.path.name, reason=reason)


def why_not_here(settings: Settings, required: Sequence[Model], plan: LanePlan) -> str | None:
    """Return why the *required* models cannot be loaded on this machine; None: they can. Blocks.

    Whatever may fail later is logged as a warning.
    """
    need, limit = estimate_memory(required, plan.sessions_of), memory_limit()
    if (reason := why_impossible(need, limit)) is not None:
        return reason
    if need.is_tight(limit):
        log.warning("memory_tight", **tight_memory_fields(need, limit))
    if (trouble := why_not_writable(settings.hub_cache_dir)) is None:
        return None
    if missing := [model.name for model in required if not is_cached(model, settings.hub_cache_dir)]:
        return (
            f"The model {missing[0]!r} has to be downloaded, and HUB_CACHE_DIR cannot be written: {trouble}. "
            "Or fill the cache beforehand with `python main.py download`."
        )
    log.warning("hub_cache_not_writable", reason=trouble, advice="no other model can be downloaded")
    return None
