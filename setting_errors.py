"""What is wrong with the settings, in one line for the person who starts the service."""

from collections.abc import Mapping

from pydantic_core import ErrorDetails

SECRETS = frozenset({"redis_url", "api_keys", "jwt_secret", "jwt_jwks_url", "cache_key_secret"})
"""Settings whose values never appear in messages, not even when they are wrong.

Nor do those that end in `_FILE`: the value may be a secret that was meant for the setting without the ending.
"""
PLAIN_MESSAGES = {
    "bool_parsing": "use true or false",
    "int_parsing": "use a whole number",
    "float_parsing": "use a number",
}
"""What to write instead of a value that pydantic cannot parse, by its error type."""


class SettingsError(Exception):
    """The settings cannot be used; the message is one line, a full sentence, for the person who starts the service."""

    def __init__(self, message: str) -> None:
        super().__init__(message if message.endswith((".", "?")) else f"{message}.")


def explained(error: ErrorDetails, typed: Mapping[str, str]) -> str:
    """Return one line: the setting, its value as it was typed, and what is allowed."""
    message = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return message
    name = str(error["loc"][0])
    value = "" if name in SECRETS or name.endswith("_file") else f"={typed.get(name.upper(), error['input'])!r}"
    message = PLAIN_MESSAGES.get(error["type"], f"{message[:1].lower()}{message[1:]}")
    unit = " of megabytes" if name.endswith("_mb") and error["type"] in PLAIN_MESSAGES else ""
    return f"{name.upper()}{value} is not allowed: {message}{unit}"
