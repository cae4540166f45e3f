"""Processes that a test starts itself. `LoggedProcess` is for those whose output a test waits for line by line."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import AnyStr

END_S = 30
"""How long a process may take to end by itself. Much longer than any takes: a test that waits so long found a hang."""


@contextmanager
def killed_at_the_end(process: subprocess.Popen[AnyStr]) -> Iterator[subprocess.Popen[AnyStr]]:
    """Kill *process* at the end of the block if it still runs, and close its pipes.

    `with process` alone waits without a limit, so a failed assertion or the time-out of a test would become a hang.
    A test that expects the process to end by itself waits for that in the block.
    """
    with process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def open_pidfd(pid: int) -> Iterator[int]:
    """Open a descriptor that is readable once the process has ended."""
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def without_coverage(variables: dict[str, str]) -> dict[str, str]:
    """Return *variables* without those by which coverage measures a process, for one that a signal interrupts anywhere.

    The tracer takes a lock at every call. An exception or a handler that coverage runs in between never releases it, or
    waits for it, and the process hangs (coverage.py issue 1892).
    """
    return {name: value for name, value in variables.items() if not name.startswith(("COV_", "COVERAGE_"))}
