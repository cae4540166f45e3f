"""Reads `.env` strictly, and finds names in it and in the environment that have no effect or do harm."""

from collections.abc import Collection, Iterable, MutableMapping
from dataclasses import dataclass
from difflib import get_close_matches
from io import StringIO
from pathlib import Path

COMPOSE_NAMES = frozenset(
    {
        *("CPUS", "DEV_IMAGE", "DEV_PORT", "HTTPS_PORT", "IMAGE", "MEMORY", "NGINX_CPUS", "OPTIMISE_MODELS"),
        *("NGINX_IMAGE", "PRELOAD_MODELS", "REDIS_IMAGE", "REDIS_MAXMEMORY", "REDIS_MEMORY", "REPLICAS"),
        *("STOP_GRACE_PERIOD", "WAIT_SECONDS"),
        *("GRAFANA_IMAGE", "GRAFANA_PORT", "PROMETHEUS_IMAGE", "PROMETHEUS_PORT", "PROMETHEUS_RETENTION"),
        *("EXTRAS", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_TOKEN"),
    }
)
"""Names that docker-compose.yml and deploy.sh read from the same `.env`; the service does not."""
COMPOSE_PREFIXES = ("COMPOSE_", "DOCKER_", "BUILDKIT_", "BUILDX_", "OTEL_")
"""Names that Compose, the container engine, and OpenTelemetry in a container read themselves start with these."""
SIMILAR = 0.75
"""Least similarity (`difflib`'s ratio) of an unknown name in `.env` and the setting suggested for it."""
SIMILAR_IN_ENVIRONMENT = 0.85
"""The same for variables of the environment, which belong to other programs, too: DBHOST and HOST reach 0.8."""


NOT_EMPTY = frozenset({"HF_ENDPOINT", "HF_HOME"})
"""Variables whose empty value a library takes literally, and then cannot work."""
WHOLE_SECONDS = frozenset({"HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"})
"""Variables with which a library cannot be imported if they are not whole numbers."""
SILENT_LIBRARIES = ("LOGURU_", "TQDM_")
"""Prefixes of variables of libraries that fail at their import if one is malformed; the service needs none of them."""
_dropped: dict[str, str] = {}


class EnvFileError(Exception):
    """`.env` cannot be used; the message is one line that says where and what to do."""


@dataclass(frozen=True, slots=True)
class UnknownName:
    """A name that is not a setting and therefore has no effect.

    Attributes:
        place: where it is set: `.env` or `the environment`.
        closest: the setting with the most similar name, if one is similar.
    """

    name: str
    place: str
    closest: str | None

    def __str__(self) -> str:
        suggestion = f"; did you mean {self.closest}?" if self.closest else "."
        return f"{self.name} in {self.place} is not a setting and has no effect{suggestion}"


def read_env_file(path: Path) -> dict[str, str]:
    """Return the names and values in *path*, which is empty if it does not exist.

    pydantic-settings reads the file with the same parser, but skips lines that it cannot parse.

    Raises:
        EnvFileError: it is not a regular file, cannot be read, is not UTF-8, or has a line that is not `NAME=value`.
    """
    from dotenv.parser import parse_stream  # noqa: PLC0415 - the health check imports this module, but no library

    if path.is_dir():
        raise EnvFileError(
            ".env is a folder, not a file. Delete it, and copy .env.example to .env "
            "(Docker creates a folder when it mounts a file that does not exist)."
        )
    if not path.is_file():
        if path.exists():
            raise EnvFileError(".env is not a regular file, but a pipe or a device. Use a file.")
        return {}
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError:
        raise EnvFileError(".env is not UTF-8; save it as UTF-8.") from None
    except OSError as error:
        raise EnvFileError(f".env cannot be read ({error.strerror}).") from None
    values = {}
    for binding in parse_stream(StringIO(text)):
        is_blank = binding.key is None and not binding.error
        if binding.error or (binding.value is None and not is_blank):
            # The line itself is not repeated: it may hold a secret.
            line = binding.original.line + _blank_lines(binding.original.string)
            raise EnvFileError(
                f".env, line {line}: this is not NAME=value. Close each quote, and start comments with #."
            )
        if binding.key is not None and binding.value is not None:
            values[binding.key] = binding.value
    return values


def unknown_names(
    in_file: Iterable[str], in_environment: Iterable[str], settings: Collection[str]
) -> list[UnknownName]:
    """Find names that have no effect: all such names in `.env`, and those in the environment that resemble a setting.

    Args:
        in_file: the names set in `.env`.
        in_environment: the names of the environment's variables.
        settings: the names of all settings, in capitals.
    """
    unknown = [
        UnknownName(name, ".env", _closest(name, settings, SIMILAR))
        for name in in_file
        if name.upper() not in settings and not _is_for_compose(name.upper())
    ]
    for name in in_environment:
        if name.upper() in settings or _is_for_compose(name.upper()):
            continue
        if closest := _closest(name, settings, SIMILAR_IN_ENVIRONMENT):
            unknown.append(UnknownName(name, "the environment", closest))
    return unknown


def drop_library_variables(environment: MutableMapping[str, str]) -> dict[str, str]:
    """Remove variables that make libraries fail when they are imported. Call this before the first import of one.

    Returns:
        The names removed so far, each with the reason.
    """
    for name, value in list(environment.items()):
        if reason := _why_dropped(name, value.strip()):
            _dropped[name] = reason
            del environment[name]
    return dict(_dropped)


def _why_dropped(name: str, value: str) -> str | None:
    if name.startswith(SILENT_LIBRARIES):
        return "it has no effect: the service does not use the library"
    if name in NOT_EMPTY and not value:
        return "it is empty, so its default is used"
    if name in WHOLE_SECONDS and not (value.isdecimal() and value.isascii() and int(value[:9]) > 0):
        return "use a whole number of seconds; its default is used"
    return None


def _is_for_compose(name: str) -> bool:
    return name in COMPOSE_NAMES or name.startswith(COMPOSE_PREFIXES)


def _closest(name: str, settings: Collection[str], cutoff: float) -> str | None:
    return next(iter(get_close_matches(name.upper(), settings, 1, cutoff)), None)


def _blank_lines(text: str) -> int:
    """Count the line breaks before the first visible character."""
    return text[: len(text) - len(text.lstrip())].count("\n")
