"""Builds the parts that authenticate callers and count their quotas, from the settings."""

import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import structlog

from access.api_keys import STABLE_S, KeyFormatError, KeyRing, read_entries, reason_of
from access.principals import ADMIN, NoTokens, TokenVerifier
from access.quotas import MemoryQuotas, NoQuotas, QuotaStore, quotas_of
from access.worker_quotas import WorkerQuotas
from assembly.secret_files import jwt_secret, redis_url, unknown_redis_option
from config import Settings, SettingsError
from host.message_channel import MessageChannel

UNTERMINATED = (
    f"API_KEYS_FILE does not end with a line break: changes are used only after {STABLE_S:.0f} s; end its last line"
)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Access:
    """The configured keys and tokens, and the permissions that require them.

    Attributes:
        keys: finds the principal of an API key.
        tokens: verifies tokens.
        sources: names of the settings that define keys or tokens; empty: every route is open.
        protected: the permissions that require a key or token.
        is_exposed: every route is open, and HOST is reachable from other machines.
    """

    keys: KeyRing
    tokens: TokenVerifier
    sources: tuple[str, ...]
    protected: frozenset[str]
    is_exposed: bool

    @property
    def advice(self) -> str | None:
        """What to change in the key file, in words for the operator; None: nothing."""
        return UNTERMINATED if self.keys.is_unterminated else None

    @asynccontextmanager
    async def lifespan(self, _: object) -> AsyncIterator[None]:
        """At the start, warn of keys that are missing or may be cut off; at the end, cancel fetches in flight."""
        if self.advice:
            log.warning("api_keys_unterminated", advice=self.advice)
        if self.is_exposed:
            log.warning(
                "service_open", advice="anyone who reaches HOST may call; set API_KEYS, or a HOST such as 127.0.0.1"
            )
        try:
            yield
        finally:
            await self.tokens.aclose()


def read_access(settings: Settings) -> Access:
    """Read keys and the sources of tokens from *settings* and the files that they name.

    Raises:
        SettingsError: a key or a file cannot be used; the message contains no part of a key.
    """
    sources = settings.key_sources
    return Access(
        keys=_keys(settings),
        tokens=_tokens(settings),
        sources=sources,
        protected=frozenset({"embed", ADMIN, *settings.closed_routes} if sources else ()),
        is_exposed=not sources and not is_loopback(settings.host),
    )


def quota_store(settings: Settings, *, supervisor: MessageChannel | None = None) -> QuotaStore:
    """Return the store that counts requests and tokens per caller. It opens no socket before it runs.

    Args:
        settings: say what is counted, and where.
        supervisor: leads to the process that counts for all workers without Redis; None: this is the only process.

    Raises:
        SettingsError: REDIS_URL has an option that the client does not support, or its file cannot be used.
    """
    if not settings.enable_rate_limit:
        return NoQuotas()
    quotas = quotas_of(
        requests=settings.rate_limit_requests, tokens=settings.rate_limit_tokens, window_s=settings.rate_limit_window
    )
    memory = MemoryQuotas(quotas)
    if (url := redis_url(settings)) is None:
        return memory if supervisor is None else WorkerQuotas(quotas, channel=supervisor, memory=memory)
    from access.redis_quotas import RedisQuotas  # noqa: PLC0415 - 0.2 s of import, only paid with Redis

    try:
        return RedisQuotas(quotas, url=url, memory=memory, timeout_s=settings.redis_timeout)
    except ValueError:
        raise SettingsError(unknown_redis_option(settings)) from None


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches *host*, an address or a name."""
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return host.lower().rstrip(".") == "localhost"
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def _keys(settings: Settings) -> KeyRing:
    try:
        entries = read_entries(key.get_secret_value() for key in settings.api_keys)
        from_settings = KeyRing(entries)
    except KeyFormatError as error:
        raise SettingsError(f"API_KEYS: {error}") from None
    if settings.api_keys_file is None:
        return from_settings
    try:
        return KeyRing(entries, file=settings.api_keys_file)
    except (OSError, KeyFormatError) as error:
        raise SettingsError(f"API_KEYS_FILE: {reason_of(error)}") from None


def _tokens(settings: Settings) -> TokenVerifier:
    if not any(source.startswith("JWT_") for source in settings.key_sources):
        return NoTokens()
    # Imported here: a service without tokens starts faster without these libraries.
    from access.jwks import Jwks, fetch_document  # noqa: PLC0415
    from access.jwt_tokens import (  # noqa: PLC0415
        JwtVerifier,
        KeySource,
        OneKey,
        SigningKeyError,
        algorithm_of,
        read_public_key,
        secret_key,
    )

    sources: dict[str, KeySource] = {}
    if (secret := jwt_secret(settings)) is not None:
        try:
            sources["HS256"] = OneKey(secret_key(secret))
        except SigningKeyError as error:
            name = "JWT_SECRET" if settings.jwt_secret_file is None else "JWT_SECRET_FILE"
            raise SettingsError(f"{name}: {error}") from None
    if settings.jwt_public_key_file is not None:
        try:
            algorithm, key = read_public_key(settings.jwt_public_key_file)
        except (OSError, SigningKeyError) as error:
            raise SettingsError(f"JWT_PUBLIC_KEY_FILE: {reason_of(error)}") from None
        sources[algorithm] = OneKey(key)
    if settings.jwt_jwks_url is not None:
        fetch = partial(fetch_document, settings.jwt_jwks_url.get_secret_value())
        jwks = Jwks(fetch, algorithm_of=algorithm_of)
        sources |= {"RS256": jwks, "ES256": jwks}
    return JwtVerifier(
        sources, audiences=settings.jwt_audience, issuers=settings.jwt_issuer, leeway_s=settings.jwt_leeway
    )
