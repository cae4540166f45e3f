"""Bounds the disk space of the hub cache: a download that does not fit is refused before it begins.

What other processes download into the same cache counts, too: they leave the size in their locks.
"""

import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from engine.catalog import Model
from engine.errors import ModelUnavailableError
from engine.hub_locks import LOCKS, HubLock, held_numbers, locked
from host.folder_permissions import nearest_existing

COPIES_FOLDER = "optimised-models"
"""The default folder of optimised copies, below the hub cache. They have a limit of their own and give way by age."""
FREE_SHARE = 10
"""Without a limit, one part in so many of the disk stays free: logs and other programs need space, too."""
SPACE = "space"
"""The lock within which processes look for space and reserve it, one at a time."""
INCOMPLETE = "*.incomplete"
"""Files of downloads under way. The hub's client never resumes one: their names are random."""
STALE_S = 3600.0
"""Seconds without a write after which such a file is deleted: its process was killed. A download that is under way
writes at least every few seconds, or the client's time-out ends it."""


@dataclass(slots=True)
class _Download:
    """One download under way.

    Attributes:
        folder: of its repository in the cache.
        end_bytes: the size of that folder once the download is complete.
    """

    folder: Path
    end_bytes: int

    @property
    def missing_bytes(self) -> int:
        return max(0, self.end_bytes - size_of(self.folder))


class HubSpace:
    """Reserves space for downloads into one hub cache. Its methods block, and may be called by several threads."""

    def __init__(
        self,
        cache_dir: Path,
        *,
        max_bytes: int | None,
        disk_usage: Callable[[Path], tuple[int, int, int]] = shutil.disk_usage,
    ) -> None:
        """Measure nothing before the first reservation.

        Args:
            cache_dir: the hub cache.
            max_bytes: maximum for all its files (HUB_CACHE_MAX_SIZE); None: all but a tenth of the disk.
            disk_usage: returns the total, used and free bytes of a folder's disk.
        """
        self._cache_dir = cache_dir
        self._max_bytes = max_bytes
        self._disk_usage = disk_usage
        self._downloads: list[_Download] = []
        self._lock = threading.Lock()

    @contextmanager
    def reserve(
        self, model: Model, folder: Path, *, may_fill_disk: bool = False, lock: HubLock | None = None
    ) -> Iterator[None]:
        """Reserve the size of *model*, as its card states it, for the length of the block.

        Args:
            model: what is downloaded.
            folder: of its repository in the cache.
            may_fill_disk: use the last tenth of the disk, too: the operator asked for this model.
            lock: the lock on the download, named as *folder*, through which other processes see what it needs.

        Raises:
            ModelUnavailableError: there is not enough space, with the other downloads under way.
        """
        with self._lock, locked(self._cache_dir, SPACE):
            _delete_stale_files(self._cache_dir)
            if (cause := self._why_no_space(model.size_bytes, may_fill_disk=may_fill_disk)) is not None:
                raise ModelUnavailableError(model.name, cause)
            download = _Download(folder, size_of(folder) + model.size_bytes)
            self._downloads.append(download)
            if lock:
                lock.write(download.end_bytes)
        try:
            yield
        finally:
            with self._lock:
                self._downloads.remove(download)
                if lock:
                    lock.clear()

    def _why_no_space(self, needed: int, *, may_fill_disk: bool) -> str | None:
        own = {download.folder.name for download in self._downloads}
        others = [
            _Download(self._cache_dir / name, end_bytes)
            for name, end_bytes in held_numbers(self._cache_dir).items()
            if name not in own
        ]
        reserved = sum(download.missing_bytes for download in (*self._downloads, *others))
        if self._max_bytes is not None and (used := self._used_bytes() + reserved) + needed > self._max_bytes:
            return (
                f"its download needs {_mb(needed)}, and {_mb(used)} of the {_mb(self._max_bytes)} that "
                "HUB_CACHE_MAX_SIZE allows are in use"
            )
        try:
            total, _, free = self._disk_usage(nearest_existing(self._cache_dir))
        except OSError:
            return None  # the download will say what is wrong with the folder
        if not total:
            return None
        kept = 0 if may_fill_disk or self._max_bytes is not None else total // FREE_SHARE
        if needed > free - reserved - kept:
            beside = f", of which {_mb(kept)} stay free unless HUB_CACHE_MAX_SIZE is set" if kept else ""
            return f"its download needs {_mb(needed)}, and the disk has {_mb(max(0, free - reserved))} left{beside}"
        return None

    def _used_bytes(self) -> int:
        others = (LOCKS, COPIES_FOLDER)
        return size_of(self._cache_dir) - sum(size_of(self._cache_dir / name) for name in others)


def size_of(folder: Path) -> int:
    """Return the bytes of all files below *folder*, each once: links to a file are not counted. Blocks."""
    sizes: dict[tuple[int, int], int] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # a download has moved it meanwhile
                status = os.lstat(os.path.join(parent, name))  # noqa: PTH118 - half the time of paths
                if stat.S_ISREG(status.st_mode):
                    sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())


def _delete_stale_files(cache_dir: Path) -> None:
    """Delete what killed processes have left of their downloads."""
    for path in cache_dir.glob(f"*/blobs/{INCOMPLETE}"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_S:
                path.unlink()


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.0f} MB"
