"""Types of settings: how each kind of value is written in the environment, and which values it accepts."""

import errno
import json
import re
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, cast
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, PlainValidator, SecretStr
from pydantic_settings import NoDecode

MAX_COUNT = 1_000_000_000
"""Largest number of seconds or items: practically unlimited, and small enough for timers and for JSON."""
MAX_BYTES = 1_000_000_000_000_000
"""Largest size: 1 petabyte, for the same reason."""
MAX_WORKERS = 64
"""Largest number of worker processes."""
MIN_SECRET_BYTES = 32
"""Smallest JWT_SECRET and CACHE_KEY_SECRET. RFC 7518, section 3.2: a key of HS256 has as many bits as the hash."""

DATABASE = re.compile(r"/?|/\d{1,9}", re.ASCII)
"""The path of a Redis URL. The client takes others for database 0, or reads `/1/2` as 12."""
ROOT_PATH = re.compile(r"(?:/[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}){1,8}")
"""Segments that no client, proxy or browser encodes or resolves."""


def _split_list(value: object) -> object:
    """Split a JSON array or comma-separated names into a tuple; drop blank items."""
    if not isinstance(value, str):
        return value
    try:
        items = json.loads(value) if value.lstrip().startswith("[") else value.split(",")
    except (ValueError, RecursionError):
        items = None
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise ValueError('separate names with commas, or write a JSON list of strings such as ["a", "b"]')
    return tuple(item.strip() for item in items if item.strip())


def _split_names(value: object) -> object:
    """Split a list as `_split_list` does, and drop duplicates."""
    names = _split_list(value)
    return tuple(dict.fromkeys(names)) if isinstance(value, str) and isinstance(names, tuple) else names


def _split_aliases(value: object) -> object:
    """Split a JSON object, or pairs like `alias=model` separated by commas, into a tuple of pairs; drop blank items."""
    if not isinstance(value, str):
        return value
    try:
        if value.lstrip().startswith("{"):
            pairs = [tuple(pair) for pair in json.loads(value, object_pairs_hook=list)]
        else:
            items = cast("tuple[str, ...]", _split_list(value))
            pairs = [(alias, model) for alias, _, model in (item.partition("=") for item in items)]
        stripped = tuple((alias.strip(), model.strip()) for alias, model in pairs)
    except (ValueError, RecursionError, AttributeError):
        stripped = (("", ""),)
    if not all(alias and model for alias, model in stripped):
        raise ValueError(
            'write alias=model, separated by commas, or a JSON object such as {"alias": "model"}; each model by its '
            "real name"
        )
    return stripped


def _split_networks(value: object) -> object:
    names = _split_names(value)
    return tuple(map(_network, names)) if isinstance(names, tuple) else names


def _network(name: Any) -> IPv4Network | IPv6Network:
    try:
        return ip_network(name)
    except ValueError as error:
        message = f"use addresses and networks like 10.0.0.7, 10.1.0.0/16 or fd00::/8, separated by commas ({error})"
        raise ValueError(message) from None


def _require_a_name(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise ValueError("name at least 1 model; separate several with commas")
    return names


def _check_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#\s]+", origin):
            message = f"{origin!r} is not a valid origin. Use a form like https://app.example (no path), or *"
            raise ValueError(message)
    return origins


def _check_hosts(hosts: tuple[str, ...]) -> tuple[str, ...]:
    return () if "*" in hosts else tuple(map(_host, hosts))


def _host(text: str) -> str:
    """Return a name in lower case and ASCII, or an address or network in its canonical form."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        return str(ip_network(bare))
    except ValueError:
        name = bare.lower().rstrip(".")
    try:
        encoded = name.removeprefix("*.").encode("idna").decode()
    except UnicodeError:
        encoded = ""
    if not re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", encoded):
        message = (
            f"{text!r} is not a host. Use names such as api.example.com, *.example.com for all names below it, "
            "addresses, or networks such as 10.0.0.0/8; without a scheme and a port"
        )
        raise ValueError(message)
    return f"*.{encoded}" if name.startswith("*.") else encoded


def _empty_is_none(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


def _check_size(value: object) -> object:
    """Reject what pydantic reads only the beginning of: it takes '1,5GB' for 1 byte, and '10,000' for 10."""
    if isinstance(value, str) and not re.fullmatch(r"\s*-?\d*\.?\d+\s*[A-Za-z]*\s*", value):
        raise ValueError("use a number and a unit, such as 1.5GB, 512KiB or 10000000")
    return value


def _split_url(url: str, *schemes: str) -> SplitResult | None:
    """Return the parts of *url*, or None if it is malformed; never raise, as an error text may hold the password."""
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in schemes and parts.port != 0  # reading the port may raise, too
    except ValueError:
        return None
    return parts if is_valid else None


def check_redis_url(url: str) -> None:
    """Raise a ValueError, which does not contain *url*, if it is not the address of a Redis server."""
    parts = _split_url(url, "redis", "rediss", "unix")
    is_unix = parts is not None and parts.scheme == "unix"
    if parts is None or not (parts.path if is_unix else parts.hostname and DATABASE.fullmatch(parts.path)):
        message = "use redis://host:port/database, rediss:// for TLS, or unix:///path; put :password@ before the host"
        raise ValueError(message)


def _check_web_address(url: str) -> None:
    parts = _split_url(url, "https", "http")
    if parts is None or not parts.hostname or (parts.username, parts.password) != (None, None):
        raise ValueError("use an address like https://login.example/jwks.json, without a user name or password")


def check_secret_length(secret: str) -> None:
    """Raise a ValueError, which does not contain *secret*, if it is too short for a key."""
    if len(secret.encode()) < MIN_SECRET_BYTES:
        message = f"give at least {MIN_SECRET_BYTES} bytes, such as the output of `openssl rand -hex 32`"
        raise ValueError(message)


def _check_secret(check: Callable[[str], None]) -> AfterValidator:
    """Return a validator that checks the content of a secret."""

    def validate(secret: SecretStr) -> SecretStr:
        check(secret.get_secret_value())
        return secret

    return AfterValidator(validate)


def _check_path(path: Path) -> Path:
    """Reject what cannot be the name of any file or folder; a missing or unreadable one is accepted here."""
    try:
        path.lstat()
    except (ValueError, OSError) as error:
        if isinstance(error, ValueError) or error.errno == errno.ENAMETOOLONG:
            raise ValueError("this is not a valid path, or it is too long") from None
    return path


def _read_workers(value: object) -> object:
    """Read a number of threads, or `auto` in any case."""
    word = str(value).strip().lower()
    if word == "auto":
        return word
    try:
        number = int(word)
    except ValueError:
        raise ValueError("use a whole number, or auto for one per usable core") from None
    if not 0 < number <= MAX_COUNT:
        message = f"use a whole number greater than 0 and less than or equal to {MAX_COUNT}, or auto"
        raise ValueError(message)
    return number


def _read_worker_processes(value: object) -> object:
    """Read a number of worker processes, or `auto` in any case."""
    word = str(value).strip().lower()
    if word == "auto":
        return word
    if not re.fullmatch(r"\d{1,9}", word, re.ASCII) or not 0 < int(word) <= MAX_WORKERS:
        message = f"use a whole number from 1 to {MAX_WORKERS}, or auto"
        raise ValueError(message)
    return int(word)


def _check_root_path(path: str) -> str:
    """Return *path* without a slash at its end."""
    found = path.rstrip("/")
    if found and not ROOT_PATH.fullmatch(found):
        message = "use a path such as /embeddings: of letters, digits, -, _ and ., without a host"
        raise ValueError(message)
    return found


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_names)]
RequiredNames = Annotated[Names, AfterValidator(_require_a_name)]
Aliases = Annotated[tuple[tuple[str, str], ...], NoDecode, BeforeValidator(_split_aliases)]
Origins = Annotated[Names, AfterValidator(_check_origins)]
Networks = Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode, BeforeValidator(_split_networks)]
Hosts = Annotated[Names, AfterValidator(_check_hosts)]
ClosableRoutes = Annotated[
    tuple[Literal["metrics", "docs", "models"], ...], NoDecode, BeforeValidator(_split_names), BeforeValidator(_lower)
]
RootPath = Annotated[str, AfterValidator(_check_root_path)]
LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_upper)]
CacheScope = Annotated[Literal["shared", "caller"] | None, BeforeValidator(_empty_is_none), BeforeValidator(_lower)]
LogFormat = Annotated[Literal["auto", "json", "console"], BeforeValidator(_lower)]
LogClient = Annotated[Literal["name", "address", "both", "none"], BeforeValidator(_lower)]

Seconds = Annotated[float, Field(gt=0, le=MAX_COUNT, allow_inf_nan=False)]
OptionalSeconds = Annotated[Seconds | None, BeforeValidator(_empty_is_none)]
Count = Annotated[int, Field(gt=0, le=MAX_COUNT)]
Workers = Annotated[int | Literal["auto"], PlainValidator(_read_workers)]
WorkerProcesses = Annotated[int | Literal["auto"], PlainValidator(_read_worker_processes)]
OptionalCount = Annotated[int | None, BeforeValidator(_empty_is_none)]
Bytes = Annotated[ByteSize, BeforeValidator(_check_size), Field(le=MAX_BYTES)]
OptionalBytes = Annotated[Bytes | None, BeforeValidator(_empty_is_none)]
FilePath = Annotated[Path, AfterValidator(_check_path)]
OptionalFilePath = Annotated[FilePath | None, BeforeValidator(_empty_is_none)]

Secrets = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split_list)]
LongSecret = Annotated[Annotated[SecretStr, _check_secret(check_secret_length)] | None, BeforeValidator(_empty_is_none)]
RedisUrl = Annotated[SecretStr, _check_secret(check_redis_url)]
WebAddress = Annotated[Annotated[SecretStr, _check_secret(_check_web_address)] | None, BeforeValidator(_empty_is_none)]
