"""Which cores the processes of a drill may use, and how many files they may open."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def pinned(cores: set[int]) -> Iterator[None]:
    """Let processes that are started in the block use these *cores* only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def split_cores(*, is_shared: bool) -> tuple[set[int], set[int]]:
    """Return the cores of the server and those of its clients: the last one; if *is_shared*, all cores for both."""
    usable = sorted(os.sched_getaffinity(0))
    if is_shared or len(usable) == 1:
        return set(usable), set(usable)
    return set(usable[:-1]), set(usable[-1:])


def raise_open_files_limit() -> int:
    """Let this process open as many files and sockets as the system allows, and return how many."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    return limit
