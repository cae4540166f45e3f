"""The first section of `check`: settings, variables of libraries, callers and quotas."""

import asyncio
import os
from collections.abc import Iterator, Sequence

from assembly.access import quota_store, read_access
from assembly.library_variables import describe as describe_variable
from assembly.library_variables import unusable_variables
from assembly.model_aliases import why_unusable_aliases
from assembly.start_checks import why_list_models
from assembly.tracing import is_disabled, protocol_of, why_unusable
from cli.findings import Finding
from config import Settings, SettingsError, find_unknown_names
from engine.catalog import Catalog
from engine.errors import UnknownModelError

RATE_LIMIT_SETTINGS = ("rate_limit_requests", "rate_limit_window", "rate_limit_tokens", "redis_url", "redis_url_file")
"""Settings that have no effect without ENABLE_RATE_LIMIT."""
RESULT_SETTINGS = ("redis_url", "redis_url_file")
"""Those of them that RESULT_CACHE_REDIS uses, too."""


def check_settings(settings: Settings, catalog: Catalog) -> Iterator[Finding]:
    """Yield the findings of the section."""
    yield Finding("settings", "ok", "values", "all are allowed")
    for unknown in find_unknown_names():
        facts = {"name": unknown.name, "meant": unknown.closest}
        yield Finding("settings", "warn", "names", str(unknown), facts)
    for name, reason in unusable_variables(resolve=True):
        yield Finding("settings", "warn", "environment", describe_variable(name, reason), {"name": name})
    yield from _check_names("REQUIRED_MODELS", settings.required_models, catalog)
    if (advice := why_list_models(settings)) is not None:
        yield Finding("settings", "warn", "ALLOWED_MODELS", f"any: {advice}", {"names": []})
    else:
        yield from _check_names("ALLOWED_MODELS", settings.allowed_models, catalog)
    yield from _check_aliases(settings, catalog)
    yield from _check_tracing(settings)
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


def _check_aliases(settings: Settings, catalog: Catalog) -> Iterator[Finding]:
    """Report aliases that cannot be used, or all aliases with their models."""
    if not settings.model_aliases:
        return
    reasons = list(why_unusable_aliases(settings, catalog))
    for reason in reasons:
        yield Finding("settings", "FAIL", "MODEL_ALIASES", reason)
    if not reasons:
        pairs = ", ".join(f"{alias} = {name}" for alias, name in settings.model_aliases)
        yield Finding("settings", "ok", "MODEL_ALIASES", pairs, {"aliases": dict(settings.model_aliases)})


def _check_tracing(settings: Settings) -> Iterator[Finding]:
    """Report why traces cannot be sent, or that they will be. The receiver is not asked."""
    if not settings.enable_tracing:
        return
    if is_disabled(os.environ):
        yield Finding("settings", "warn", "ENABLE_TRACING", "OTEL_SDK_DISABLED turns it off")
        return
    reasons = list(why_unusable(os.environ))
    for reason in reasons:
        yield Finding("settings", "FAIL", "ENABLE_TRACING", reason.removeprefix("ENABLE_TRACING: "))
    if not reasons:
        yield Finding("settings", "ok", "ENABLE_TRACING", f"traces are sent by {protocol_of(os.environ)}")


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
        used_elsewhere = RESULT_SETTINGS if settings.result_cache_redis else ()
        unused = [
            name.upper()
            for name in RATE_LIMIT_SETTINGS
            if name in settings.model_fields_set and name not in used_elsewhere
        ]
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
