"""Every setting of the service: its name, default, unit and bounds, read from the environment or from `.env`."""

import errno
import json
import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ByteSize,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

HERE = Path(__file__).resolve().parent
BUNDLED_MODELS_DIR = HERE / "models"
PRELOADED_DIR = HERE / "preloaded"
"""Models of the hub that came with an image, in the layout of its cache; nobody writes there."""
BUNDLED_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
MAX_COUNT = 1_000_000_000
"""Of seconds or of anything that is counted: as good as without end, and what timers and JSON can still hold."""
MAX_BYTES = 1_000_000_000_000_000
"""A petabyte, for the same reason."""


class SettingsError(Exception):
    """The settings cannot be used; the message is one line for the person who starts the service."""


def _parts(value: object) -> object:
    """Read a list given as a JSON array or as names between commas; blanks are dropped."""
    if not isinstance(value, str):
        return value
    try:
        parts = json.loads(value) if value.lstrip().startswith("[") else value.split(",")
    except (ValueError, RecursionError):
        parts = None
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        message = 'write names between commas, or a JSON list of strings only, such as ["a", "b"]'
        raise ValueError(message)
    return tuple(part.strip() for part in parts if part.strip())


def _names(value: object) -> object:
    """The same, without duplicates."""
    parts = _parts(value)
    return tuple(dict.fromkeys(parts)) if isinstance(value, str) and isinstance(parts, tuple) else parts


def _at_least_one(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        message = "name at least 1 model, with commas between several"
        raise ValueError(message)
    return names


def _origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#\s]+", origin):
            message = f"{origin!r} is no origin; write such as https://app.example, without a path, or *"
            raise ValueError(message)
    return origins


def _empty_is_none(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


def _networks(value: object) -> object:
    """Read addresses and networks, listed as `_names` are."""
    names = _names(value)
    return tuple(map(_network, names)) if isinstance(names, tuple) else names


def _network(name: Any) -> IPv4Network | IPv6Network:
    try:
        return ip_network(name)
    except ValueError as error:
        message = f"write addresses and networks between commas, such as 10.0.0.7, 10.1.0.0/16 or fd00::/8 ({error})"
        raise ValueError(message) from None


def _redis_url(url: SecretStr) -> SecretStr:
    try:
        parts = urlsplit(url.get_secret_value())
        is_sound = bool(parts.path if parts.scheme == "unix" else parts.hostname and parts.port != 0)
    except ValueError:  # a port that is no port; the message may hold the password
        is_sound = False
    if not is_sound or parts.scheme not in {"redis", "rediss", "unix"}:
        message = (
            "write redis://host:port/database, rediss:// for TLS, or unix:///path; :password@ may stand before host"
        )
        raise ValueError(message)
    return url


def _long_enough(secret: SecretStr | None) -> SecretStr | None:
    """RFC 7518, section 3.2: a key of HS256 has at least as many bits as its hash."""
    if secret is not None and len(secret.get_secret_value().encode()) < MIN_SECRET_BYTES:
        message = f"give at least {MIN_SECRET_BYTES} bytes, such as `openssl rand -hex 32` makes"
        raise ValueError(message)
    return secret


def _web_address(url: SecretStr | None) -> SecretStr | None:
    if url is None:
        return None
    try:
        parts = urlsplit(url.get_secret_value())
        is_sound = bool(parts.scheme in {"https", "http"} and parts.hostname and parts.port != 0)
        is_sound = is_sound and parts.username is None and parts.password is None
    except ValueError:  # the message may hold the password
        is_sound = False
    if not is_sound:
        message = "write an address such as https://login.example/jwks.json, without a user's name or password"
        raise ValueError(message)
    return url


def _addressable(path: Path) -> Path:
    """Refuse what no file or folder can be called; one that is not there yet, or may not be read, is another matter."""
    try:
        path.lstat()
    except (ValueError, OSError) as error:
        if isinstance(error, ValueError) or error.errno == errno.ENAMETOOLONG:
            message = "this is no address of a file or folder, or one too long"
            raise ValueError(message) from None
    return path


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


MIN_SECRET_BYTES = 32
"""Bytes of JWT_SECRET at least."""

Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)]
Origins = Annotated[Names, AfterValidator(_origins)]
Networks = Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode, BeforeValidator(_networks)]
RedisUrl = Annotated[SecretStr, AfterValidator(_redis_url)]
LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_upper)]
LogFormat = Annotated[Literal["auto", "json", "console"], BeforeValidator(_lower)]
Secrets = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_parts)]
JwtSecret = Annotated[SecretStr | None, BeforeValidator(_empty_is_none), AfterValidator(_long_enough)]
WebAddress = Annotated[SecretStr | None, BeforeValidator(_empty_is_none), AfterValidator(_web_address)]
Routes = Annotated[
    tuple[Literal["metrics", "docs", "models"], ...], NoDecode, BeforeValidator(_names), BeforeValidator(_lower)
]
Seconds = Annotated[float, Field(gt=0, le=MAX_COUNT, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0, le=MAX_COUNT)]
Bytes = Annotated[ByteSize, Field(le=MAX_BYTES)]
OptionalCount = Annotated[int | None, BeforeValidator(_empty_is_none)]
OptionalBytes = Annotated[Bytes | None, BeforeValidator(_empty_is_none)]
Folder = Annotated[Path, AfterValidator(_addressable)]
OptionalFile = Annotated[Folder | None, BeforeValidator(_empty_is_none)]


class Settings(BaseSettings):
    """The service's settings; environment variables of the same name in capitals win over `.env`."""

    model_config = SettingsConfigDict(
        env_file=HERE / ".env", env_file_encoding="utf-8", env_ignore_empty=True, extra="ignore", frozen=True
    )

    host: str = Field("0.0.0.0", description="Address to listen on.")  # noqa: S104 - a server in a container must
    port: int = Field(8000, ge=1, le=65535, description="TCP port to listen on.")
    debug: bool = Field(default=False, description="Log at DEBUG level, whatever LOG_LEVEL says.")
    log_level: LogLevel = Field("INFO", description="Least level that is logged.")
    log_format: LogFormat = Field("auto", description="`json`, `console`, or `auto`: console on a terminal, else json.")

    required_models: Annotated[Names, AfterValidator(_at_least_one)] = Field(
        (BUNDLED_MODEL,), description="Models loaded at start; the first is the default of requests."
    )
    allowed_models: Names = Field((), description="Models that may be used; empty: every model of the catalogue.")
    models_dir: Folder = Field(BUNDLED_MODELS_DIR, description="Folder with your own models, each with a model.json.")
    hub_cache_dir: Folder = Field(HERE / ".hub_cache", description="Where models downloaded from the hub are kept.")
    max_cached_models: Count = Field(5, description="Models held in memory at most.")
    model_cache_ttl: Seconds = Field(3600, description="Seconds after its last use until a model is dropped.")
    cleanup_interval: Seconds = Field(60, description="Seconds between two looks for idle models.")
    model_memory_budget: OptionalBytes = Field(
        None, ge=1, description="Memory for all loaded models together, such as 2GB; empty: no bound."
    )
    model_retry_pause: Seconds = Field(30, description="Seconds until a model that failed to load is tried again.")

    thread_pool_workers: Count = Field(4, description="Inference lanes; never more than usable cores are used.")
    micro_batch_tokens: int = Field(256, ge=16, le=65536, description="Padded tokens in one model run at most.")
    lone_text_memory: Bytes = Field(
        ByteSize(256_000_000),
        ge=0,
        description="Models of up to this size get a second copy that gives all cores to a lone text; 0: none does.",
    )
    max_queue_seconds: Seconds = Field(10, description="Work that may wait, in seconds, before requests get a 503.")

    lane_stuck_seconds: Seconds = Field(
        120, description="Seconds in one model run after which /health/live answers 503, so that a restart follows."
    )

    max_text_length: Count = Field(8192, description="Characters of one text at most.")
    max_batch_size: Count = Field(32, description="Texts of one request at most.")
    max_request_size: Bytes = Field(
        ByteSize(10_000_000), ge=1, description="Bytes of one request body at most, such as 10MB or 512KiB."
    )
    request_timeout: Seconds = Field(300, description="Seconds a request may take; callers may ask for less.")
    shutdown_timeout: Count = Field(30, description="Seconds from signal to end; accepted requests are answered.")

    header_timeout: Seconds = Field(10, description="Seconds in which a request's headers must be there.")
    body_timeout: Seconds = Field(60, description="Seconds that a caller gets to send a body, and to take an answer.")
    keep_alive_timeout: Seconds = Field(
        75, description="Seconds until an idle connection ends; more than any proxy in front keeps one."
    )
    max_header_size: Bytes = Field(
        ByteSize(32_768), ge=1024, description="Bytes of request line and headers at most, such as 16KiB."
    )
    max_connections: Count = Field(
        1000, description="Connections at most; the one that has kept the service waiting longest gives way."
    )

    # With these bounds all sums of the limits are exact, in Redis too, whose numbers are doubles.
    enable_rate_limit: bool = Field(default=False, description="Limit how much each caller may ask; 429 above that.")
    rate_limit_requests: int = Field(100, ge=1, le=100_000, description="Requests of a caller per window.")
    rate_limit_window: int = Field(60, ge=1, le=86_400, description="The window of the limits, in whole seconds.")
    rate_limit_tokens: OptionalCount = Field(
        None, ge=1, le=1_000_000_000, description="Tokens of text of a caller per window; empty: any number."
    )
    redis_url: RedisUrl | None = Field(
        None, description="Redis that replicas share the limits by; empty: each has its own."
    )
    redis_timeout: Seconds = Field(
        0.25, description="Seconds a request waits for Redis, before memory stands in for it."
    )
    trusted_proxies: Networks = Field(
        (), description="Addresses and networks of the proxies whose X-Forwarded-For is believed; empty: none."
    )

    enable_cors: bool = Field(default=True, description="Let browsers of other origins call the service.")
    cors_origins: Origins = Field(("*",), description="Origins that may call; `*` is any.")
    enable_metrics: bool = Field(default=True, description="Serve GET /metrics; false answers 403.")

    api_keys: Secrets = Field((), description="Keys of callers: `key`, `name:key` or `name:key:scope+scope`.")
    api_keys_file: OptionalFile = Field(
        None, description="File with such keys, one per line; read again when it changes."
    )
    jwt_secret: JwtSecret = Field(None, description="Secret of HS256 tokens, 32 bytes or more.")
    jwt_public_key_file: OptionalFile = Field(
        None, description="PEM file with the public key of RS256 or ES256 tokens."
    )
    jwt_jwks_url: WebAddress = Field(
        None, description="Address of the public keys of RS256 and ES256 tokens, as a JWKS."
    )
    jwt_audience: Names = Field((), description="Audiences of tokens that are taken; empty: tokens without one.")
    jwt_issuer: Names = Field((), description="Issuers of tokens that are taken; empty: any.")
    jwt_leeway: float = Field(
        30, ge=0, le=3600, allow_inf_nan=False, description="Seconds by which the clock of a token's issuer may differ."
    )
    closed_routes: Routes = Field((), description="Routes that need a key, too: `metrics`, `docs`, `models`.")

    @property
    def key_sources(self) -> tuple[str, ...]:
        """The settings that say who may call; none: anyone may."""
        sources = ("api_keys", "api_keys_file", "jwt_secret", "jwt_public_key_file", "jwt_jwks_url")
        return tuple(name.upper() for name in sources if getattr(self, name))

    @model_validator(mode="after")
    def _has_no_contradiction(self) -> Self:
        if len(self.required_models) > self.max_cached_models:
            message = (
                f"REQUIRED_MODELS names {len(self.required_models)} models, "
                f"but MAX_CACHED_MODELS={self.max_cached_models} holds fewer; raise it or require fewer"
            )
            raise ValueError(message)
        allowed = {name.lower() for name in self.allowed_models}
        if allowed and (refused := [name for name in self.required_models if name.lower() not in allowed]):
            message = f"REQUIRED_MODELS names {refused}, which ALLOWED_MODELS does not; add it there"
            raise ValueError(message)
        return self

    def without_api_keys(self) -> Self:
        """The same for parts that run long: their keys are kept as hashes only."""
        return self.model_copy(update={"api_keys": ()})

    @model_validator(mode="after")
    def _says_who_may_call(self) -> Self:
        if self.closed_routes and not self.key_sources:
            message = (
                "CLOSED_ROUTES closes routes, but nobody has a key; set API_KEYS, API_KEYS_FILE, JWT_SECRET, "
                "JWT_PUBLIC_KEY_FILE or JWT_JWKS_URL"
            )
            raise ValueError(message)
        if self.jwt_public_key_file and self.jwt_jwks_url:
            message = (
                "JWT_PUBLIC_KEY_FILE and JWT_JWKS_URL both give the key of RS256 and ES256 tokens; set one of them"
            )
            raise ValueError(message)
        return self


SECRETS = frozenset({"redis_url", "api_keys", "jwt_secret", "jwt_jwks_url"})
"""Settings whose values are never repeated, not even when they are wrong."""


def load_settings(**overrides: object) -> Settings:
    """Read the settings.

    Raises:
        SettingsError: a setting has a value that is not allowed, or two contradict each other.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]  # the values are checked by pydantic
    except (UnicodeDecodeError, OSError) as error:
        message = f"the file .env cannot be read ({getattr(error, 'strerror', None) or 'it is not UTF-8'})"
        raise SettingsError(message) from None
    except ValidationError as error:
        raise SettingsError("; ".join(_told(detail) for detail in error.errors())) from None


def _told(error: ErrorDetails) -> str:
    """One line: the setting, its value, and what is allowed."""
    message = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return message
    name = str(error["loc"][0])
    given = "" if name in SECRETS else f"={error['input']!r}"
    return f"{name.upper()}{given} is not allowed: {message[:1].lower()}{message[1:]}"
