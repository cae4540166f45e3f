"""Why a folder cannot be written, and what helps; for who starts the service, as it names places and users."""

import os
import stat
from pathlib import Path


def existing(path: Path) -> Path:
    """The path, or the nearest one above it that exists."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if os.path.lexists(place))


def why_not_writable(folder: Path) -> str | None:
    """Why no files can be made in *folder*, which may not exist yet; None: they can."""
    place = existing(folder)
    if not place.is_dir():
        return f"{place} is no folder"
    if os.access(place, os.W_OK | os.X_OK):
        return None
    if os.statvfs(place).f_flag & os.ST_RDONLY:
        return f"{place} is read-only; mount a volume there that can be written"
    found, user = place.stat(), os.geteuid()
    told = f"{place} belongs to user {found.st_uid} (mode {stat.S_IMODE(found.st_mode):o}), the service runs as user"
    return f"{told} {user}; `chown -R {user} {place}` lets it write"
