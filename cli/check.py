"""`python main.py check`: would the service start here, and if not, why?"""

import logging
import shutil
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from assembly.catalog import open_catalog
from cli.check_models import check_other_models, check_required_model, known_models
from cli.check_results import check_results
from cli.check_settings import check_settings
from cli.check_workers import Processes, plan_processes
from cli.console import DONE, FAILED, configure_logging, megabytes, paragraphs, print_json, print_line
from cli.findings import Finding, Level
from cli.hub_status import check_hub
from config import Settings, SettingsError, load_settings
from engine.catalog import Model
from engine.hub import is_cached
from engine.memory_estimate import why_impossible
from host.cores import usable_cores
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
    try:
        processes = plan_processes(settings)
    except SettingsError as error:
        yield Finding("settings", "FAIL", "values", str(error))
        return
    catalog, plan = open_catalog(settings), processes.plans[0]
    required = known_models(catalog, settings.required_models)
    yield from check_settings(settings, catalog)
    yield from check_results(settings, catalog, processes)
    yield from _check_machine(settings, processes, required)
    missing = [model for model in required if not is_cached(model, settings.hub_cache_dir)]
    for model in required:
        yield from check_required_model(
            model, processes.settings_of_each or settings, plan, is_missing=model in missing
        )
    yield from check_other_models(settings, catalog, required)
    yield _check_hub(missing)


def _check_machine(settings: Settings, processes: Processes, required: Sequence[Model]) -> Iterator[Finding]:
    cores = usable_cores()
    yield Finding("machine", "ok", "cores", f"{cores} usable", {"usable_cores": cores})
    if settings.workers != 1:
        yield processes.finding(settings)
    yield _check_lanes(settings, processes)
    yield _check_address(settings)
    yield _check_memory(processes, required)
    free = _free_disk_bytes(settings.hub_cache_dir)
    detail = "free space is unknown" if free is None else f"{megabytes(free)} free for HUB_CACHE_DIR"
    yield Finding("machine", "ok", "disk", detail, {"free_bytes": free})
    problem = why_not_writable(settings.hub_cache_dir)
    detail = "writable" if problem is None else f"no model can be downloaded: {problem}"
    level: Level = "ok" if problem is None else "warn"
    yield Finding("machine", level, "HUB_CACHE_DIR", detail, {"is_writable": problem is None})


def _check_lanes(settings: Settings, processes: Processes) -> Finding:
    advice = processes.plans[0].advice()
    detail = f"{processes.lanes} (THREAD_POOL_WORKERS={settings.thread_pool_workers})"
    facts = {"lanes": processes.lanes, "unused_cores": sum(plan.unused_cores for plan in processes.plans)}
    if advice and processes.workers > 1:
        advice = f"of each worker, {advice}"
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


def _check_memory(processes: Processes, required: Sequence[Model]) -> Finding:
    limit, available = memory_limit(), available_bytes()
    need = processes.memory(required)
    facts = {"available_bytes": available, "needed_bytes": need.bytes, "limit_bytes": limit.bytes}
    if (reason := why_impossible(need, limit)) is not None:
        return Finding("machine", "FAIL", "memory", reason, facts)
    needed = (
        f"the service needs about {megabytes(need.bytes)} with the required models{processes.describe_memory(required)}"
    )
    if limit.bytes is None or available is None:
        return Finding("machine", "ok", "memory", f"the available memory is unknown; {needed}", facts)
    if need.is_tight(limit):
        advice = "raise the limit, or lower LONE_TEXT_MEMORY or RESULT_CACHE_MB"
        detail = f"{needed}, but may use only {megabytes(limit.bytes)}: {advice}"
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
