"""Checks before the required models are loaded: settings without effect, open models, memory, and the cache folder."""

from collections.abc import Iterable, Sequence

import structlog

from assembly.access import is_loopback
from assembly.lane_plan import LanePlan
from assembly.library_variables import describe, unusable_variables
from assembly.result_cache import cache_bytes_of
from config import Settings, find_unknown_names
from engine.catalog import Model
from engine.hub import is_cached
from engine.memory_estimate import estimate_memory, memory_of_workers, tight_memory_fields, why_impossible
from engine.model_folders import why_unusable
from host.folder_permissions import why_not_writable
from host.memory import memory_limit

log = structlog.get_logger()


def log_settings_without_effect(settings: Settings) -> None:
    """Log settings without effect, such as a mistyped name, an unusable proxy or a missing folder. Blocks."""
    for found in find_unknown_names():
        log.warning("setting_unknown", name=found.name, place=found.place, meant=found.closest, advice=str(found))
    for name, reason in unusable_variables():
        log.warning("variable_unusable", name=name, advice=describe(name, reason))
    if settings.workers != 1:  # those of `python main.py`, also of several workers, have 1 here
        advice = "only `python main.py` starts workers; with another server, use its own option for them"
        log.warning("workers_ignored", workers=settings.workers, advice=advice)
    if not settings.models_dir.is_dir():
        log.info("models_dir_missing", folder=settings.models_dir.name)


def log_open_catalog(settings: Settings) -> None:
    """Recommend ALLOWED_MODELS if anyone on the network may have every model of the catalogue downloaded."""
    if (advice := why_list_models(settings)) is not None:
        log.warning("models_open", advice=advice)


def why_list_models(settings: Settings) -> str | None:
    """Return why ALLOWED_MODELS should be set; None: it is, or only callers with keys or of this machine may call."""
    if settings.allowed_models or settings.key_sources or is_loopback(settings.host):
        return None
    return (
        "anyone who reaches HOST may have any model of the catalogue downloaded and loaded; "
        "list those you offer in ALLOWED_MODELS"
    )


def log_unusable_folders(models: Iterable[Model]) -> None:
    """Log each model folder that cannot be loaded, judging by the beginning of its files. Blocks."""
    for model in models:
        if model.folder and (reason := why_unusable(model.folder)):
            log.warning("model_folder_unusable", model=model.name, folder=model.folder.path.name, reason=reason)


def why_not_here(settings: Settings, required: Sequence[Model], plan: LanePlan, *, workers: int = 1) -> str | None:
    """Return why *workers* processes cannot load the *required* models on this machine; None: they can. Blocks.

    Whatever may fail later is logged as a warning.
    """
    need_of_each = estimate_memory(required, plan.sessions_of, cache_bytes=cache_bytes_of(settings))
    need, limit = memory_of_workers([need_of_each] * workers), memory_limit()
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
