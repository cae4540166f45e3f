"""A process that a test has started, and its output. Nothing polls: each new line wakes up those who wait for it."""

import json
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

START_S = 60
"""How long a test waits for a line by default: longer than a start takes on a busy machine."""


class LoggedProcess:
    """A process whose standard output and standard error are collected as one log."""

    def __init__(self, command: Sequence[str], *, folder: Path, environment: Mapping[str, str]) -> None:
        self.lines: list[str] = []
        self._grown = threading.Condition()
        self._has_ended = False
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def log(self) -> str:
        """Everything that the process has written so far."""
        return "".join(self.lines)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The lines that are JSON, parsed."""
        return [json.loads(line) for line in self.lines if line.startswith("{")]

    def wait_until(self, is_there: Callable[[], bool], what: str, *, timeout_s: float = START_S) -> None:
        """Return as soon as a new line makes *is_there* true; fail if the process or the time ends before."""
        with self._grown:
            self._grown.wait_for(lambda: is_there() or self._has_ended, timeout_s)
        assert is_there(), f"no {what} in the log; exit code {self.process.poll()}\n{self.log}"

    def wait_for_end(self, *, timeout_s: float = START_S) -> int:
        """Wait until the process has ended and `log` is complete, and return the exit code."""
        code = self.process.wait(timeout_s)
        self._reader.join(timeout_s)
        return code

    def stop(self) -> None:
        """Send SIGTERM, and SIGKILL if the process does not end within 30 s."""
        self.process.terminate()
        try:
            self.wait_for_end(timeout_s=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.wait_for_end()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                with suppress(BrokenPipeError):
                    pipe.close()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            with self._grown:
                self.lines.append(line)
                self._grown.notify_all()
        with self._grown:
            self._has_ended = True
            self._grown.notify_all()
