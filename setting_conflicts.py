"""Settings that contradict each other, or miss each other. Each check raises a ValueError that says what to change."""

from collections.abc import Collection, Mapping, Sequence


def check_models(
    required: Sequence[str], allowed: Collection[str], aliases: Collection[tuple[str, str]], *, max_cached: int
) -> None:
    """Check REQUIRED_MODELS, ALLOWED_MODELS, MODEL_ALIASES and MAX_CACHED_MODELS."""
    if (count := len(required)) > max_cached:
        message = (
            f"REQUIRED_MODELS names {count} models, but MAX_CACHED_MODELS={max_cached}; "
            "raise MAX_CACHED_MODELS or require fewer models"
        )
        raise ValueError(message)
    lower = {name.lower() for name in allowed}
    if lower and (refused := [name for name in required if name.lower() not in lower]):
        names = ", ".join(map(repr, refused))
        message = f"REQUIRED_MODELS names {names}, but ALLOWED_MODELS does not; add it to ALLOWED_MODELS"
        raise ValueError(message)
    for alias, name in aliases:
        if lower and name.lower() not in lower:
            message = f"MODEL_ALIASES: {alias!r} means {name!r}, which ALLOWED_MODELS does not name; add it there"
            raise ValueError(message)


def check_prefixes(*, wide: int, narrow: int) -> None:
    """Check IPV6_WIDE_CALLER_PREFIX, if it is set."""
    if wide > narrow:
        message = (
            f"IPV6_WIDE_CALLER_PREFIX={wide} is longer than IPV6_CALLER_PREFIX={narrow}; use a shorter one, or "
            f"{narrow} for no second quota"
        )
        raise ValueError(message)


def check_closed_routes(closed: Collection[str], key_sources: Collection[str]) -> None:
    """Check that a key or token exists if CLOSED_ROUTES requires one."""
    if closed and not key_sources:
        message = (
            "CLOSED_ROUTES is set, but no key or token is configured; set API_KEYS, API_KEYS_FILE, JWT_SECRET, "
            "JWT_SECRET_FILE, JWT_PUBLIC_KEY_FILE or JWT_JWKS_URL"
        )
        raise ValueError(message)


def check_public_keys(*, file: object, url: object) -> None:
    """Check that only one of JWT_PUBLIC_KEY_FILE and JWT_JWKS_URL is set."""
    if file and url:
        raise ValueError(
            "JWT_PUBLIC_KEY_FILE and JWT_JWKS_URL both provide the key of RS256 and ES256; set one of them"
        )


def check_one_of(sources: Mapping[str, object]) -> None:
    """Check that at most one of these settings, by name, is set."""
    if len(given := [name for name, value in sources.items() if value is not None]) > 1:
        message = f"{' and '.join(given)} are both set; set one of them"
        raise ValueError(message)


def check_shared_results(*, is_wanted: bool, has_redis: bool, has_secret: bool) -> None:
    """Check that RESULT_CACHE_REDIS has a Redis, and a secret that all replicas share."""
    if not is_wanted:
        return
    missing = []
    if not has_redis:
        missing.append("RESULT_CACHE_REDIS=true needs a Redis; set REDIS_URL or REDIS_URL_FILE")
    if not has_secret:
        missing.append(
            "RESULT_CACHE_REDIS=true needs a secret that all replicas share, so that other programs cannot forge "
            "results in Redis; set CACHE_KEY_SECRET to the output of `openssl rand -hex 32`, or CACHE_KEY_SECRET_FILE "
            "to a file that contains it"
        )
    if missing:
        raise ValueError(". ".join(missing))
