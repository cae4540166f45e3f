"""`python main.py check`: would the service start here, and if not, why?"""

import logging
import shutil
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from assembly.catalog import open_catalog
from assembly.lane_plan import LanePlan, plan_lanes
from cli.check_settings import check_settings
from cli.console import DONE, FAILED, configure_logging, megabytes, paragraphs, print_json, print_line
from cli.finding import Finding, Level
from cli.hub_status import check_hub
from cli.model_process import LoadReport, ModelProcessError, WorkerConfig, start_worker
from cli.progress import fetch_with_progress
from config import Settings, SettingsError, load_settings
from engine.catalog import Catalog, Model
from engine.errors import ModelUnavailableError
from engine.hub import is_cached
from engine.hub_space import HubSpace
from engine.memory_estimate import estimate_memory, why_impossible
from engine.self_check import SelfCheckResult
from host.folder_permissions import nearest_existing, why_not_writable
from host.listening_socket import ALL_IPV4, ListenError, has_fallen_back, open_listening_socket
from host.memory import available_bytes, memory_limit


def describe(parser: ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = paragraphs(
        "Check whether the service would start with these settings on this machine. Each line of the report starts "
        "with ok, warn or FAIL. The models of REQUIRED_MODELS are loaded, each in a process of its own; models that "
        "are not in the cache are downloaded, as at a start of the service.",
        "The exit code is 0 if the service would start, else 1. These are only warnings: Redis cannot be reached, the "
        "hub cannot be reached but is not needed, the port is in use (perhaps by the running service).",
    )
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")


def run(arguments: Namespace) -> int:
    """Check everything, and print each line as soon as it is known."""
    configure_logging(logging.CRITICAL)  # the report contains what the engine would log
    findings: list[Finding] = []
    for finding in examine():
        if not arguments.json:
            if not findings or findings[-1].section != finding.section:
                print_line(f"\n{finding.section}" if findings else finding.section)
            print_line(str(finding))
        findings.append(finding)
    would_start = all(finding.level != "FAIL" for finding in findings)
    if arguments.json:
        print_json({"would_start": would_start, "findings": [finding.as_json() for finding in findings]})
    else:
        print_line(f"\nThe service would {'' if would_start else 'not '}start.")
    return DONE if would_start else FAILED


def examine() -> Iterator[Finding]:
    """Yield all findings, section by section. Loading the models takes the most time."""
    try:
        settings = load_settings()
    except SettingsError as error:
        yield Finding("settings", "FAIL", "values", str(error))
        return
    catalog, plan = open_catalog(settings), plan_lanes(settings)
    required = _known_models(catalog, settings.required_models)
    yield from check_settings(settings, catalog)
    yield from _check_machine(settings, plan, required)
    missing = [model for model in required if not is_cached(model, settings.hub_cache_dir)]
    for model in required:
        yield from _check_required_model(model, settings, plan, is_missing=model in missing)
    yield from _check_other_models(settings, catalog, required)
    yield _check_hub(missing)


def _known_models(catalog: Catalog, names: Sequence[str]) -> list[Model]:
    """Return the models with these names, each once. `check_settings` reports the unknown names."""
    found = [model for name in names if (model := catalog.find(name))]
    return list({model.name: model for model in found}.values())


def _check_machine(settings: Settings, plan: LanePlan, required: Sequence[Model]) -> Iterator[Finding]:
    yield Finding("machine", "ok", "cores", f"{plan.cores} usable", {"usable_cores": plan.cores})
    yield _check_lanes(settings, plan)
    yield _check_address(settings)
    yield _check_memory(plan, required)
    free = _free_disk_bytes(settings.hub_cache_dir)
    detail = "free space is unknown" if free is None else f"{megabytes(free)} free for HUB_CACHE_DIR"
    yield Finding("machine", "ok", "disk", detail, {"free_bytes": free})
    problem = why_not_writable(settings.hub_cache_dir)
    detail = "writable" if problem is None else f"no model can be downloaded: {problem}"
    level: Level = "ok" if problem is None else "warn"
    yield Finding("machine", level, "HUB_CACHE_DIR", detail, {"is_writable": problem is None})


def _check_lanes(settings: Settings, plan: LanePlan) -> Finding:
    advice = plan.advice()
    detail = f"{plan.lanes} (THREAD_POOL_WORKERS={settings.thread_pool_workers})"
    facts = {"lanes": plan.lanes, "unused_cores": plan.unused_cores}
    return Finding("machine", "warn" if advice else "ok", "lanes", f"{detail}; {advice}" if advice else detail, facts)


def _check_address(settings: Settings) -> Finding:
    """Listen on the address for a moment."""
    address = f"HOST={settings.host} PORT={settings.port}"
    facts = {"host": settings.host, "port": settings.port, "problem": None}
    try:
        with open_listening_socket(settings.host, settings.port) as listening:
            has_no_ipv6 = has_fallen_back(settings.host, listening)
    except ListenError as error:
        facts["problem"] = error.reason
        if not error.is_in_use:
            return Finding("machine", "FAIL", "address", str(error), facts)
        detail = f"{address} is in use: if not by this service, it would not start"
        return Finding("machine", "warn", "address", detail, facts)
    if has_no_ipv6:
        detail = f"{address} is free; this machine has no IPv6, so it means {ALL_IPV4}"
        return Finding("machine", "warn", "address", detail, facts)
    return Finding("machine", "ok", "address", f"{address} is free", facts)


def _check_memory(plan: LanePlan, required: Sequence[Model]) -> Finding:
    limit, available = memory_limit(), available_bytes()
    need = estimate_memory(required, plan.sessions_of)
    facts = {"available_bytes": available, "needed_bytes": need.bytes, "limit_bytes": limit.bytes}
    if (reason := why_impossible(need, limit)) is not None:
        return Finding("machine", "FAIL", "memory", reason, facts)
    needed = f"the service needs about {megabytes(need.bytes)} with the required models"
    if limit.bytes is None or available is None:
        return Finding("machine", "ok", "memory", f"the available memory is unknown; {needed}", facts)
    if need.is_tight(limit):
        detail = f"{needed}, but may use only {megabytes(limit.bytes)}: raise the limit, or lower LONE_TEXT_MEMORY"
        return Finding("machine", "warn", "memory", detail, facts)
    level: Level = "ok" if need.bytes <= available else "warn"
    return Finding("machine", level, "memory", f"{megabytes(available)} available; {needed}", facts)


def _free_disk_bytes(folder: Path) -> int | None:
    """Return the free space where *folder* is or would be created; None: unknown."""
    with suppress(OSError):
        return shutil.disk_usage(nearest_existing(folder)).free
    return None


def _check_required_model(model: Model, settings: Settings, plan: LanePlan, *, is_missing: bool) -> Iterator[Finding]:
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
    config = WorkerConfig(model, settings.hub_cache_dir, None, settings.micro_batch_tokens)
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


def _describe_self_check(check: SelfCheckResult, facts: Mapping[str, Any]) -> Finding:
    facts = {**facts, "batch_invariant": check.is_batch_invariant, "batching": check.batching}
    if check.is_batch_invariant:
        return Finding("models", "ok", "  self-check", "a text has the same vector in any batch", facts)
    way = "only texts of equal length share a run" if check.batching == "equal" else "each text is run alone"
    detail = f"vectors depend on the other texts of a run, so {way} ({check.batching_cost:.1f} times the time)"
    return Finding("models", "warn", "  self-check", detail, facts)


def _check_other_models(settings: Settings, catalog: Catalog, required: Sequence[Model]) -> Iterator[Finding]:
    """Report allowed models that are not in the cache, and folders that contain no usable model or replace one."""
    for model in _known_models(catalog, settings.allowed_models):
        if model not in required and not is_cached(model, settings.hub_cache_dir):
            detail = f"{model.name} is not in the cache: the first request for it downloads it"
            yield Finding("models", "warn", "allowed", detail, {"model": model.name})
    if not settings.models_dir.is_dir():
        detail = f"{settings.models_dir} does not exist, so there are no models of your own"
        yield Finding("models", "ok", "MODELS_DIR", detail, {"folder": str(settings.models_dir)})
    for replaced in catalog.replaced:
        facts = {"model": replaced.name, "folder": replaced.folder, "replaces": replaced.replaces}
        yield Finding("models", "warn", "replaced", str(replaced), facts)
    allowed = _known_models(catalog, settings.allowed_models)
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


def _check_hub(missing: Sequence[Model]) -> Finding:
    """Check the hub, which is needed only if required models are *missing* in the cache."""
    hub = check_hub()
    facts = {"endpoint": hub.endpoint, "is_reachable": hub.problem is None, "is_needed": bool(missing)}
    status = f"{hub.endpoint} {hub.problem or 'answers'}"
    if missing:
        models = "1 required model" if len(missing) == 1 else f"{len(missing)} required models"
        level: Level = "FAIL" if hub.problem else "ok"
        return Finding("hub", level, "needed", f"{status}; {models} must be downloaded", facts)
    level = "warn" if hub.problem and not hub.is_offline else "ok"
    return Finding("hub", level, "not needed", f"{status}; no required model needs a download", facts)
