"""Space for optimised copies: what may be written, and what is removed to make room."""

import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog

from engine.optimised_record import KEY_DIGITS, NOTE_SUFFIX, RECORD
from host.folder_permissions import nearest_existing
from host.memory import available_bytes
from host.trusted_folder import GONE, remove_folder, try_lock

COPY_FACTOR = 2.5
"""A copy's size relative to the model's files. It holds the weights as they are and packed; those of the bundled model,
which are stored as float16, become float32: 109 MB of 45 MB."""
WRITER_FACTOR, WRITER_BYTES = 4, 100_000_000
"""Memory that writing a copy takes: this many times the model's files, and this much for the process (measured: 3.3
times for the bundled model)."""
FREE_SHARE = 10
"""One part of the disk in this many stays free, as for downloads."""
MAX_NOTES = 200
NEW = ".new"
"""Ends the name of a folder that is being written."""
COPY_NAMES = re.compile(rf"[0-9a-f]{{{KEY_DIGITS}}}")

log = structlog.get_logger()


def make_room_for(
    folder: Path,
    weight_bytes: int,
    *,
    max_bytes: int,
    disk_usage: Callable[[Path], tuple[int, int, int]],
    available_memory: Callable[[], int | None] = available_bytes,
) -> str | None:
    """Make room for the copy of a model with files of *weight_bytes*. Without enough memory, no other copy goes.

    Returns:
        Why the copy should not be written; None: it can be.
    """
    needed = round(weight_bytes * COPY_FACTOR)
    if needed > max_bytes:
        return why_too_large(needed, max_bytes)
    memory, available = weight_bytes * WRITER_FACTOR + WRITER_BYTES, available_memory()
    if available is not None and memory > available:
        return f"writing it takes {_mb(memory)} of memory, and {_mb(available)} are available"
    make_room(folder, max_bytes=max_bytes, room_bytes=needed)
    total, _, free = disk_usage(nearest_existing(folder))
    if total and needed > free - (kept := total // FREE_SHARE):
        return f"it needs {_mb(needed)}, and the disk has {_mb(free)} left, of which {_mb(kept)} stay free"
    return None


def why_too_large(size_bytes: int, max_bytes: int) -> str:
    """Return that a copy of this size exceeds the limit of all."""
    return f"it needs {_mb(size_bytes)}, more than OPTIMISED_MODELS_MAX_SIZE allows ({_mb(max_bytes)})"


def make_room(folder: Path, *, max_bytes: int, room_bytes: int = 0) -> None:
    """Remove the copies that were not used for longest, until *room_bytes* more fit. Copies in use stay."""
    copies = sorted(copies_in(folder), key=lambda path: _used_at(path / RECORD))
    total = sum(map(_size_of, copies)) + room_bytes
    for path in copies:
        if total <= max_bytes:
            break
        size_bytes = _size_of(path)
        with suppress(OSError), try_lock(path / RECORD, keep=True) as is_unused:
            if is_unused:
                path.rename(path.with_name(f".{path.name}{GONE}"))
                log.info("optimised_copy_evicted", copy=path.name, size_bytes=size_bytes)
                total -= size_bytes
    clean(folder)


def clean(folder: Path) -> None:
    """Remove what killed processes have left, evicted copies that are no longer in use, and the oldest notes."""
    for left in folder.glob(f".*{GONE}"):
        remove_folder(left, lock=RECORD)
    for left in folder.glob(f".*{NEW}"):
        with suppress(OSError), try_lock(left.with_suffix(".lock")) as is_left:
            if is_left and left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
    with suppress(OSError):
        for note in sorted(folder.glob(f"*{NOTE_SUFFIX}"), key=_used_at, reverse=True)[MAX_NOTES:]:
            note.unlink(missing_ok=True)


def copies_in(folder: Path) -> list[Path]:
    """Return the folders of copies; none if *folder* cannot be read."""
    try:
        return [path for path in folder.iterdir() if COPY_NAMES.fullmatch(path.name) and not path.is_symlink()]
    except OSError:
        return []


def _size_of(folder: Path) -> int:
    with suppress(OSError):
        return sum(path.lstat().st_size for path in folder.iterdir())
    return 0


def _used_at(path: Path) -> float:
    """Return when a file was last marked as used; 0 if it is gone."""
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.0f} MB"
