"""Reads small files that operators provide, such as keys and secrets. Never waits for a pipe; never reads for ever."""

import os
import stat
from pathlib import Path


class SmallFileError(ValueError):
    """The file cannot be used. The message says why; it contains neither the path nor any of the content."""


def read_small_file(path: Path, *, max_bytes: int) -> bytes:
    """Return the content of a regular file.

    Raises:
        SmallFileError: it is a pipe, a device or larger than *max_bytes*.
        OSError: it cannot be read; a folder is an `IsADirectoryError`.
    """
    # Opening a pipe waits for its writer without O_NONBLOCK; for regular files, the flag has no effect.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as opened:
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            raise SmallFileError("it is not a regular file, but a pipe or a device")
        content: bytes = opened.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise SmallFileError(f"it is larger than {max_bytes} bytes")
    return content


def read_small_text(path: Path, *, max_bytes: int) -> str:
    """Return the content of a regular file as text, without a byte order mark.

    Raises:
        SmallFileError: see `read_small_file`; or it is not UTF-8.
        OSError: it cannot be read.
    """
    try:
        return read_small_file(path, max_bytes=max_bytes).decode().removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise SmallFileError("it is not UTF-8") from None
