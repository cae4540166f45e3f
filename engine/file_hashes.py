"""Verifies files by their hashes: a model whose files are damaged or swapped is not loaded."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

SHA256_DIGITS, SHA1_DIGITS = HASH_DIGITS = (64, 40)
BLOCK_BYTES = 1 << 20
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file starts that git wrote in place of a large one, because git-lfs was not installed or had not fetched it."""


class CorruptFileError(Exception):
    """A file is missing or is not the expected one. Callers get the message as the cause of a 503."""


@dataclass(frozen=True, slots=True)
class ExpectedFile:
    """The expected sha256 of a file, or its git blob id (sha1), and its size in bytes; None: any size."""

    digest: str
    size_bytes: int | None = None


def verified_hash(folder: Path, name: str, expected: ExpectedFile | None) -> str:
    """Return the sha256 of the file *name* in *folder*. Blocks: one or two seconds per gigabyte.

    Raises:
        CorruptFileError: the file is missing, cannot be read, or is not the *expected* one.
    """
    try:
        return _verified_hash(folder / name, name, expected)
    except OSError as error:
        raise CorruptFileError(f"its file {name!r} cannot be read ({error.strerror})") from error


def _verified_hash(path: Path, name: str, expected: ExpectedFile | None) -> str:
    if not path.is_file():
        raise CorruptFileError(f"its file {name!r} is missing")
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise CorruptFileError(
                f"its file {name!r} is a git-lfs pointer instead of the file itself; run 'git lfs pull' where it was "
                "cloned, and copy it again"
            )
    if expected and expected.size_bytes not in (None, size := path.stat().st_size):
        raise CorruptFileError(f"its file {name!r} has {size} bytes instead of {expected.size_bytes}")
    sha256 = hash_same_kind("0" * SHA256_DIGITS, path) or ""
    if expected:
        found = sha256 if len(expected.digest) == SHA256_DIGITS else hash_same_kind(expected.digest, path)
        if found != expected.digest:
            raise CorruptFileError(
                f"its file {name!r} is not the expected one: "
                f"its hash is {str(found)[:12]}... instead of {expected.digest[:12]}..."
            )
    return sha256


def hash_same_kind(digest: str, path: Path) -> str | None:
    """Hash a file with the algorithm that *digest* comes from: sha256 or git's blob id. None if it is neither."""
    if len(digest) == SHA256_DIGITS:
        state = hashlib.sha256()
    elif len(digest) == SHA1_DIGITS:
        state = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)  # what git uses
    else:
        return None
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            state.update(block)
    return state.hexdigest()
