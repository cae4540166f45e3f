"""API keys: read from settings and from a file that may change, kept as hashes, compared in constant time."""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from access.principals import DEFAULT_PERMISSIONS, PERMISSIONS, Principal
from host.small_files import SmallFileError, read_small_text

MIN_CHARACTERS, MAX_CHARACTERS = 16, 256
KEY = re.compile(r"[A-Za-z0-9._~+/=-]+")
"""Characters allowed after `Bearer` (RFC 6750, section 2.1); none of them separates entries or their parts."""
NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
CHECK_INTERVAL_S = 1.0
"""Seconds between two checks whether the file has changed: removed keys stop working within this time."""
STABLE_S = 60.0
"""Seconds without a change after which a file without a final line break counts as complete: its writer has ended."""
MAX_FILE_BYTES = 1_000_000

log = structlog.get_logger()

Signature = tuple[int, ...]


class KeyFormatError(ValueError):
    """An API key is malformed. The message gives its place but no part of it: that could be a part of the secret."""


class UnterminatedError(KeyFormatError):
    """The last line of the file has no line break, so it may be half-written."""

    def __init__(self) -> None:
        super().__init__(
            "its last line does not end with a line break, so it may be half-written; end the line, or leave the file "
            f"unchanged for {STABLE_S:.0f} s"
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """One configured key, with its place (such as `line 3`) for error messages."""

    place: str
    key: str
    principal: Principal


def read_entries(texts: Iterable[str]) -> list[Entry]:
    """Read the keys of API_KEYS. Keys without a name are named `key-1`, `key-2` and so on.

    Raises:
        KeyFormatError: an entry is malformed.
    """
    return [_entry(text, f"entry {number}", f"key-{number}") for number, text in enumerate(texts, 1)]


def read_lines(text: str) -> list[Entry]:
    """Read the keys of a file, one per line. Blank lines and comments (`#`) are skipped.

    Raises:
        KeyFormatError: a line is malformed, or there is no key at all, as in a file that is being written.
    """
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    entries = [
        _entry(line, f"line {number}", f"line-{number}") for number, line in lines if line and not line.startswith("#")
    ]
    if not entries:
        raise KeyFormatError("it contains no key")
    return entries


class KeyRing:
    """Finds the principal of an API key. Keys come from settings and from a file, which is read again when it changes.

    A file without a line break at its end may be half-written. At the start it is used, because there is nothing else.
    Later, the last keys stay until the line ends, until nothing has changed for `STABLE_S`, or until `reload`.

    Keys are stored as SHA-256 of a random salt and the key. Callers do not know the salt, so they do not know which
    bytes are compared, and the time of a look-up reveals nothing about a key.

    Attributes:
        is_unterminated: the keys in use come from a file without a line break at its end, so changes of it wait.
    """

    def __init__(
        self, entries: Iterable[Entry] = (), *, file: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Read the file for the first time.

        Raises:
            KeyFormatError: keys are malformed, two have the same name, or one occurs twice.
            OSError: the file cannot be read.
        """
        self._salt = secrets.token_bytes(32)
        self._from_settings = self._hashed(entries)
        self._file = file
        self._clock = clock
        self._seen = None if file is None else _signature(file)
        self._seen_s = clock()
        self._is_pending = False
        self._used_target: Path | None = None
        self.is_unterminated = False
        self._principals: Mapping[bytes, tuple[bytes, Principal]] = self._from_settings
        if file is not None:
            self._read(file, may_be_unterminated=True)
        self._next_check_s = clock() + CHECK_INTERVAL_S

    def __len__(self) -> int:
        return len(self._principals)

    def find(self, key: bytes) -> Principal | None:
        """Return the principal of *key*; None if it is not valid."""
        if self._file is not None and self._clock() >= self._next_check_s:
            # During a request: a check in the background could accept a removed key once more.
            self._reload_if_changed(self._file)
        digest = hashlib.sha256(self._salt + key).digest()
        known, principal = self._principals.get(digest, (b"", None))
        return principal if hmac.compare_digest(known, digest) else None

    def reload(self) -> None:
        """Read the file now, as after a signal: also if it seems unchanged or half-written. Logs what it found."""
        if self._file is not None:
            self._seen, self._seen_s = _signature_or_none(self._file), self._clock()
            self._read_or_keep(self._file, may_be_unterminated=True)

    def _reload_if_changed(self, file: Path) -> None:
        """Read the file if it has changed."""
        now_s = self._clock()
        self._next_check_s = now_s + CHECK_INTERVAL_S
        if (signature := _signature_or_none(file)) != self._seen:
            self._seen, self._seen_s = signature, now_s
            self._read_or_keep(file)
        elif self._is_pending and now_s - self._seen_s >= STABLE_S:
            self._read_or_keep(file, may_be_unterminated=True)

    def _read_or_keep(self, file: Path, *, may_be_unterminated: bool = False) -> None:
        """Read the file. If that fails, keep the last valid keys and log it."""
        try:
            self._read(file, may_be_unterminated=may_be_unterminated)
        except (OSError, KeyFormatError) as error:
            self._is_pending = isinstance(error, UnterminatedError)
            log.error("api_keys_kept", reason=f"API_KEYS_FILE: {reason_of(error)}", keys=len(self._principals))  # noqa: TRY400
        else:
            log.info("api_keys_read", keys=len(self._principals))

    def _read(self, file: Path, *, may_be_unterminated: bool) -> None:
        """Use the keys of the file.

        Raises:
            KeyFormatError: keys are malformed; or the file may be half-written, and *may_be_unterminated* is false.
            OSError: it cannot be read.
        """
        text = _text(file)
        principals, target = self._hashed(read_lines(text), self._from_settings), file.resolve()
        is_unterminated = not text.endswith(("\n", "\r"))
        # A link to a file is changed only once that file is complete: so Kubernetes replaces a mounted Secret.
        is_published = file.absolute() != target and target != self._used_target
        if is_unterminated and not (may_be_unterminated or is_published):
            raise UnterminatedError
        self._principals, self._used_target, self._is_pending = principals, target, False
        self.is_unterminated = is_unterminated and file.absolute() == target

    def _hashed(
        self, entries: Iterable[Entry], others: Mapping[bytes, tuple[bytes, Principal]] | None = None
    ) -> dict[bytes, tuple[bytes, Principal]]:
        """Map each hash to its principal, and to itself for the comparison in constant time."""
        principals = dict(others or {})
        places = {principal.name: "API_KEYS" for _, principal in principals.values()}
        for entry in entries:
            digest = hashlib.sha256(self._salt + entry.key.encode()).digest()
            if digest in principals:
                raise KeyFormatError(f"{entry.place} has the same key as {places[principals[digest][1].name]}")
            if entry.principal.name in places:
                raise KeyFormatError(f"{entry.place} has the same name as {places[entry.principal.name]}")
            principals[digest], places[entry.principal.name] = (digest, entry.principal), entry.place
        return principals


def _signature_or_none(file: Path) -> Signature | None:
    try:
        return _signature(file)
    except OSError:
        return None


def reason_of(error: Exception) -> str:
    """Return why a key or a file cannot be used, without the file's path."""
    return (error.strerror or "it cannot be read") if isinstance(error, OSError) else str(error)


def _entry(text: str, place: str, name: str) -> Entry:
    """Read one key; *name* is its default name."""
    permissions = DEFAULT_PERMISSIONS
    match text.split(":"):
        case [key]:
            pass
        case [name, key]:
            pass
        case [name, key, words]:
            permissions = _permissions(words, place)
        case _:
            raise KeyFormatError(
                f"{place} has more than two colons; write `key`, `name:key` or `name:key:permission+permission`"
            )
    if not NAME.fullmatch(name):
        raise KeyFormatError(f"{place} has a name that is not 1 to 64 letters, digits and ._@-")
    if not MIN_CHARACTERS <= len(key) <= MAX_CHARACTERS:
        raise KeyFormatError(
            f"{place} has a key that is not {MIN_CHARACTERS} to {MAX_CHARACTERS} characters long; "
            "`openssl rand -hex 32` makes a good one"
        )
    if not KEY.fullmatch(key):
        raise KeyFormatError(f"{place} has a key with other characters than letters, digits and ._~+/=-")
    return Entry(place, key, Principal("key", name, permissions=permissions))


def _permissions(text: str, place: str) -> frozenset[str]:
    permissions = frozenset(text.split("+"))
    if not permissions <= set(PERMISSIONS):
        raise KeyFormatError(
            f"{place} has a permission that does not exist; allowed are {', '.join(PERMISSIONS)}, with + between"
        )
    return permissions


def _signature(file: Path) -> Signature:
    """Return values of which at least one changes when the file changes or is replaced."""
    status = file.stat()
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


def _text(file: Path) -> str:
    try:
        return read_small_text(file, max_bytes=MAX_FILE_BYTES)
    except SmallFileError as error:
        raise KeyFormatError(str(error)) from None
