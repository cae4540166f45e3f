"""One optimised copy of a model: checks it before anything of it is mapped, and keeps it from being removed."""

import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from engine.file_hashes import SHA256_DIGITS, hash_same_kind
from engine.onnx_sessions import COPY_GRAPH, COPY_WEIGHTS
from engine.optimised_record import RECORD, CopyKey, CopyRecord, read_record
from host.trusted_folder import UntrustedError, check_file, check_folder, hold_shared

DAMAGED = "its files are not those that were written"
NOT_WRITTEN = "none has been written yet"
BUSY = "another process is writing it"
NOT_NEEDED = STATIC, SMALL = ("static models have none", "the model is too small to need one")
"""Reasons why a model never has a copy, on any machine."""


class BrokenCopyError(UntrustedError):
    """A copy that no other user could write is damaged, so it can be replaced."""


@dataclass(frozen=True, slots=True)
class CopyState:
    """Whether a model runs by its optimised copy.

    Attributes:
        is_used: it does.
        size_bytes: of the copy's files; 0 if it is not used.
        reason: why it is not used, without a capital letter and a full stop; empty: it is.
    """

    is_used: bool
    size_bytes: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class OptimisedCopy:
    """A copy that this process may map. As long as the object lives, no process removes the files."""

    folder: Path
    record: CopyRecord

    @property
    def graph(self) -> Path:
        return self.folder / COPY_GRAPH

    @property
    def state(self) -> CopyState:
        return CopyState(is_used=True, size_bytes=self.record.size_bytes)

    def is_intact(self) -> bool:
        """Compare the files with their hashes. Blocks: one or two seconds per gigabyte."""
        files = self.record.files.items()
        with suppress(OSError):
            return all(hash_same_kind("0" * SHA256_DIGITS, self.folder / name) == file.sha256 for name, file in files)
        return False

    def mark_used(self) -> None:
        """Mark the copy as used now; without effect if it is part of an image, or the folder is read-only."""
        with suppress(OSError):
            os.utime(self.folder / RECORD)


def open_copy(place: Path, key: CopyKey) -> OptimisedCopy:
    """Check the copy with this key in the folder *place*, and keep it from being removed.

    Raises:
        FileNotFoundError: there is none.
        BrokenCopyError: it is damaged.
        UntrustedError: another user could write it.
        OSError: it cannot be read.
    """
    check_folder(place)
    folder = place / key.digest
    check_folder(folder)
    with _broken_if_absent():
        opened = hold_shared(folder / RECORD)
    try:
        record = _checked_record(folder, key)
    except BaseException:
        os.close(opened)
        raise
    copy = OptimisedCopy(folder, record)
    weakref.finalize(copy, os.close, opened)
    copy.mark_used()
    return copy


def _checked_record(folder: Path, key: CopyKey) -> CopyRecord:
    try:
        record = read_record(folder)
    except ValueError as error:
        raise BrokenCopyError("its record is damaged") from error
    if record.key != key:
        raise BrokenCopyError("its record is about another model or machine")
    for name in (COPY_GRAPH, COPY_WEIGHTS):
        with _broken_if_absent():
            size_bytes = check_file(folder / name).st_size
        if name not in record.files or size_bytes != record.files[name].size_bytes:
            raise BrokenCopyError(f"its file {name} has {size_bytes} bytes, which is not what was written")
    # The graph is small, and ONNX Runtime follows what it says. The weights are compared after the load.
    if hash_same_kind("0" * SHA256_DIGITS, folder / COPY_GRAPH) != record.files[COPY_GRAPH].sha256:
        raise BrokenCopyError(DAMAGED)
    return record


@contextmanager
def _broken_if_absent() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise BrokenCopyError("one of its files is missing") from error
