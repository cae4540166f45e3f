"""Locks between the processes that share a hub cache: one of them downloads a model, the others wait for its files.

A lock belongs to an open file (`flock`). So it ends with its process, however that ends, and nothing is left to clean
up; the empty files stay. Where files cannot be locked, as on Windows or in a read-only cache, each process works for
itself.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl

LOCKS = ".locks"
"""The folder in which the hub's client keeps its own locks; it takes no other folder for a model."""
SUFFIX = ".fast-embedding-lock"


class HubLock:
    """A lock on one name. The process that holds it may leave a number in it, for the others to read."""

    def __init__(self, path: Path, descriptor: int | None) -> None:
        """Use `locked`; with None, there is no lock."""
        self._path = path
        self._descriptor = descriptor

    def write(self, number: int) -> None:
        if self._descriptor is not None:
            with suppress(OSError):
                os.pwrite(self._descriptor, f"{number:<20d}".encode(), 0)

    def clear(self) -> None:
        if self._descriptor is not None:
            with suppress(OSError):
                os.ftruncate(self._descriptor, 0)


@contextmanager
def locked(cache_dir: Path, name: str, *, on_wait: Callable[[], object] = lambda: None) -> Iterator[HubLock]:
    """Hold the lock *name* for the length of the block. Blocks while another process, or another thread, holds it.

    Args:
        cache_dir: the hub cache.
        name: what is locked.
        on_wait: called once if the lock is held.
    """
    path = cache_dir / LOCKS / f"{name}{SUFFIX}"
    descriptor = _open(path)
    try:
        if descriptor is not None and not _acquire(descriptor, on_wait):
            os.close(descriptor)
            descriptor = None
        yield HubLock(path, descriptor)
    finally:
        if descriptor is not None:
            os.close(descriptor)  # which releases the lock


def is_held(cache_dir: Path, name: str) -> bool:
    """Whether a process, perhaps this one, holds the lock *name*."""
    with suppress(OSError):
        return _is_held(cache_dir / LOCKS / f"{name}{SUFFIX}")
    return False


def held_numbers(cache_dir: Path) -> dict[str, int]:
    """Return the names of the locks that a process holds, and the number in each; those without one are left out."""
    found = {}
    for path in (cache_dir / LOCKS).glob(f"*{SUFFIX}"):
        with suppress(OSError, ValueError):
            number = int(path.read_bytes())  # most are empty
            if _is_held(path):
                found[path.name.removesuffix(SUFFIX)] = number
    return found


def _open(path: Path) -> int | None:
    if sys.platform == "win32":
        return None
    with suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    return None


def _acquire(descriptor: int, on_wait: Callable[[], object]) -> bool:
    """Lock an open file; return False if it cannot be locked."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        on_wait()
    except OSError:
        return False  # some network file systems have no locks
    else:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return True


def _is_held(path: Path) -> bool:
    if sys.platform == "win32":
        return False
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
