"""The public keys of a token issuer, fetched when needed and cached (JWKS, RFC 7517)."""

import asyncio
import json
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import httpx
import jwt
import structlog

from access.principals import KeysUnavailableError, UnauthenticatedError

REFRESH_S = 600.0
"""Age in seconds at which cached keys are fetched again in the background, so that withdrawn keys are dropped."""
RETRY_PAUSE_S = 10.0
"""Seconds until the next fetch after one that failed, or that did not return the key it was made for.

So callers cannot cause more fetches by naming keys that do not exist. A new key of the issuer is still fetched at once,
because the previous fetch returned the keys that were needed then.
"""
FETCH_TIMEOUT_S = 5.0
MAX_BYTES = 1_000_000
MAX_KEYS = 100
MAX_SHOWN_FAULTS = 3

log = structlog.get_logger()


class JwksError(Exception):
    """The issuer's answer cannot be used; the message says why."""


Key = tuple[str | None, str, Any]
"""A key's id, its algorithm, and the key itself."""


class Jwks:
    """Caches the public keys of one issuer."""

    def __init__(
        self,
        fetch: Callable[[], Awaitable[bytes]],
        *,
        algorithm_of: Callable[[object], str | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Fetch nothing before the first `find`.

        Args:
            fetch: returns the JWKS document; any exception counts as a failed fetch.
            algorithm_of: returns the algorithm of a key; None: the key is not usable.
            clock: seconds, monotonic.
        """
        self._fetch = fetch
        self._algorithm_of = algorithm_of
        self._clock = clock
        self._keys: list[Key] = []
        self._fetched_s: float | None = None
        self._has_failed = False
        self._faults: list[str] = []
        self._next_fetch_s = clock()
        self._fetching: asyncio.Task[None] | None = None

    async def find(self, key_id: str | None, algorithm: str) -> Any:
        """Return the key with this id, or the only key of the algorithm for a token without a key id.

        Raises:
            UnauthenticatedError: the issuer has no such key.
            KeysUnavailableError: the key is not cached, and the issuer's keys cannot be fetched now.
        """
        if (key := self._cached(key_id, algorithm)) is None:
            await self._wait_for_fetch()
            key = self._cached(key_id, algorithm)
            if key is None:
                self._next_fetch_s = max(self._next_fetch_s, (self._fetched_s or 0) + RETRY_PAUSE_S)
        elif (age_s := self._clock() - (self._fetched_s or 0)) >= REFRESH_S:
            self._start_fetch()
            if age_s >= 2 * REFRESH_S and not self._has_failed:  # unused for a long time: the key may be withdrawn
                await self._wait_for_fetch()
                key = self._cached(key_id, algorithm)
        if key is not None:
            return key
        if self._has_failed:
            raise KeysUnavailableError(retry_after_s=max(1.0, self._next_fetch_s - self._clock()))
        raise UnauthenticatedError("The token is signed with a key that its issuer does not have.")

    async def aclose(self) -> None:
        """Cancel a fetch in flight."""
        if self._fetching is not None:
            self._fetching.cancel()
            with suppress(asyncio.CancelledError):
                await self._fetching

    def _cached(self, key_id: str | None, algorithm: str) -> Any:
        """Return a cached key. Two keys may share an id if they are of different kinds (RFC 7517, section 4.5)."""
        matching = [
            key for known_id, known, key in self._keys if known == algorithm and (key_id is None or known_id == key_id)
        ]
        return matching[0] if len(matching) == 1 else None

    async def _wait_for_fetch(self) -> None:
        """Wait for a fetch that all waiting requests share. It continues if a waiting request is cancelled."""
        self._start_fetch()
        if self._fetching is not None:
            await asyncio.shield(self._fetching)

    def _start_fetch(self) -> None:
        if self._fetching is None and self._clock() >= self._next_fetch_s:
            self._fetching = asyncio.create_task(self._fetch_once())
            self._fetching.add_done_callback(lambda _: setattr(self, "_fetching", None))

    async def _fetch_once(self) -> None:
        try:
            keys, faults = _read(await self._fetch(), self._algorithm_of)
        except Exception as error:  # noqa: BLE001 - whatever it is, the cached keys stay
            self._next_fetch_s = self._clock() + RETRY_PAUSE_S
            if not self._has_failed:
                reason = str(error) if isinstance(error, JwksError) else type(error).__name__
                log.error("jwks_fetch_failed", reason=reason, keys=len(self._keys))  # noqa: TRY400
            self._has_failed = True
        else:
            self._keys, self._fetched_s, self._has_failed = keys, self._clock(), False
            log.info("jwks_fetched", keys=len(keys))
            if faults and faults != self._faults:
                log.warning("jwks_keys_skipped", reason=_shortened(faults), keys=len(keys))
            self._faults = faults


async def fetch_document(url: str) -> bytes:
    """Fetch *url*, in at most `FETCH_TIMEOUT_S` seconds and `MAX_BYTES`; redirects are not followed.

    Raises:
        httpx.HTTPError, TimeoutError, JwksError: the document cannot be fetched.
    """
    async with asyncio.timeout(FETCH_TIMEOUT_S):
        # In a thread: reading all certificates of the machine would block the event loop.
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


def _read(document: bytes, algorithm_of: Callable[[object], str | None]) -> tuple[list[Key], list[str]]:
    """Return the public keys that verify signatures, and why others were skipped.

    One key that cannot be used leaves the others in use. Keys for other purposes or of other kinds are no fault, and
    shared secrets are never used: a JWKS is public.

    Raises:
        JwksError: *document* is not a JWKS, or all of its keys are faulty.
    """
    try:
        content = json.loads(document)
    except (ValueError, RecursionError):
        raise JwksError("the answer is not JSON") from None
    listed = content.get("keys") if isinstance(content, dict) else None
    if not isinstance(listed, list):
        raise JwksError("the answer contains no list of keys")
    keys: list[Key] = []
    faults = [f"only the first {MAX_KEYS} of {len(listed)} keys are used"] if len(listed) > MAX_KEYS else []
    for number, entry in enumerate(listed[:MAX_KEYS], 1):
        try:
            key = _key(entry, algorithm_of)
        except JwksError as error:
            faults.append(f"key {number} {error}")
            continue
        if key is None or key in keys:
            continue
        if key[0] is not None and key[:2] in [other[:2] for other in keys]:
            faults.append(f"key {number} has the id (kid) of another key")
        else:
            keys.append(key)
    if faults and not keys:
        raise JwksError(f"the answer contains no key that can be used: {_shortened(faults)}")
    return keys, faults


def _key(entry: object, algorithm_of: Callable[[object], str | None]) -> Key | None:
    """Return the key of one entry; None: it is for another purpose, or of another kind.

    Raises:
        JwksError: it is malformed.
    """
    if not isinstance(entry, Mapping):
        raise JwksError("is not an object")
    kind, key_id = entry.get("kty"), entry.get("kid")
    if not isinstance(kind, str):
        raise JwksError("has no type (kty)")
    if kind not in {"RSA", "EC"}:
        return None
    if "d" in entry:
        raise JwksError("is a private key, which its issuer should keep secret and replace")
    if not _verifies_signatures(entry):
        return None
    given = {name: value for name, value in entry.items() if name != "alg"}  # PyJWT knows only some algorithms
    try:
        key = jwt.PyJWK(given).key
    except Exception as error:  # whatever the libraries raise for a value of a wrong type
        raise JwksError("is malformed") from error
    algorithm = algorithm_of(key)
    if algorithm is None or entry.get("alg") not in (None, algorithm):
        return None
    return key_id if isinstance(key_id, str) else None, algorithm, key


def _verifies_signatures(entry: Mapping[str, object]) -> bool:
    """Whether the key's `use` and `key_ops` (RFC 7517, sections 4.2 and 4.3) allow to verify signatures."""
    operations = entry.get("key_ops")
    is_allowed = operations is None or (isinstance(operations, list) and "verify" in operations)
    return is_allowed and entry.get("use") in (None, "sig")


def _shortened(faults: Sequence[str]) -> str:
    more = f", and {len(faults) - MAX_SHOWN_FAULTS} more" if len(faults) > MAX_SHOWN_FAULTS else ""
    return ", ".join(faults[:MAX_SHOWN_FAULTS]) + more
