"""Processes that a benchmark starts: the service, and children that answer commands. Each ends with its block."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.machine import ROOT

MAX_START_S = 120.0
MAX_EXIT_S = 15.0
WITHOUT_RESULT_CACHE = {"RESULT_CACHE_MB": "0", "RESULT_CACHE_REDIS": "false"}
"""Settings of every server that a benchmark or drill starts and that has no others: what is measured is computed."""


class BenchError(Exception):
    """The benchmark cannot continue. The message is one line for its user."""


@contextmanager
def spawned(arguments: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start Python with *arguments*, and end the process with the block.

    It runs in a session of its own, so that Ctrl-C reaches this process only, which then ends the others.
    """
    process = subprocess.Popen(
        [sys.executable, *arguments],
        start_new_session=True,
        text=True,
        encoding="utf-8",
        **{"cwd": ROOT, **options},
    )
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(MAX_EXIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            with suppress(BrokenPipeError):
                pipe.close()


def end_tree(process: subprocess.Popen[bytes], pids: list[int]) -> None:
    """End a process that this one started, and what is left of *pids*, its descendants."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(MAX_EXIT_S)
    for pid in pids[1:]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.kill()
    process.wait()


def end_children_on_sigterm() -> None:
    """Handle SIGTERM like Ctrl-C, so that blocks of `spawned` end their processes."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


class Child:
    """A process that answers each command, a line of JSON, with a line of JSON; see `answer_commands`."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self._name = name
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, command: str, **arguments: Any) -> Any:
        if self._process.stdin is None or self._process.stdout is None:
            raise BenchError(f"The {self._name} process has no pipes.")
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": command, **arguments}) + "\n")
            self._process.stdin.flush()
        if answer := self._process.stdout.readline():
            return json.loads(answer)
        raise BenchError(f"The {self._name} process ended too early. Its output is above.")


@contextmanager
def child(module: str, folder: Path) -> Iterator[Child]:
    """Start `python -m benchmarks.MODULE FOLDER`."""
    pipe = subprocess.PIPE
    with spawned(["-m", f"benchmarks.{module}", str(folder)], stdin=pipe, stdout=pipe) as process:
        yield Child(module, process)


def answer_commands(commands: dict[str, Callable[..., Any]]) -> None:
    """Answer commands in a child process until stdin ends, which it does whenever the parent ends."""
    for line in sys.stdin:
        arguments = json.loads(line)
        print(json.dumps(commands[arguments.pop("do")](**arguments)), flush=True)


@dataclass(frozen=True, slots=True)
class Answer:
    """A response: its status (0 if none came), its JSON and the time it took in milliseconds."""

    status: int
    json: Any
    ms: float


@dataclass(frozen=True, slots=True)
class Server:
    """A running service."""

    port: int
    process: subprocess.Popen[str]
    log: IO[bytes]

    def get(self, path: str) -> Answer:
        return self._exchange("GET", path)

    def post(self, path: str, body: object) -> Answer:
        return self._exchange("POST", path, json.dumps(body))

    def delete(self, path: str) -> Answer:
        return self._exchange("DELETE", path)

    def _exchange(self, method: str, path: str, body: str | None = None) -> Answer:
        """Send a request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        began = time.perf_counter()
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            response = connection.getresponse()
            content = response.read()
            return Answer(
                response.status, json.loads(content) if content else None, (time.perf_counter() - began) * 1e3
            )
        except (OSError, http.client.HTTPException):
            return Answer(0, None, (time.perf_counter() - began) * 1e3)
        finally:
            connection.close()

    def log_length(self) -> int:
        return os.fstat(self.log.fileno()).st_size

    def events_after(self, offset: int) -> Iterator[dict[str, Any]]:
        """Yield the JSON lines that were logged after the first *offset* bytes."""
        for line in os.pread(self.log.fileno(), self.log_length() - offset, offset).splitlines():
            with suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    yield event

    def raise_if_ended(self) -> None:
        if (code := self.process.poll()) is not None:
            tail = os.pread(self.log.fileno(), 2000, max(0, self.log_length() - 2000))
            log = tail.decode("utf-8", "replace").strip()
            raise BenchError(f"The server ended with code {code}. The end of its log:\n{log}")

    def wait_for(self, is_reached: Callable[[], bool], *, pause_s: float = 0.05) -> None:
        """Poll until *is_reached* returns true.

        Raises:
            BenchError: the server ended, or did not get there within MAX_START_S.
        """
        deadline = time.monotonic() + MAX_START_S
        while not is_reached():
            self.raise_if_ended()
            if time.monotonic() > deadline:
                raise BenchError(f"The server was not ready within {MAX_START_S:.0f} s.")
            time.sleep(pause_s)


@contextmanager
def spawned_server(
    settings: Mapping[str, str] | None = None,
    *,
    lanes: int,
    log_level: str = "INFO",
    checkout: Path = ROOT,
    command: tuple[str, ...] = ("main.py",),
    **popen_options: Any,
) -> Iterator[Server]:
    """Start the service of *checkout* on a free port, without waiting until it is ready. Its log goes to a file.

    It has no result cache unless *settings* say so. Revisions that do not know these settings ignore them.
    """
    port = free_port()
    given = {"HOST": "127.0.0.1", "PORT": str(port), "LOG_LEVEL": log_level, "THREAD_POOL_WORKERS": str(lanes)}
    given |= WITHOUT_RESULT_CACHE
    with (
        tempfile.TemporaryFile() as log,
        spawned(
            [*command],
            cwd=checkout,
            env={**os.environ, **given, **(settings or {})},
            stdout=log,
            stderr=subprocess.STDOUT,
            **{"stdin": subprocess.DEVNULL, **popen_options},
        ) as process,
    ):
        yield Server(port, process, log)


@contextmanager
def healthy_server(settings: Mapping[str, str] | None = None, **options: Any) -> Iterator[Server]:
    """Start the service as `spawned_server` does, and wait until `/health` answers with 200."""
    with spawned_server(settings, **options) as server:
        server.wait_for(lambda: server.get("/health").status == http.client.OK)
        yield server


def free_port() -> int:
    """Return a port that is free now. Another process can take it before the server does, which then fails to start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
