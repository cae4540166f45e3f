"""Who may call, and how much: from the settings to the parts that tell it."""

import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import structlog

from access.api_keys import KeyFormatError, KeyRing, read_entries, why
from access.principals import NoTokens, TokenReader
from access.quotas import MemoryQuotas, NoQuotas, QuotaStore, quotas_of
from config import Settings, SettingsError

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Access:
    """Who may call what.

    Attributes:
        sources: the settings that say it; none: anyone may call everything.
        closed: what routes are closed by, as `web.authentication.AuthenticationMiddleware` takes it.
        is_exposed: anyone may call, from other machines, too.
    """

    keys: KeyRing
    tokens: TokenReader
    sources: tuple[str, ...]
    closed: frozenset[str]
    is_exposed: bool

    @asynccontextmanager
    async def lifespan(self, _: object) -> AsyncIterator[None]:
        """Say once if everyone is let in, and end at the end what is under way."""
        if self.is_exposed:
            log.warning(
                "service_open", advice="anyone who reaches HOST may call; set API_KEYS, or a HOST such as 127.0.0.1"
            )
        try:
            yield
        finally:
            await self.tokens.aclose()


def read_access(settings: Settings) -> Access:
    """Read the keys.

    Raises:
        SettingsError: keys, or a file of keys, cannot be used; the message holds no part of a key.
    """
    sources = settings.key_sources
    return Access(
        keys=_keys(settings),
        tokens=_tokens(settings),
        sources=sources,
        closed=frozenset({"embed", *settings.closed_routes} if sources else ()),
        is_exposed=not sources and not is_loopback(settings.host),
    )


def allowances_of(settings: Settings) -> QuotaStore:
    """What counts how much callers ask; no socket is opened before it runs.

    Raises:
        SettingsError: REDIS_URL has an option that the client does not know.
    """
    if not settings.enable_rate_limit:
        return NoQuotas()
    quotas = quotas_of(
        requests=settings.rate_limit_requests, tokens=settings.rate_limit_tokens, window_s=settings.rate_limit_window
    )
    memory = MemoryQuotas(quotas)
    if settings.redis_url is None:
        return memory
    from access.redis_quotas import RedisQuotas  # noqa: PLC0415 - 0.2 s that only those pay who use it

    try:
        return RedisQuotas(
            quotas, url=settings.redis_url.get_secret_value(), memory=memory, patience_s=settings.redis_timeout
        )
    except (ValueError, TypeError):
        message = "REDIS_URL is not allowed: it has an option that the Redis client does not know"
        raise SettingsError(message) from None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches *host*, an address or a name."""
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
        settled = KeyRing(entries)
    except KeyFormatError as error:
        raise SettingsError(f"API_KEYS: {error}") from None
    if settings.api_keys_file is None:
        return settled
    try:
        return KeyRing(entries, file=settings.api_keys_file)
    except (OSError, KeyFormatError) as error:
        raise SettingsError(f"API_KEYS_FILE: {why(error)}") from None


def _tokens(settings: Settings) -> TokenReader:
    if not any(source.startswith("JWT_") for source in settings.key_sources):
        return NoTokens()
    # Who takes no tokens starts sooner without the libraries behind these.
    from access.jwks import Jwks, fetch_document  # noqa: PLC0415
    from access.jwt_tokens import KeyFileError, KeySource, OneKey, Tokens, algorithm_of, read_public_key, secret_key  # noqa: PLC0415

    sources: dict[str, KeySource] = {}
    if settings.jwt_secret is not None:
        try:
            sources["HS256"] = OneKey(secret_key(settings.jwt_secret.get_secret_value()))
        except KeyFileError as error:
            raise SettingsError(f"JWT_SECRET: {error}") from None
    if settings.jwt_public_key_file is not None:
        try:
            algorithm, key = read_public_key(settings.jwt_public_key_file)
        except (OSError, KeyFileError) as error:
            raise SettingsError(f"JWT_PUBLIC_KEY_FILE: {why(error)}") from None
        sources[algorithm] = OneKey(key)
    if settings.jwt_jwks_url is not None:
        fetch = partial(fetch_document, settings.jwt_jwks_url.get_secret_value())
        jwks = Jwks(fetch, algorithm_of=algorithm_of)
        sources |= {"RS256": jwks, "ES256": jwks}
    return Tokens(sources, audiences=settings.jwt_audience, issuers=settings.jwt_issuer, leeway_s=settings.jwt_leeway)
