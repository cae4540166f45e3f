"""Reads settings that are given in a file of their own, as Docker and Kubernetes mount secrets."""

from collections.abc import Callable

from config import Settings, SettingsError
from host.small_files import SmallFileError, read_small_text
from setting_types import check_redis_url, check_secret_length

MAX_BYTES = 65_536
"""Largest secret; a file beyond this is probably another one."""


def jwt_secret(settings: Settings) -> str | None:
    """Return JWT_SECRET, or the content of JWT_SECRET_FILE.

    Raises:
        SettingsError: the file cannot be used.
    """
    return _value_or_content(settings, "jwt_secret", check_secret_length)


def redis_url(settings: Settings) -> str | None:
    """Return REDIS_URL, or the content of REDIS_URL_FILE.

    Raises:
        SettingsError: the file cannot be used.
    """
    return _value_or_content(settings, "redis_url", check_redis_url)


def unknown_redis_option(settings: Settings) -> str:
    """Return what is wrong with the address of Redis if the client rejects it."""
    name = "REDIS_URL" if settings.redis_url_file is None else "REDIS_URL_FILE"
    return f"{name} is not allowed: it has an option that the Redis client does not know"


def cache_key_secret(settings: Settings) -> str | None:
    """Return CACHE_KEY_SECRET, or the content of CACHE_KEY_SECRET_FILE.

    Raises:
        SettingsError: the file cannot be used.
    """
    return _value_or_content(settings, "cache_key_secret", check_secret_length)


def _value_or_content(settings: Settings, name: str, check: Callable[[str], None]) -> str | None:
    """Return the setting *name*, or the content of the file that `name_file` names. `Settings` rejects both."""
    path = getattr(settings, f"{name}_file")
    if path is None:
        value = getattr(settings, name)
        return None if value is None else str(value.get_secret_value())
    try:
        content = _one_line(read_small_text(path, max_bytes=MAX_BYTES))
        check(content)
    except (OSError, ValueError) as error:
        reason = (error.strerror or "it cannot be read") if isinstance(error, OSError) else str(error)
        raise SettingsError(f"{name.upper()}_FILE: {reason}") from None
    return content


def _one_line(text: str) -> str:
    """Return *text* without the line break at its end, which editors and `echo` add."""
    line = text.rstrip("\r\n")
    if not line.strip():
        raise SmallFileError("it is empty")
    if not line.isprintable():
        raise SmallFileError("it contains more than one line, or control characters")
    return line
