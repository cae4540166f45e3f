"""`python main.py check`: would the service start here, and if not, why?"""

import asyncio
import logging
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from assembly.access import quota_store, read_access
from assembly.catalog import open_catalog
from assembly.lane_plan import plan_lanes
from cli.console import (
    DONE,
    FAILED,
    configure_logging,
    fetch_visibly,
    megabytes,
    paragraphs,
    say,
    say_json,
    without_model,
)
from cli.model_process import Loaded, ModelProcessError, Order, running
from cli.surroundings import ask_hub, free_disk_bytes
from config import Settings, SettingsError, find_unknown_names, load_settings
from engine.catalog import Catalog, Model
from engine.errors import ModelUnavailableError, UnknownModelError
from engine.hub import is_cached
from engine.memory_estimate import estimate_memory, why_impossible
from engine.self_check import SelfCheckResult
from host.cores import usable_cores
from host.folder_permissions import why_not_writable
from host.memory import available_bytes, memory_limit
from host.ports import ListenError, open_listening_socket

Level = Literal["ok", "warn", "FAIL"]

SUBJECT_CHARACTERS = 15
LIMITS = ("rate_limit_requests", "rate_limit_window", "rate_limit_tokens", "redis_url")
"""Settings that mean something with ENABLE_RATE_LIMIT only."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        level: `FAIL` where the service would not start because of it.
        facts: the same for programs.
    """

    section: str
    level: Level
    subject: str
    detail: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.level:<4}  {self.subject:<{SUBJECT_CHARACTERS}}  {self.detail}"


def describe(parser: ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = paragraphs(
        "Check whether the service would start with these settings on this machine: each line begins with ok, warn or "
        "FAIL. The models of REQUIRED_MODELS are really loaded, each in a process of its own; one that is not in the "
        "cache is downloaded, as the service would do it at its start.",
        "The exit code is 0 if the service would start, else 1. A Redis that is out of reach is no failure, nor is a "
        "hub that is not needed, nor a port in use: that may be the service's, which runs meanwhile.",
    )
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")


def run(arguments: Namespace) -> int:
    """Check everything, and print each section's lines as they are found."""
    configure_logging(logging.CRITICAL)  # the report tells what the engine would log
    findings: list[Finding] = []
    for finding in examine():
        if not arguments.json:
            _say(finding, is_first=not findings or findings[-1].section != finding.section)
        findings.append(finding)
    would_start = all(finding.level != "FAIL" for finding in findings)
    if arguments.json:
        say_json({"would_start": would_start, "findings": [_as_json(finding) for finding in findings]})
    else:
        say(f"\nThe service would {'' if would_start else 'not '}start.")
    return DONE if would_start else FAILED


def examine() -> Iterator[Finding]:
    """All findings, section by section; loading the models takes the longest."""
    try:
        settings = load_settings()
    except SettingsError as error:
        yield Finding("settings", "FAIL", "values", str(error))
        return
    catalog = open_catalog(settings)
    required = _known(catalog, settings.required_models)
    yield from _settings(settings, catalog)
    yield from _machine(settings, required)
    missing = [model for model in required if not is_cached(model, settings.hub_cache_dir)]
    for model in required:
        yield from _required(model, settings, is_missing=model in missing)
    yield from _other_models(settings, catalog, required)
    yield _hub(missing)


def _say(finding: Finding, *, is_first: bool) -> None:
    if is_first:
        say(f"{'' if finding.section == 'settings' else chr(10)}{finding.section}")
    say(str(finding))


def _as_json(finding: Finding) -> dict[str, Any]:
    told = {"section": finding.section, "level": finding.level.lower(), "subject": finding.subject}
    return {**told, "detail": finding.detail, **finding.facts}


def _known(catalog: Catalog, names: Sequence[str]) -> list[Model]:
    """The models of these names, each once; unknown ones are told with the settings."""
    found = [model for name in names if (model := catalog.find(name))]
    return list({model.name: model for model in found}.values())


def _settings(settings: Settings, catalog: Catalog) -> Iterator[Finding]:
    yield Finding("settings", "ok", "values", "all are allowed")
    for found in find_unknown_names():
        yield Finding("settings", "warn", "names", str(found), {"name": found.name, "meant": found.closest})
    for setting in ("REQUIRED_MODELS", "ALLOWED_MODELS"):
        names: tuple[str, ...] = getattr(settings, setting.lower())
        unknown = list(_unknown(catalog, names))
        for detail in unknown:
            yield Finding("settings", "FAIL", setting, detail)
        if not unknown:
            yield Finding("settings", "ok", setting, ", ".join(names) or "any", {"names": list(names)})
    yield _callers(settings)
    yield _limits(settings)


def _callers(settings: Settings) -> Finding:
    """Who may call; the files of keys are read, and nothing is asked of JWT_JWKS_URL."""
    try:
        access = read_access(settings)
    except SettingsError as error:
        return Finding("settings", "FAIL", "callers", str(error))
    facts = {"sources": list(access.sources), "closed": sorted(access.closed), "api_keys": len(access.keys)}
    if access.is_exposed:
        told = "anyone who reaches HOST may call; API_KEYS would close it"
        return Finding("settings", "warn", "callers", told, facts)
    if not access.sources:
        return Finding("settings", "ok", "callers", "anyone on this machine may call", facts)
    count = len(access.keys)
    keys = f" ({count} {'key' if count == 1 else 'keys'})" if count else ""
    told = f"those of {', '.join(access.sources)}{keys}; closed: {', '.join(sorted(access.closed))}"
    return Finding("settings", "ok", "callers", told, facts)


def _limits(settings: Settings) -> Finding:
    """How much a caller may ask, and whether replicas can share that now; Redis is asked as requests will ask it."""
    try:
        store, trouble = asyncio.run(_shared(settings))
    except SettingsError as error:
        return Finding("settings", "FAIL", "limits", str(error))
    facts = {"store": store, "trouble": trouble}
    if not settings.enable_rate_limit:
        idle = [name.upper() for name in LIMITS if name in settings.model_fields_set]
        told = f"ENABLE_RATE_LIMIT is false, so {', '.join(idle)} means nothing" if idle else "none (ENABLE_RATE_LIMIT)"
        return Finding("settings", "warn" if idle else "ok", "limits", told, facts)
    tokens = "" if settings.rate_limit_tokens is None else f" and {settings.rate_limit_tokens:,} tokens"
    told = f"{settings.rate_limit_requests:,} requests{tokens} per {settings.rate_limit_window} s, counted in "
    if trouble is not None:
        told += f"memory, as REDIS_URL cannot be used ({trouble})"
        return Finding("settings", "warn", "limits", told, facts)
    return Finding("settings", "ok", "limits", told + ("Redis" if store == "redis" else "memory"), facts)


async def _shared(settings: Settings) -> tuple[str, str | None]:
    """Where limits are counted, and what keeps Redis from it."""
    allowances = quota_store(settings)
    async with allowances.running():
        return allowances.store, allowances.trouble


def _unknown(catalog: Catalog, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        try:
            catalog.get(name)
        except UnknownModelError as error:
            yield without_model(error, name)


def _machine(settings: Settings, required: Sequence[Model]) -> Iterator[Finding]:
    lanes, wanted = plan_lanes(settings).lanes, settings.thread_pool_workers
    yield Finding("machine", "ok", "cores", f"{usable_cores()} usable", {"usable_cores": usable_cores()})
    yield Finding("machine", "ok", "lanes", f"{lanes} (THREAD_POOL_WORKERS={wanted})", {"lanes": lanes})
    yield _address(settings)
    yield _memory(settings, required)
    yield from _cache_folder(settings)


def _address(settings: Settings) -> Finding:
    """Whether the address can be taken; one in use may be that of the service, which runs while it is checked."""
    problem = _listen_problem(settings)
    told = f"HOST={settings.host} PORT={settings.port}"
    facts = {"host": settings.host, "port": settings.port, "problem": problem.reason if problem else None}
    if problem is None:
        return Finding("machine", "ok", "address", f"{told} can be listened on", facts)
    if problem.is_in_use:
        return Finding("machine", "warn", "address", f"{told} is in use: by this service, or it would not start", facts)
    return Finding("machine", "FAIL", "address", f"{told} cannot be listened on: {problem.reason}", facts)


def _listen_problem(settings: Settings) -> ListenError | None:
    """Why the service could not listen here now; None: it could. The socket is closed again at once."""
    try:
        open_listening_socket(settings.host, settings.port).close()
    except ListenError as error:
        return error
    return None


def _needed_bytes(model: Model, settings: Settings) -> int:
    """Estimated memory of a model with the copy for lone texts, where it gets one."""
    return model.memory_bytes * plan_lanes(settings).sessions_of(model)


def _memory(settings: Settings, required: Sequence[Model]) -> Finding:
    limit, available = memory_limit(), available_bytes()
    need = estimate_memory(required, plan_lanes(settings).sessions_of)
    facts = {"available_bytes": available, "needed_bytes": need.bytes, "limit_bytes": limit.bytes}
    if (reason := why_impossible(need, limit)) is not None:
        return Finding("machine", "FAIL", "memory", reason, facts)
    told = f"the service with the required models needs about {megabytes(need.bytes)}"
    if limit.bytes is None or available is None:
        return Finding("machine", "ok", "memory", f"what is available is not told here; {told}", facts)
    if need.is_tight(limit):
        told = f"{megabytes(limit.bytes)} may be used, but {told}: raise the limit, or see LONE_TEXT_MEMORY"
        return Finding("machine", "warn", "memory", told, facts)
    level: Level = "ok" if need.bytes <= available else "warn"
    return Finding("machine", level, "memory", f"{megabytes(available)} available; {told}", facts)


def _cache_folder(settings: Settings) -> Iterator[Finding]:
    free = free_disk_bytes(settings.hub_cache_dir)
    told = "free space is not told here" if free is None else f"{megabytes(free)} free for HUB_CACHE_DIR"
    yield Finding("machine", "ok", "disk", told, {"free_bytes": free})
    trouble = why_not_writable(settings.hub_cache_dir)
    told = "can be written" if trouble is None else f"no model can be downloaded: {trouble}"
    level: Level = "ok" if trouble is None else "warn"
    yield Finding("machine", level, "HUB_CACHE_DIR", told, {"is_writable": trouble is None})


def _required(model: Model, settings: Settings, *, is_missing: bool) -> Iterator[Finding]:
    """Where a required model comes from, and what comes of loading it."""
    facts = {"model": model.name}
    whence = model.source + ("" if model.folder else ", not in the cache" if is_missing else ", in the cache")
    yield Finding("models", "ok", "required", f"{model.name} ({whence})", {**facts, "is_cached": not is_missing})
    needed, budget = _needed_bytes(model, settings), settings.model_memory_budget
    if budget is not None and needed > budget:
        told = f"it needs about {megabytes(needed)}, more than MODEL_MEMORY_BUDGET allows for all models"
        yield Finding("models", "FAIL", "  memory", told, facts)
    order = Order(model, settings.hub_cache_dir, None, settings.micro_batch_tokens)
    try:
        fetch_visibly(model, settings.hub_cache_dir)
        with running(order) as process:
            loaded = process.load()
    except ModelUnavailableError as error:
        yield Finding("models", "FAIL", "  loaded", f"no: {error.cause}", facts)
    except ModelProcessError as error:
        yield Finding("models", "FAIL", "  loaded", f"no: {error.message}", facts)
    else:
        yield from _loaded(loaded, facts)


def _loaded(loaded: Loaded, facts: Mapping[str, Any]) -> Iterator[Finding]:
    memory = (
        "memory not measured here" if loaded.memory_bytes is None else f"{megabytes(loaded.memory_bytes)} in memory"
    )
    costs = {"seconds": round(loaded.seconds, 3), "memory_bytes": loaded.memory_bytes}
    yield Finding("models", "ok", "  loaded", f"in {loaded.seconds:.1f} s, {memory}", {**facts, **costs})
    yield _self_check(loaded.check, facts)
    cosine = loaded.check.canary_cosine
    told = "it has none" if cosine is None else f"its reference vectors are met (cosine {cosine:.6f})"
    yield Finding("models", "ok", "  canary", told, {**facts, "cosine": cosine})
    fingerprint = loaded.fingerprint
    facts = {**facts, "fingerprint": fingerprint.digest, "revision": fingerprint.revision}
    yield Finding("models", "ok", "  fingerprint", fingerprint.digest, facts)


def _self_check(check: SelfCheckResult, facts: Mapping[str, Any]) -> Finding:
    facts = {**facts, "batch_invariant": check.is_batch_invariant, "batching": check.batching}
    if check.is_batch_invariant:
        return Finding("models", "ok", "  self-check", "a text has the same vector in any batch", facts)
    way = "only texts of equal length share a run" if check.batching == "equal" else "each text is run alone"
    told = f"vectors depend on what shares a run, so {way} ({check.batching_cost:.1f} times the time)"
    return Finding("models", "warn", "  self-check", told, facts)


def _other_models(settings: Settings, catalog: Catalog, required: Sequence[Model]) -> Iterator[Finding]:
    """Allowed models that are not there yet, and folders that should have been models."""
    for model in _known(catalog, settings.allowed_models):
        if model not in required and not is_cached(model, settings.hub_cache_dir):
            told = f"{model.name} is not in the cache: it is downloaded when first asked for"
            yield Finding("models", "warn", "allowed", told, {"model": model.name})
    if not settings.models_dir.is_dir():
        told = f"{settings.models_dir} does not exist, so there are no models of your own"
        yield Finding("models", "ok", "MODELS_DIR", told, {"folder": str(settings.models_dir)})
    for folder in catalog.ignored:
        told = f"the folder {folder.name!r} is no model: {folder.reason}"
        yield Finding("models", "warn", "ignored", told, {"folder": folder.name, "reason": folder.reason})


def _hub(missing: Sequence[Model]) -> Finding:
    answer = ask_hub()
    facts = {"endpoint": answer.endpoint, "is_reachable": answer.problem is None, "is_needed": bool(missing)}
    told = f"{answer.endpoint} {answer.problem or 'answers'}"
    if missing:
        level: Level = "FAIL" if answer.problem else "ok"
        return Finding("hub", level, "needed", f"{told}; it was asked for {len(missing)} model(s)", facts)
    level = "warn" if answer.problem and not answer.is_off else "ok"
    return Finding("hub", level, "not needed", f"{told}; all required models are here", facts)
