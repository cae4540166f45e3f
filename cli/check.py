"""`python main.py check`: would the service start here, and if not, why?"""

import asyncio
import logging
import shutil
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from assembly.access import quota_store, read_access
from assembly.catalog import open_catalog
from assembly.lane_plan import LanePlan, plan_lanes
from assembly.start_checks import why_list_models
from cli.check_models import check_other_models, check_required_model, known_models
from cli.console import DONE, FAILED, configure_logging, megabytes, paragraphs, print_json, print_line
from cli.findings import Finding, Level
from cli.hub_status import check_hub
from config import Settings, SettingsError, find_unknown_names, load_settings
from engine.catalog import Catalog, Model
from engine.errors import UnknownModelError
from engine.hub import is_cached
from engine.memory_estimate import estimate_memory, why_impossible
from host.folder_permissions import nearest_existing, why_not_writable
from host.listening_socket import ALL_IPV4, ListenError, has_fallen_back, open_listening_socket
from host.memory import available_bytes, memory_limit

RATE_LIMIT_SETTINGS = ("rate_limit_requests", "rate_limit_window", "rate_limit_tokens", "redis_url", "redis_url_file")
"""Settings that have no effect without ENABLE_RATE_LIMIT."""


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
    required = known_models(catalog, settings.required_models)
    yield from _check_settings(settings, catalog)
    yield from _check_machine(settings, plan, required)
    missing = [model for model in required if not is_cached(model, settings.hub_cache_dir)]
    for model in required:
        yield from check_required_model(model, settings, plan, is_missing=model in missing)
    yield from check_other_models(settings, catalog, required)
    yield _check_hub(missing)


def _check_settings(settings: Settings, catalog: Catalog) -> Iterator[Finding]:
    yield Finding("settings", "ok", "values", "all are allowed")
    for unknown in find_unknown_names():
        facts = {"name": unknown.name, "meant": unknown.closest}
        yield Finding("settings", "warn", "names", str(unknown), facts)
    yield from _check_names("REQUIRED_MODELS", settings.required_models, catalog)
    if (advice := why_list_models(settings)) is not None:
        yield Finding("settings", "warn", "ALLOWED_MODELS", f"any: {advice}", {"names": []})
    else:
        yield from _check_names("ALLOWED_MODELS", settings.allowed_models, catalog)
    yield _check_callers(settings)
    yield _check_rate_limit(settings)


def _check_names(setting: str, names: Sequence[str], catalog: Catalog) -> Iterator[Finding]:
    """Look up every name of a setting in the catalogue."""
    are_known = True
    for name in names:
        try:
            catalog.get(name)
        except UnknownModelError as error:
            are_known = False
            yield Finding("settings", "FAIL", setting, error.summary)
    if are_known:
        yield Finding("settings", "ok", setting, ", ".join(names) or "any", {"names": list(names)})


def _check_callers(settings: Settings) -> Finding:
    """Say who may call. Files with keys are read; JWT_JWKS_URL is not requested."""
    try:
        access = read_access(settings)
    except SettingsError as error:
        return Finding("settings", "FAIL", "callers", str(error))
    facts = {"sources": list(access.sources), "closed": sorted(access.protected), "api_keys": len(access.keys)}
    if access.is_exposed:
        detail = "anyone who reaches HOST may call; set API_KEYS to require a key"
        return Finding("settings", "warn", "callers", detail, facts)
    if not access.sources:
        return Finding("settings", "ok", "callers", "anyone on this machine may call", facts)
    count = len(access.keys)
    keys = f" ({count} {'key' if count == 1 else 'keys'})" if count else ""
    protected = ", ".join(sorted(access.protected))
    detail = f"a key or token of {', '.join(access.sources)}{keys} is required for {protected}"
    if access.advice:
        return Finding("settings", "warn", "callers", f"{detail}. {access.advice}", facts)
    return Finding("settings", "ok", "callers", detail, facts)


def _check_rate_limit(settings: Settings) -> Finding:
    """Say how much a caller may request, and where that is counted. Redis is asked as a request would ask it."""
    try:
        store, trouble = asyncio.run(_try_quota_store(settings))
    except SettingsError as error:
        return Finding("settings", "FAIL", "limits", str(error))
    facts = {"store": store, "trouble": trouble}
    if not settings.enable_rate_limit:
        unused = [name.upper() for name in RATE_LIMIT_SETTINGS if name in settings.model_fields_set]
        if not unused:
            return Finding("settings", "ok", "limits", "none (ENABLE_RATE_LIMIT)", facts)
        detail = f"ENABLE_RATE_LIMIT is false, so {', '.join(unused)} has no effect"
        return Finding("settings", "warn", "limits", detail, facts)
    tokens = "" if settings.rate_limit_tokens is None else f" and {settings.rate_limit_tokens:,} tokens"
    quota = f"{settings.rate_limit_requests:,} requests{tokens} per {settings.rate_limit_window} s"
    if trouble is not None:
        detail = f"{quota}, counted in memory, because REDIS_URL cannot be used ({trouble})"
        return Finding("settings", "warn", "limits", detail, facts)
    return Finding("settings", "ok", "limits", f"{quota}, counted in {'Redis' if store == 'redis' else store}", facts)


async def _try_quota_store(settings: Settings) -> tuple[str, str | None]:
    """Return where requests are counted, and why Redis cannot be used."""
    store = quota_store(settings)
    async with store.running():
        return store.store, store.fallback_reason


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
