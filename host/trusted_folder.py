"""Folders whose content only this user, or root, can have written: checks, locks, and changes as a whole.

A user who can write a file that the service maps into memory decides what it computes, and can end it by cutting the
file short. So files are used only if no other user can write them, and are never changed in place.
"""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

HAS_FILE_LOCKS = fcntl is not None
"""Whether the system has the locks and owners of POSIX; without them, nothing here can be used."""
ROOT_USER = 0
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
FOLDER_MODE, FILE_MODE = 0o700, 0o600
NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""Opening does not follow a symbolic link, and does not wait for the writer of a pipe."""
GONE = ".gone"
"""Ends the name of a folder that is being removed."""


class UntrustedError(Exception):
    """A file or folder is not what it must be. The message says why, without a capital letter and a full stop."""


def check_folder(path: Path) -> None:
    """Check that *path* is a folder that only this user and root can write.

    Raises:
        UntrustedError: it is not.
        OSError: it does not exist, or cannot be looked at.
    """
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        raise UntrustedError(f"{path.name} is a symbolic link")
    if not stat.S_ISDIR(status.st_mode):
        raise UntrustedError(f"{path.name} is not a folder")
    _check_writers(path, status)


def check_file(path: Path) -> os.stat_result:
    """Check that *path* is a regular file that only this user and root can write, and return its status.

    Raises:
        UntrustedError: it is not.
        OSError: it does not exist, or cannot be looked at.
    """
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        raise UntrustedError(f"{path.name} is not a regular file")
    _check_writers(path, status)
    return status


def _check_writers(path: Path, status: os.stat_result) -> None:
    if status.st_uid not in (ROOT_USER, os.geteuid()):
        raise UntrustedError(f"{path.name} belongs to user {status.st_uid}")
    if status.st_mode & OTHERS_WRITE:
        mode = stat.S_IMODE(status.st_mode)
        raise UntrustedError(f"other users can write {path.name} (mode {mode:o}); run `chmod go-w` on it")


def open_folder(path: Path) -> None:
    """Create the folder *path* for this user only, unless it exists, and check it.

    Raises:
        UntrustedError: it is not a folder that only this user and root can write.
        OSError: it cannot be created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        path.mkdir(mode=FOLDER_MODE)
    check_folder(path)


def write_file(path: Path, content: bytes) -> None:
    """Write *path* so that readers find the old content, the new content or no file, also after a power failure.

    Raises:
        OSError: it cannot be written.
    """
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")  # process ids repeat between containers
    try:
        with open(new, "wb", opener=lambda name, flags: os.open(name, flags, FILE_MODE)) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def publish_folder(new: Path, path: Path) -> None:
    """Give the complete folder *new* the name *path*, which must be free. Its files are on the disk before.

    Raises:
        OSError: there is no space, or *path* exists.
    """
    for part in (*new.iterdir(), new):
        _sync(part)
    new.rename(path)
    _sync(path.parent)


def remove_folder(path: Path, *, lock: str) -> None:
    """Remove a folder and its files. What cannot be removed stays.

    The folder loses its name first, so that no process finds a part of it. Its files are removed only when no process
    holds the lock of its file *lock*: on network file systems, a mapped file that is removed elsewhere kills its user.
    """
    gone = path if path.suffix == GONE else path.with_name(f".{path.name.strip('.')}.{os.getpid()}{GONE}")
    with suppress(OSError):
        path.rename(gone)
        if not (gone / lock).exists():
            shutil.rmtree(gone, ignore_errors=True)
            return
        with try_lock(gone / lock, keep=True) as is_free:
            if is_free:
                shutil.rmtree(gone, ignore_errors=True)


def _sync(path: Path) -> None:
    """Write a file's content, or a folder's list of names, to the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextmanager
def try_lock(path: Path, *, keep: bool = False) -> Iterator[bool]:
    """Hold the lock of the file *path* for the length of the block; False if any process or thread holds it.

    A process that ends in any way loses its locks.

    Args:
        path: the file.
        keep: it exists, and stays; else it is created, and removed afterwards.

    Raises:
        OSError: the file cannot be created, or the file system has no locks.
    """
    opened = os.open(path, os.O_RDWR | NO_LINK | (0 if keep else os.O_CREAT), FILE_MODE)
    try:
        is_held = _lock(opened, path, fcntl.LOCK_EX)
        try:
            yield is_held
        finally:
            if is_held and not keep:
                path.unlink(missing_ok=True)
    finally:
        os.close(opened)


def hold_shared(path: Path) -> int:
    """Take a lock of the existing file *path* that excludes only `try_lock`, and return the descriptor that holds it.

    Raises:
        FileNotFoundError: it does not exist, or is being removed.
        OSError: it cannot be opened, or the file system has no locks.
    """
    opened = os.open(path, os.O_RDONLY | NO_LINK)
    try:
        is_held = _lock(opened, path, fcntl.LOCK_SH)
    except BaseException:
        os.close(opened)
        raise
    if is_held:
        return opened
    os.close(opened)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def _lock(opened: int, path: Path, kind: int) -> bool:
    """Lock an open file without waiting; False if that is impossible now, or *path* is another file by now."""
    try:
        fcntl.flock(opened, kind | fcntl.LOCK_NB)
        return os.path.samestat(path.stat(), os.fstat(opened))
    except (BlockingIOError, FileNotFoundError):
        return False
