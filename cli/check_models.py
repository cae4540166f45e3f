"""The part of `check` about models: required ones, allowed ones, and the folders in MODELS_DIR."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from assembly.lane_plan import LanePlan
from assembly.optimised import copy_folder
from cli.console import megabytes
from cli.findings import Finding, Level
from cli.model_process import LoadReport, ModelProcessError, WorkerConfig, start_worker
from cli.progress import fetch_with_progress
from config import Settings
from engine.catalog import Catalog, Model
from engine.errors import ModelUnavailableError
from engine.hub import is_cached
from engine.hub_space import HubSpace
from engine.optimised_copy import DAMAGED, CopyState
from engine.self_check import SelfCheckResult
from host.memory import available_bytes


def known_models(catalog: Catalog, names: Sequence[str]) -> list[Model]:
    """Return the models with these names, each once. `_check_settings` reports the unknown names."""
    found = [model for name in names if (model := catalog.find(name))]
    return list({model.name: model for model in found}.values())


def check_required_model(model: Model, settings: Settings, plan: LanePlan, *, is_missing: bool) -> Iterator[Finding]:
    """Say where a required model comes from, and load it."""
    facts = {"model": model.name}
    source = model.source + ("" if model.folder else ", not in the cache" if is_missing else ", in the cache")
    yield Finding("models", "ok", "required", f"{model.name} ({source})", {**facts, "is_cached": not is_missing})
    needed, budget = model.memory_bytes * plan.sessions_of(model), settings.model_memory_budget
    if budget is not None and needed > budget:
        detail = f"it needs about {megabytes(needed)}, more than MODEL_MEMORY_BUDGET allows for all models"
        yield Finding("models", "FAIL", "  memory", detail, facts)
    report = _try_to_load(model, settings)
    if isinstance(report, str):
        yield Finding("models", "FAIL", "  loaded", f"no: {report}", facts)
    else:
        yield from _describe_loaded(report, facts)


def _try_to_load(model: Model, settings: Settings) -> LoadReport | str:
    """Load *model* in a process of its own, or return why that is impossible."""
    copies = copy_folder(settings)
    config = WorkerConfig(model, settings.hub_cache_dir, None, settings.micro_batch_tokens, copies)
    try:
        space = HubSpace(settings.hub_cache_dir, max_bytes=settings.hub_cache_max_size)
        fetch_with_progress(model, settings.hub_cache_dir, space=space)
        with start_worker(config) as worker:
            return worker.load()
    except ModelUnavailableError as error:
        return error.cause
    except ModelProcessError as error:
        return error.message


def _describe_loaded(report: LoadReport, facts: Mapping[str, Any]) -> Iterator[Finding]:
    memory = "memory not measured" if report.memory_bytes is None else f"{megabytes(report.memory_bytes)} in memory"
    costs = {"seconds": round(report.seconds, 3), "memory_bytes": report.memory_bytes}
    yield Finding("models", "ok", "  loaded", f"in {report.seconds:.1f} s, {memory}", {**facts, **costs})
    yield _describe_copy(report.copy, facts)
    yield _describe_self_check(report.check, facts)
    cosine = report.check.canary_cosine
    canary = "no reference vectors" if cosine is None else f"matches its reference vectors (cosine {cosine:.6f})"
    yield Finding("models", "ok", "  canary", canary, {**facts, "cosine": cosine})
    fingerprint = report.fingerprint
    identity = {
        "fingerprint": fingerprint.digest,
        "revision": fingerprint.revision,
        "runtime": fingerprint.runtime.id,
    }
    yield Finding("models", "ok", "  fingerprint", fingerprint.digest, {**facts, **identity})
    for note in report.notes:
        yield Finding("models", "warn", "  note", note, {**facts, "note": note})


def _describe_copy(copy: CopyState, facts: Mapping[str, Any]) -> Finding:
    detail = f"used, {megabytes(copy.size_bytes)}" if copy.is_used else f"not used: {copy.reason}"
    facts = {**facts, "is_used": copy.is_used, "size_bytes": copy.size_bytes, "reason": copy.reason or None}
    return Finding("models", "warn" if copy.reason == DAMAGED else "ok", "  copy", detail, facts)


def _describe_self_check(check: SelfCheckResult, facts: Mapping[str, Any]) -> Finding:
    facts = {**facts, "batch_invariant": check.is_batch_invariant, "batching": check.batching}
    if check.is_batch_invariant:
        return Finding("models", "ok", "  self-check", "a text has the same vector in any batch", facts)
    way = "only texts of equal length share a run" if check.batching == "equal" else "each text is run alone"
    detail = f"vectors depend on the other texts of a run, so {way} ({check.batching_cost:.1f} times the time)"
    return Finding("models", "warn", "  self-check", detail, facts)


def check_other_models(settings: Settings, catalog: Catalog, required: Sequence[Model]) -> Iterator[Finding]:
    """Report allowed models that are not in the cache, and folders that contain no usable model or replace one."""
    for model in known_models(catalog, settings.allowed_models):
        if model not in required and not is_cached(model, settings.hub_cache_dir):
            detail = f"{model.name} is not in the cache: the first request for it downloads it"
            yield Finding("models", "warn", "allowed", detail, {"model": model.name})
    if not settings.models_dir.is_dir():
        detail = f"{settings.models_dir} does not exist, so there are no models of your own"
        yield Finding("models", "ok", "MODELS_DIR", detail, {"folder": str(settings.models_dir)})
    for replaced in catalog.replaced:
        facts = {"model": replaced.name, "folder": replaced.folder, "replaces": replaced.replaces}
        yield Finding("models", "warn", "replaced", str(replaced), facts)
    allowed = known_models(catalog, settings.allowed_models)
    for model in catalog.models:
        if model.folder and model.source == "local" and model not in required and (not allowed or model in allowed):
            yield _check_folder(model, model.folder.path.name, settings)
    for folder in catalog.ignored:
        detail = f"the folder {folder.name!r} is not a model: {folder.reason}"
        yield Finding("models", "warn", "ignored", detail, {"folder": folder.name, "reason": folder.reason})


def _check_folder(model: Model, folder: str, settings: Settings) -> Finding:
    """Load a model of MODELS_DIR that is not required, if there is enough memory for a moment."""
    facts: dict[str, Any] = {"model": model.name, "folder": folder}
    available = available_bytes()
    if available is not None and model.memory_bytes > available:
        detail = f"{model.name} was not loaded: it needs about {megabytes(model.memory_bytes)}"
        return Finding("models", "warn", "folder", f"{detail}, and {megabytes(available)} are available", facts)
    report = _try_to_load(model, settings)
    if isinstance(report, str):
        facts["reason"] = report
        return Finding("models", "warn", "folder", f"{model.name} cannot be loaded: {report}", facts)
    notes = f": {'; '.join(report.notes)}" if report.notes else ""
    facts["notes"] = list(report.notes)
    level: Level = "warn" if report.notes else "ok"
    return Finding("models", level, "folder", f"{model.name} can be loaded{notes}", facts)
