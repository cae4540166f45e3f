"""All settings of the service: name, default, unit and bounds. Read from the environment and from `.env`."""

import os
from pathlib import Path
from typing import Self

from pydantic import ByteSize, Field, ValidationError, model_validator
from pydantic_settings import SettingsConfigDict

from env_file import EnvFileError, UnknownName, read_env_file, unknown_names
from setting_conflicts import (
    check_closed_routes,
    check_models,
    check_one_of,
    check_prefixes,
    check_public_keys,
    check_shared_results,
)
from setting_errors import SettingsError as SettingsError  # noqa: PLC0414 - re-exported
from setting_errors import explained
from setting_monitoring import MonitoringSettings
from setting_types import (
    Aliases,
    Bytes,
    CacheScope,
    ClosableRoutes,
    Count,
    FilePath,
    Hosts,
    LongSecret,
    Names,
    Networks,
    OptionalBytes,
    OptionalCount,
    OptionalFilePath,
    OptionalSeconds,
    Origins,
    RedisUrl,
    RequiredNames,
    RootPath,
    Seconds,
    Secrets,
    WebAddress,
    WorkerProcesses,
    Workers,
)

HERE = Path(__file__).resolve().parent
IS_INSTALLED = HERE.name in {"site-packages", "dist-packages"}
"""Whether `pip install` put the code here. Otherwise it runs from a clone or an image, with its files beside it."""
ENV_FILE = Path(".env") if IS_INSTALLED else HERE / ".env"
"""The settings file: in the working directory if the service is installed, else beside the code."""
USER_CACHE_DIR = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111 - never raises
BUNDLED_MODELS_DIR = HERE / "models"
BUNDLED_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
PRELOADED_DIR = HERE / "preloaded"
"""Hub models that are part of an image, laid out as in the hub's cache. Nothing writes there."""


class Settings(MonitoringSettings):
    """The service's settings. The environment variable of the same name, in capitals, wins over `.env`."""

    model_config = SettingsConfigDict(
        env_file=ENV_FILE, env_file_encoding="utf-8", env_ignore_empty=True, extra="ignore", frozen=True
    )

    host: str = Field(
        "0.0.0.0",  # noqa: S104 - a server in a container must
        description="Address to listen on, of IPv4 or IPv6. :: means all of both.",
    )
    port: int = Field(8000, ge=1, le=65535, description="TCP port to listen on.")
    allowed_hosts: Hosts = Field(
        (), description="Hosts that requests may name, such as api.example.com or *.example.com. Empty: any."
    )
    root_path: RootPath = Field(
        "", description="What a proxy puts before all paths, such as /embeddings. Paths without it work, too."
    )

    required_models: RequiredNames = Field(
        (BUNDLED_MODEL,),
        description="Models loaded at start. The first is the default for requests that name no model.",
    )
    allowed_models: Names = Field((), description="Models that requests may use. Empty: all models of the catalogue.")
    model_aliases: Aliases = Field(
        (),
        description="Further names of models for clients of other servers: alias=model, separated by commas. "
        "Empty: none.",
    )
    models_dir: FilePath = Field(
        BUNDLED_MODELS_DIR, description="Folder with your own models, each a subfolder with a model.json."
    )
    hub_cache_dir: FilePath = Field(
        USER_CACHE_DIR / "fast-embedding" if IS_INSTALLED else HERE / ".hub_cache",
        description="Folder for models downloaded from the hub.",
    )
    hub_cache_max_size: OptionalBytes = Field(
        None, ge=1, description="Maximum size of HUB_CACHE_DIR, such as 20GB. Empty: all but a tenth of the disk."
    )
    optimised_models_dir: OptionalFilePath = Field(
        None, description="Folder for optimised copies of models. Empty: optimised-models in HUB_CACHE_DIR."
    )
    optimised_models_max_size: Bytes = Field(
        ByteSize(4_000_000_000),
        ge=0,
        description="Maximum size of all optimised copies. One more removes the least recently used. 0: no copies.",
    )
    max_cached_models: Count = Field(
        5, description="Maximum number of models in memory. One more evicts one that few callers use."
    )
    model_cache_ttl: Seconds = Field(
        3600, description="Seconds without use until a model that is not required is evicted."
    )
    cleanup_interval: Seconds = Field(60, description="Seconds between two checks for idle models.")
    model_memory_budget: OptionalBytes = Field(
        None, ge=1, description="Memory for all loaded models together, such as 2GB. Empty: no limit."
    )
    model_retry_pause: Seconds = Field(30, description="Seconds until a model that failed to load is tried again.")

    workers: WorkerProcesses = Field(
        1, description="Worker processes, which share the port, the cores and the lanes. auto: one per 4 usable cores."
    )
    thread_pool_workers: Workers = Field(
        4, description="Inference threads (lanes), at most one per usable core. auto: as many as usable cores."
    )
    micro_batch_tokens: int = Field(
        256, ge=16, le=65536, description="Maximum number of tokens, padding included, in one model run."
    )
    lone_text_memory: Bytes = Field(
        ByteSize(256_000_000),
        ge=0,
        description="Models up to this size, and those with an optimised copy, run one text on up to 8 cores. 0: none.",
    )
    max_queue_seconds: Seconds = Field(
        10,
        description="Maximum amount of queued work, in seconds. One caller may hold 80 % of it; beyond that, a 503.",
    )
    max_bulk_queue_seconds: Seconds = Field(
        60,
        description="The same for bulk requests (more than four micro-batches). One that is alone is always accepted.",
    )
    lane_stuck_seconds: Seconds = Field(
        120, description="Seconds until a model run counts as stuck, and /health/live answers 503 to get a restart."
    )

    result_cache_mb: int = Field(
        64, ge=0, le=1_000_000, description="Megabytes of memory for cached results. 0: none. All workers together."
    )
    result_cache_ttl: OptionalSeconds = Field(
        None, description="Seconds until a result in memory expires. Empty: none expires."
    )
    result_cache_redis: bool = Field(
        default=False, description="Also keep results in the Redis of REDIS_URL, for all replicas and workers."
    )
    result_cache_redis_ttl: Seconds = Field(604_800, description="Seconds until a result in Redis expires.")
    result_cache_redis_timeout: Seconds = Field(
        0.05, description="Seconds to wait for results from Redis. After that, texts are computed."
    )
    cache_key_secret: LongSecret = Field(
        None, description="Secret of the keys of cached results, at least 32 bytes. Empty: a random one per process."
    )
    cache_key_secret_file: OptionalFilePath = Field(
        None, description="File that contains CACHE_KEY_SECRET, instead of it. It is read at start."
    )
    cache_scope: CacheScope = Field(
        None,
        description="Who may get a cached result: shared (any caller) or caller (only the one who sent the text). "
        "Empty: caller if there are keys or tokens, else shared.",
    )

    max_text_length: Count = Field(8192, description="Maximum number of characters in one text.")
    max_batch_size: Count = Field(32, description="Maximum number of texts in one request.")
    max_request_size: Bytes = Field(
        ByteSize(10_000_000), ge=1, description="Maximum size of a request body, such as 10MB or 512KiB."
    )
    request_timeout: Seconds = Field(
        300, description="Maximum seconds for a request. Callers can ask for less with X-Request-Timeout."
    )
    shutdown_timeout: Count = Field(
        30, description="Maximum seconds from the stop signal to the end. Accepted requests are still answered."
    )

    header_timeout: Seconds = Field(10, description="Maximum seconds to receive a request's headers.")
    body_timeout: Seconds = Field(
        60, description="Maximum seconds to receive a request's body, and to send the response."
    )
    keep_alive_timeout: Seconds = Field(
        75, description="Seconds until an idle connection is closed. Use more than any proxy in front does."
    )
    max_header_size: Bytes = Field(
        ByteSize(32_768), ge=1024, description="Maximum size of the request line and headers, such as 16KiB."
    )
    max_connections: Count = Field(
        1000,
        description="Maximum number of connections. One more closes the least active one of the address with most. "
        "All workers together.",
    )
    max_connections_per_address: OptionalCount = Field(
        None,
        ge=1,
        le=1_000_000_000,
        description="Maximum number of connections of one address. Empty: no limit but the above. "
        "All workers together.",
    )

    # Within these bounds all sums of quotas are exact, even in Redis, whose numbers are doubles.
    enable_rate_limit: bool = Field(
        default=False, description="Limit how much each caller may request. Beyond it, callers get a 429."
    )
    rate_limit_requests: int = Field(60, ge=1, le=100_000, description="Requests per caller and window.")
    rate_limit_window: int = Field(60, ge=1, le=86_400, description="Length of the window, in whole seconds.")
    rate_limit_tokens: OptionalCount = Field(
        None, ge=1, le=1_000_000_000, description="Tokens of text per caller and window. Empty: no limit."
    )
    redis_url: RedisUrl | None = Field(
        None,
        description="Redis in which replicas share the quotas, and results with RESULT_CACHE_REDIS. Empty: each "
        "replica counts on its own.",
    )
    redis_url_file: OptionalFilePath = Field(
        None, description="File that contains REDIS_URL, instead of it. It is read at start."
    )
    redis_timeout: Seconds = Field(
        0.25, description="Seconds to wait for Redis. After that, quotas are counted in memory until it answers again."
    )
    trusted_proxies: Networks = Field(
        (), description="Addresses and networks of proxies whose X-Forwarded-For is trusted. Empty: none."
    )

    ipv4_caller_prefix: int = Field(
        32, ge=8, le=32, description="Leading bits of an IPv4 address that identify a caller without a key."
    )
    ipv6_caller_prefix: int = Field(
        64, ge=32, le=128, description="Leading bits of an IPv6 address that identify a caller without a key."
    )
    ipv6_wide_caller_prefix: int = Field(
        48, ge=16, le=128, description="Leading bits of the IPv6 networks whose callers also share a larger quota."
    )

    enable_cors: bool = Field(default=True, description="Allow browsers to call the service from other origins.")
    cors_origins: Origins = Field(("*",), description="Origins that may call, such as https://app.example. *: any.")
    enable_page: bool = Field(default=True, description="Serve the page with charts and the playground at /.")
    enable_docs: bool = Field(default=True, description="Serve the API docs: /docs for people, /schema for programs.")

    api_keys: Secrets = Field((), description="API keys, each written key, name:key or name:key:permission+permission.")
    api_keys_file: OptionalFilePath = Field(
        None, description="File with API keys, one per line. It is read again when it changes."
    )
    jwt_secret: LongSecret = Field(None, description="Secret for HS256 tokens, at least 32 bytes.")
    jwt_secret_file: OptionalFilePath = Field(
        None, description="File that contains JWT_SECRET, instead of it. It is read at start."
    )
    jwt_public_key_file: OptionalFilePath = Field(
        None, description="PEM file with the public key or certificate for RS256 or ES256 tokens."
    )
    jwt_jwks_url: WebAddress = Field(
        None, description="URL of the issuer's public keys (JWKS) for RS256 and ES256 tokens, instead of that file."
    )
    jwt_audience: Names = Field(
        (), description="Accepted audiences (aud) of tokens. Empty: only tokens without an audience."
    )
    jwt_issuer: Names = Field((), description="Accepted issuers (iss) of tokens. Empty: any.")
    jwt_leeway: float = Field(
        30, ge=0, le=3600, allow_inf_nan=False, description="Seconds by which an issuer's clock may differ."
    )
    closed_routes: ClosableRoutes = Field(
        (), description="Routes that need a key in addition to the embedding routes: metrics, docs, models."
    )

    @property
    def key_sources(self) -> tuple[str, ...]:
        """Names of the settings that provide keys or tokens; if empty, anyone may call."""
        sources = (
            *("api_keys", "api_keys_file"),
            *("jwt_secret", "jwt_secret_file", "jwt_public_key_file", "jwt_jwks_url"),
        )
        return tuple(name.upper() for name in sources if getattr(self, name))

    @property
    def is_cache_per_caller(self) -> bool:
        """Whether no caller gets a result that was kept for another one."""
        return (self.cache_scope or ("caller" if self.key_sources else "shared")) == "caller"

    def without_api_keys(self) -> Self:
        """Return a copy without the API keys, for parts that run long: only hashes of keys stay in memory."""
        return self.model_copy(update={"api_keys": ()})

    @model_validator(mode="after")
    def _check_conflicts(self) -> Self:
        check_models(self.required_models, self.allowed_models, self.model_aliases, max_cached=self.max_cached_models)
        if "ipv6_wide_caller_prefix" in self.model_fields_set:
            check_prefixes(wide=self.ipv6_wide_caller_prefix, narrow=self.ipv6_caller_prefix)
        check_closed_routes(self.closed_routes, self.key_sources)
        check_public_keys(file=self.jwt_public_key_file, url=self.jwt_jwks_url)
        for name in ("jwt_secret", "redis_url", "cache_key_secret"):
            check_one_of({key.upper(): getattr(self, key) for key in (name, f"{name}_file")})
        check_shared_results(
            is_wanted=self.result_cache_redis,
            has_redis=(self.redis_url, self.redis_url_file) != (None, None),
            has_secret=(self.cache_key_secret, self.cache_key_secret_file) != (None, None),
        )
        return self


SETTING_NAMES = tuple(name.upper() for name in Settings.model_fields)
"""The settings as they are written in the environment."""


def load_settings(**overrides: object) -> Settings:
    """Read the settings.

    Args:
        overrides: values that win over the environment; `_env_file` is a path instead of `ENV_FILE`, or None.

    Raises:
        SettingsError: `.env` cannot be read, a value is not allowed, or two settings contradict each other.
    """
    env_file = overrides.setdefault("_env_file", ENV_FILE)
    try:
        in_file = read_env_file(env_file) if isinstance(env_file, Path) else {}
        return Settings(**overrides)  # type: ignore[arg-type]  # pydantic checks the values
    except EnvFileError as error:
        raise SettingsError(str(error)) from None
    except ValidationError as error:
        typed = {name.upper(): value for name, value in [*in_file.items(), *os.environ.items()] if value}
        raise SettingsError("; ".join(explained(detail, typed) for detail in error.errors())) from None


def find_unknown_names() -> list[UnknownName]:
    """Find names without effect in `.env`, and mistyped settings in the environment.

    Raises:
        EnvFileError: `.env` cannot be read.
    """
    return unknown_names(read_env_file(ENV_FILE), os.environ, SETTING_NAMES)
