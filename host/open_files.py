"""The number of files that this process may open; connections count, too."""

import sys

if sys.platform != "win32":
    import resource


def raise_file_limit() -> int | None:
    """Allow this process as many open files as the system lets it have; return that number, or None: no limit."""
    if sys.platform == "win32":
        return None
    _, max_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if max_files == resource.RLIM_INFINITY:
        return None
    resource.setrlimit(resource.RLIMIT_NOFILE, (max_files, max_files))
    return max_files
