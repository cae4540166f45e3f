"""Explains why a folder is not writable and how to fix it.

The explanations contain paths and user ids, so they are for operators, not for callers.
"""

import os
import stat
from pathlib import Path


def nearest_existing(path: Path) -> Path:
    """Return *path*, or its nearest parent that exists."""
    path = path.absolute()
    return next(candidate for candidate in (path, *path.parents) if os.path.lexists(candidate))


def why_not_writable(folder: Path) -> str | None:
    """Return why files cannot be created in *folder*, which may not exist yet, or None if they can."""
    path = nearest_existing(folder)
    if not path.is_dir():
        return f"{path} is not a folder"
    if os.access(path, os.W_OK | os.X_OK):
        return None
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        return f"{path} is read-only; mount a writable volume there"
    status, user = path.stat(), os.geteuid()
    owner = f"{path} belongs to user {status.st_uid} (mode {stat.S_IMODE(status.st_mode):o})"
    return f"{owner}, but the service runs as user {user}; run `chown -R {user} {path}`"
