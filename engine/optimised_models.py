"""The folder of optimised copies: finds the copy of a model, and lets one process write it.

A copy is a folder that appears and disappears as a whole. Its files are never changed: other processes have mapped
them, and a mapped file that is cut short ends every process that reads it.
"""

import shutil
import subprocess
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec
import structlog

from engine.file_hashes import CorruptFileError
from engine.fingerprint import ModelFiles, VerifiedFiles
from engine.optimised_copy import BUSY, NOT_WRITTEN, SMALL, BrokenCopyError, OptimisedCopy, open_copy
from engine.optimised_record import (
    RECORD,
    CopyKey,
    CopyRecord,
    SourceState,
    note_path,
    read_note,
    states_of,
    write_note,
)
from engine.optimised_space import NEW, clean, copies_in, make_room, make_room_for, why_too_large
from engine.optimised_writer import CopiedFile, CopyFailedError, run_writer
from host.cpu import instruction_sets
from host.trusted_folder import (
    FOLDER_MODE,
    HAS_FILE_LOCKS,
    UntrustedError,
    check_folder,
    open_folder,
    publish_folder,
    remove_folder,
    try_lock,
    write_file,
)

MIN_SOURCE_BYTES = 1 << 20
"""Weights below this size are not worth a copy: nothing would be saved."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class CopyFolder:
    """Where optimised copies are, for a process to open.

    Attributes:
        folder: where they are written.
        max_bytes: maximum for all of them; 0: no copies are used.
        baked: a folder with copies that is only read; None: there is none.
    """

    folder: Path
    max_bytes: int
    baked: Path | None = None

    def open(self, *, trusts_notes: bool = True) -> "OptimisedModels":
        """Open the folder; see `OptimisedModels`."""
        return OptimisedModels(self.folder, max_bytes=self.max_bytes, baked=self.baked, trusts_notes=trusts_notes)


class OptimisedModels:
    """Owns one folder of copies, and reads another one that is part of an image. Its methods block.

    Attributes:
        why_off: why no copies are used at all, without a capital letter and a full stop; empty: they are.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int,
        baked: Path | None = None,
        trusts_notes: bool = True,
        cpu: Callable[[], tuple[str, ...] | None] = instruction_sets,
        disk_usage: Callable[[Path], tuple[int, int, int]] = shutil.disk_usage,
    ) -> None:
        """Create nothing.

        Args:
            folder: where copies are written.
            max_bytes: maximum for all copies there; 0: no copies are used.
            baked: a folder with copies that is only read.
            trusts_notes: files that are as they were when an earlier load verified them need not be read again.
            cpu: returns what the kernels of this machine depend on.
            disk_usage: returns the total, used and free bytes of a folder's disk.
        """
        self._folder = folder
        self._max_bytes = max_bytes
        self._places = [folder, *([baked] if baked else [])]
        self._trusts_notes = trusts_notes
        self._cpu = cpu() or () if max_bytes else ()
        self._disk_usage = disk_usage
        self._logged: set[tuple[str, str]] = set()
        self._rejected: dict[tuple[Path, int], str] = {}  # copies that could not be removed, with the reason
        self._forgotten: set[Path] = set()  # notes that may still be there, in a folder that is read-only
        self._writing = threading.Lock()
        self._writers: set[subprocess.Popen[bytes]] = set()
        self._is_closed = False
        self._used: weakref.WeakSet[OptimisedCopy] = weakref.WeakSet()
        self.why_off = self._why_off()

    def _why_off(self) -> str:
        if not self._max_bytes:
            return "OPTIMISED_MODELS_MAX_SIZE is 0"
        if not HAS_FILE_LOCKS:
            return "this system has no file locks of POSIX"
        return "" if self._cpu else "the instruction sets of this CPU are unknown"

    def has_any(self) -> bool:
        """Whether there may be copies, judged by the names of folders alone."""
        return not self.why_off and any(map(copies_in, self._places))

    def known_sources(self, files: ModelFiles) -> VerifiedFiles | None:
        """Return what an earlier load has verified of *files*, if they are as they were then. Reads none of them."""
        if self.why_off or files.is_static or not self._trusts_notes:
            return None
        path = note_path(self._folder, files)
        with suppress(OSError, UntrustedError, ValueError):
            check_folder(self._folder)
            return None if path in self._forgotten else read_note(path, files)
        return None

    def remember(self, files: ModelFiles, states: Mapping[str, SourceState]) -> None:
        """Note that *files* have been verified in these states, so that the next load need not read them first."""
        if states and not self.why_off:
            with suppress(OSError, UntrustedError):
                open_folder(self._folder)  # with a copy in the image, nothing else has created it
                write_note(path := note_path(self._folder, files), files, states)
                self._forgotten.discard(path)

    def forget(self, files: ModelFiles) -> None:
        """Have the next load read *files* before it uses them."""
        self._forgotten.add(path := note_path(self._folder, files))
        with suppress(OSError):
            path.unlink(missing_ok=True)

    def states_of(self, files: ModelFiles) -> dict[str, SourceState]:
        """Return the states of *files*; empty if no copy is possible, or a file is missing."""
        if self.why_off or files.is_static:
            return {}
        try:
            return states_of(files.folder, files.names)
        except (OSError, CorruptFileError):
            return {}

    def find(self, name: str, sources: VerifiedFiles) -> OptimisedCopy | str:
        """Return the copy for *sources* on this machine, or why there is none. One that cannot be used is logged.

        Args:
            name: of the model, for the log.
            sources: the model's files.
        """
        if self.why_off:
            return self.why_off
        key, reason = CopyKey.of(sources, self._cpu), NOT_WRITTEN
        for place in self._places:
            try:
                if rejected := self._rejected.get(_identity(place / key.digest)):
                    reason = rejected
                    continue
                copy = open_copy(place, key)
            except FileNotFoundError:
                continue
            except (OSError, UntrustedError) as error:
                self._log_unused(name, reason := _reason(error))
                if isinstance(error, BrokenCopyError):
                    remove_folder(place / key.digest, lock=RECORD)
            else:
                self._used.add(copy)
                return copy
        return reason

    def write(self, name: str, files: ModelFiles, source: Path, ids: Sequence[Sequence[int]]) -> str:
        """Write the copy of *files*, which have been verified; one at a time. What prevents it is logged.

        Args:
            name: of the model, for the log.
            files: the model's.
            source: the ONNX file that FastEmbed has opened.
            ids: tokens of some texts, with which the copy is compared with the model.

        Returns:
            Why it is not there now; empty: it is.
        """
        key, folder = CopyKey.of(files.verified, self._cpu), self._folder
        if _weight_bytes(files) < MIN_SOURCE_BYTES:
            return SMALL
        try:
            with self._writing:
                if self._is_closed:
                    return "the service is ending"
                open_folder(folder)
                with try_lock(folder / f".{key.digest}.lock") as is_ours:
                    if not is_ours:
                        return BUSY
                    if not (folder / key.digest).exists():
                        self._write_new(key, files, partial(run_writer, source, ids=ids))
        except (CopyFailedError, UntrustedError, CorruptFileError, OSError) as error:
            if self._is_closed:
                return "the service is ending"
            self._log_unused(name, reason := _reason(error))
            return reason
        return ""

    def _write_new(self, key: CopyKey, files: ModelFiles, write: Callable[..., dict[str, CopiedFile]]) -> None:
        folder, max_bytes, weight_bytes = self._folder, self._max_bytes, _weight_bytes(files)
        if reason := make_room_for(folder, weight_bytes, max_bytes=max_bytes, disk_usage=self._disk_usage):
            raise CopyFailedError(reason)
        new = folder / f".{key.digest}{NEW}"
        shutil.rmtree(new, ignore_errors=True)  # of a process that was killed: its lock is ours now
        new.mkdir(mode=FOLDER_MODE)
        try:
            record = CopyRecord(key, write(folder=new, started=self._started))
            if record.size_bytes > max_bytes:
                raise CopyFailedError(why_too_large(record.size_bytes, max_bytes))
            if replace(files).verified != files.verified:  # read again: the writer may have read other files
                raise CopyFailedError("the model's files have changed meanwhile")
            make_room(folder, max_bytes=max_bytes, room_bytes=record.size_bytes)
            write_file(new / RECORD, msgspec.json.encode(record))
            publish_folder(new, folder / key.digest)
        finally:
            shutil.rmtree(new, ignore_errors=True)
            self._writers = {writer for writer in self._writers if writer.poll() is None}
        log.info("optimised_copy_written", copy=key.digest, size_bytes=record.size_bytes)

    def _started(self, writer: subprocess.Popen[bytes]) -> None:
        self._writers.add(writer)
        if self._is_closed:  # since it was last looked at, so `close` may have missed this process
            writer.kill()

    def reject(self, name: str, copy: OptimisedCopy, reason: str) -> None:
        """Remove a copy that cannot be used, and log it. If it stays, as in an image, this process does not use it."""
        self._log_unused(name, reason)
        remove_folder(copy.folder, lock=RECORD)
        with suppress(OSError):
            self._rejected[_identity(copy.folder)] = reason

    def clean(self) -> None:
        """Remove what is no longer in use."""
        with suppress(OSError, UntrustedError):
            check_folder(self._folder)
            clean(self._folder)

    def close(self) -> None:
        """End the processes that write copies, and start no more. Copies count as used until now."""
        self._is_closed = True
        for copy in tuple(self._used):
            copy.mark_used()
        for writer in tuple(self._writers):
            with suppress(OSError):
                writer.kill()

    def _log_unused(self, name: str, reason: str) -> None:
        if (name, reason) not in self._logged:
            self._logged.add((name, reason))
            log.warning("optimised_copy_not_used", model=name, reason=reason)


def _identity(folder: Path) -> tuple[Path, int]:
    return folder, folder.stat().st_ino


def _weight_bytes(files: ModelFiles) -> int:
    """Return the size of the graph and the files with its weights."""
    names = {files.model_file, *files.verified.weights.values()}
    return sum((files.folder / name).stat().st_size for name in names)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"its folder cannot be used ({error.strerror or type(error).__name__})"
    return str(error)
