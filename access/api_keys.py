"""API keys: read from settings and from a file that may change, kept as hashes, found in constant time."""

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

MIN_CHARACTERS, MAX_CHARACTERS = 16, 256
KEY = re.compile(r"[A-Za-z0-9._~+/=-]+")
"""What may stand behind `Bearer` (RFC 6750, section 2.1); nothing of it separates entries or their parts."""
NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
LOOK_PAUSE_S = 1.0
"""Seconds between two looks whether the file has changed."""
MAX_FILE_BYTES = 1_000_000

log = structlog.get_logger()

Signature = tuple[int, ...]


class KeyFormatError(ValueError):
    """Keys cannot be read. The message tells the place, and never a part of an entry: it may be one of a key."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One key as it was given, with the place for messages."""

    place: str
    key: str
    principal: Principal


def read_entries(texts: Iterable[str]) -> list[Entry]:
    """The keys of API_KEYS, which are named `key-1`, `key-2` and so on if they have no name of their own.

    Raises:
        KeyFormatError: an entry is malformed.
    """
    return [_entry(text, f"entry {number}", f"key-{number}") for number, text in enumerate(texts, 1)]


def read_lines(text: str) -> list[Entry]:
    """The keys of a file, one per line, named by their lines; blank lines and those that begin with `#` are left out.

    Raises:
        KeyFormatError: a line is malformed, or there is no key at all: a file that is just being written has none.
    """
    lines = [(number, line.strip()) for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1)]
    entries = [
        _entry(line, f"line {number}", f"line-{number}") for number, line in lines if line and not line.startswith("#")
    ]
    if not entries:
        raise KeyFormatError("it holds no key")
    return entries


class KeyRing:
    """Owns the keys: those of the settings, and those of a file, which it reads again when it has changed.

    Keys are kept as SHA-256 of a random salt and the key. Without the salt nobody can tell what is compared with what,
    so the time of a look-up tells nothing of any key.
    """

    def __init__(
        self, entries: Iterable[Entry] = (), *, file: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Read the file for the first time.

        Raises:
            KeyFormatError: keys are malformed, two have the same name, or one is given twice.
            OSError: the file cannot be read.
        """
        self._salt = secrets.token_bytes(32)
        self._settled = self._hashed(entries)
        self._file = file
        self._clock = clock
        self._seen: Signature | None = None if file is None else _signature(file)
        self._callers = self._with_file()
        self._next_look_s = clock() + LOOK_PAUSE_S

    def __len__(self) -> int:
        return len(self._callers)

    def find(self, key: bytes) -> Principal | None:
        """Whose key this is; None: nobody's."""
        if self._file is not None and self._clock() >= self._next_look_s:
            # Within a request: a look in the background would let in whose key was taken away long ago, once.
            self._look(self._file)
        digest = hashlib.sha256(self._salt + key).digest()
        known, caller = self._callers.get(digest, (b"", None))
        return caller if hmac.compare_digest(known, digest) else None

    def _look(self, file: Path) -> None:
        """Read the file if it has changed. Whatever is wrong with it: the last good keys stay, and it is told once."""
        self._next_look_s = self._clock() + LOOK_PAUSE_S
        try:
            signature = _signature(file)
        except OSError:
            signature = None
        if signature == self._seen:
            return
        self._seen = signature
        try:
            self._callers = self._with_file()
        except (OSError, KeyFormatError) as error:
            log.error("api_keys_kept", reason=f"API_KEYS_FILE: {why(error)}", keys=len(self._callers))  # noqa: TRY400
        else:
            log.info("api_keys_read", keys=len(self._callers))

    def _with_file(self) -> Mapping[bytes, tuple[bytes, Principal]]:
        if self._file is None:
            return self._settled
        return self._hashed(read_lines(_text(self._file)), self._settled)

    def _hashed(
        self, entries: Iterable[Entry], others: Mapping[bytes, tuple[bytes, Principal]] | None = None
    ) -> dict[bytes, tuple[bytes, Principal]]:
        """By hash the hash once more, for the comparison, and the caller."""
        callers = dict(others or {})
        places = {caller.name: "API_KEYS" for _, caller in callers.values()}
        for entry in entries:
            digest = hashlib.sha256(self._salt + entry.key.encode()).digest()
            if digest in callers:
                raise KeyFormatError(f"{entry.place} has the same key as {places[callers[digest][1].name]}")
            if entry.principal.name in places:
                raise KeyFormatError(f"{entry.place} has the same name as {places[entry.principal.name]}")
            callers[digest], places[entry.principal.name] = (digest, entry.principal), entry.place
        return callers


def why(error: Exception) -> str:
    """What is wrong with a file, without its path."""
    return (error.strerror or "it cannot be read") if isinstance(error, OSError) else str(error)


def _entry(text: str, place: str, name: str) -> Entry:
    """*name* is that of a key which has none of its own."""
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
    """What changes whenever the file does, also if another one takes its place."""
    status = file.stat()
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


def _text(file: Path) -> str:
    with file.open("rb") as opened:
        content = opened.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise KeyFormatError(f"it is larger than {MAX_FILE_BYTES} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise KeyFormatError("it is not UTF-8") from None
