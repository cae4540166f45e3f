"""Starts child processes, and collects their exit codes.

As process 1 of a container, this process inherits children of others. Their exit codes must be collected as well, or
they stay as zombies. asyncio's own child watchers wait for single processes, so they cannot do that.
"""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

POLL_S = 0.005
"""Pause between two looks at processes that were killed."""


class ChildProcesses:
    """Owns the children of this process. Belongs to one event loop, in the main thread."""

    def __init__(self) -> None:
        self._running: dict[int, tuple[subprocess.Popen[bytes], asyncio.Future[int]]] = {}

    def open(self) -> None:
        """Collect exit codes from now on; call it in the event loop."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._collect)

    def start(
        self, command: Sequence[str], *, environment: Mapping[str, str], descriptors: Sequence[int]
    ) -> tuple[int, asyncio.Future[int]]:
        """Start a process in a process group of its own; return its number, and a future of its exit code.

        Ctrl-C in a terminal then reaches this process only, which stops the children itself. The exit code is that of
        `subprocess`: minus the number of the signal that ended the process.

        Raises:
            OSError: the system cannot start it.
        """
        process = subprocess.Popen(  # noqa: S603 - the command of this process itself
            command, env=environment, pass_fds=descriptors, stdin=subprocess.DEVNULL, process_group=0
        )
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._running[process.pid] = process, ended
        return process.pid, ended

    def wait_for_all(self, timeout_s: float) -> None:
        """Block until no process runs that `start` has started, for at most *timeout_s*."""
        ends_s = time.monotonic() + timeout_s
        while self._running and time.monotonic() < ends_s:
            self._collect()
            time.sleep(POLL_S)

    def _collect(self) -> None:
        for pid in tuple(self._running):
            with suppress(ChildProcessError):  # a signal handler has interrupted this function, and called it
                self._note(*os.waitpid(pid, os.WNOHANG))
        if os.getpid() == 1:
            with suppress(ChildProcessError):  # there is no child left
                while (found := os.waitpid(-1, os.WNOHANG))[0]:
                    self._note(*found)

    def _note(self, pid: int, status: int) -> None:
        if (known := self._running.pop(pid, None)) is not None:  # not 0, which means that the process still runs
            process, ended = known
            process.returncode = os.waitstatus_to_exitcode(status)  # or its destructor would wait, too
            ended.set_result(process.returncode)


def end_of(code: int) -> str:
    """Return how a process ended: its exit code, or the name of the signal that killed it."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
