"""The public keys of an issuer of tokens, fetched when they are needed and kept (JWKS, RFC 7517)."""

import asyncio
import json
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import httpx
import jwt
import structlog

from access.principals import KeysUnavailableError, UnauthenticatedError

KEEP_S = 600.0
"""Seconds after which the keys are fetched anew, beside the requests: those that the issuer withdrew go away."""
PAUSE_S = 10.0
"""Seconds without a fetch after one that failed, or that did not bring the key it was made for.

Nobody makes us fetch more often than that by naming keys that do not exist. A new key of the issuer's is fetched at
once, as the fetch before it was not in vain.
"""
FETCH_TIMEOUT_S = 5.0
MAX_BYTES = 1_000_000
MAX_KEYS = 100

log = structlog.get_logger()


class JwksError(Exception):
    """What came is no JWKS; the message says why."""


Key = tuple[str | None, str, Any]
"""A key's id, its algorithm, and the key itself."""


class Jwks:
    """Owns the keys of one issuer."""

    def __init__(
        self,
        fetch: Callable[[], Awaitable[bytes]],
        *,
        algorithm_of: Callable[[object], str | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Fetch nothing yet.

        Args:
            fetch: gets the document; whatever it raises is a failure to do so.
            algorithm_of: the algorithm that a key is for; None: it is of no use.
            clock: seconds, monotonic.
        """
        self._fetch = fetch
        self._algorithm_of = algorithm_of
        self._clock = clock
        self._keys: list[Key] = []
        self._fetched_s: float | None = None
        self._has_failed = False
        self._next_fetch_s = clock()
        self._fetching: asyncio.Task[None] | None = None

    async def find(self, key_id: str | None, algorithm: str) -> Any:
        """The key of this id; of a token without one the only key of its algorithm.

        Raises:
            UnauthenticatedError: the issuer has none.
            KeysUnavailableError: it is not known here, and the issuer's keys cannot be fetched now.
        """
        if (key := self._known(key_id, algorithm)) is None:
            await self._fetched()
            key = self._known(key_id, algorithm)
            if key is None:
                self._next_fetch_s = max(self._next_fetch_s, (self._fetched_s or 0) + PAUSE_S)
        elif (age_s := self._clock() - (self._fetched_s or 0)) >= KEEP_S:
            self._start()
            if age_s >= 2 * KEEP_S and not self._has_failed:  # nobody has called for long: is the key still good?
                await self._fetched()
                key = self._known(key_id, algorithm)
        if key is not None:
            return key
        if self._has_failed:
            raise KeysUnavailableError(retry_after_s=max(1.0, self._next_fetch_s - self._clock()))
        raise UnauthenticatedError("The token is signed with a key that its issuer does not have.")

    async def aclose(self) -> None:
        """End a fetch that is under way."""
        if self._fetching is not None:
            self._fetching.cancel()
            with suppress(asyncio.CancelledError):
                await self._fetching

    def _known(self, key_id: str | None, algorithm: str) -> Any:
        """Two keys may share an id if they are of different kinds (RFC 7517, section 4.5)."""
        fitting = [
            key for known_id, known, key in self._keys if known == algorithm and (key_id is None or known_id == key_id)
        ]
        return fitting[0] if len(fitting) == 1 else None

    async def _fetched(self) -> None:
        """One fetch for all who wait; a caller who leaves does not stop it."""
        self._start()
        if self._fetching is not None:
            await asyncio.shield(self._fetching)

    def _start(self) -> None:
        if self._fetching is None and self._clock() >= self._next_fetch_s:
            self._fetching = asyncio.create_task(self._fetch_once())
            self._fetching.add_done_callback(lambda _: setattr(self, "_fetching", None))

    async def _fetch_once(self) -> None:
        try:
            keys = list(_keys(await self._fetch(), self._algorithm_of))
        except Exception as error:  # noqa: BLE001 - whatever it is, the keys that are known stay
            self._next_fetch_s = self._clock() + PAUSE_S
            if not self._has_failed:
                reason = str(error) if isinstance(error, JwksError) else type(error).__name__
                log.error("jwks_fetch_failed", reason=reason, keys=len(self._keys))  # noqa: TRY400
            self._has_failed = True
        else:
            self._keys, self._fetched_s, self._has_failed = keys, self._clock(), False
            log.info("jwks_fetched", keys=len(keys))


async def fetch_document(url: str) -> bytes:
    """Get what is at *url*, in `FETCH_TIMEOUT_S` seconds and `MAX_BYTES` at most; redirections are not followed.

    Raises:
        httpx.HTTPError, TimeoutError, JwksError: it cannot be had.
    """
    async with asyncio.timeout(FETCH_TIMEOUT_S):
        # It reads all certificates of the machine, which takes long enough to be felt by other callers.
        trusted = await asyncio.to_thread(ssl.create_default_context)
        content = b""
        async with (
            httpx.AsyncClient(verify=trusted) as client,
            client.stream("GET", url, headers={"Accept": "application/json"}) as response,
        ):
            if response.status_code != httpx.codes.OK:
                raise JwksError(f"the answer is {response.status_code}, not 200")
            async for part in response.aiter_bytes():
                content += part
                if len(content) > MAX_BYTES:
                    raise JwksError("the answer is too large")
        return content


def _keys(document: bytes, algorithm_of: Callable[[object], str | None]) -> Iterator[Key]:
    """The keys for signatures; those of other kinds are left out, secrets above all: they would be known to everybody.

    Raises:
        JwksError: it is no JWKS.
    """
    try:
        content = json.loads(document)
    except (ValueError, RecursionError):
        raise JwksError("the answer is not JSON") from None
    listed = content.get("keys") if isinstance(content, dict) else None
    if not isinstance(listed, list):
        raise JwksError("the answer holds no list of keys")
    for told in listed[:MAX_KEYS]:
        if not isinstance(told, Mapping) or told.get("kty") not in {"RSA", "EC"} or told.get("use", "sig") != "sig":
            continue
        try:
            key = jwt.PyJWK(dict(told)).key
        except jwt.PyJWTError:
            continue
        algorithm, key_id = algorithm_of(key), told.get("kid")
        if algorithm is not None and told.get("alg", algorithm) == algorithm:
            yield key_id if isinstance(key_id, str) else None, algorithm, key
