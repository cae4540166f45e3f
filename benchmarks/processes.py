"""The processes a benchmark starts, each ended by the one who started it."""

import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.load import Job, Report, report_of
from benchmarks.openloop import OpenJob, OpenReport
from benchmarks.openloop import report_of as open_report_of
from tests.support.servers import free_port

ROOT = Path(__file__).resolve().parent.parent
HEALTHY_WITHIN_S = 120.0
ENDED_WITHIN_S = 15.0


class BenchError(Exception):
    """The benchmark cannot go on; the message is one line for the person who started it."""


class NotLoggedError(BenchError):
    """The server's log does not tell the micro-batches it ran."""


class RowError(BenchError):
    """One row cannot be measured; the others can."""


@contextmanager
def spawned(arguments: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a process in a session of its own, so Ctrl-C reaches us only, and end it on the way out."""
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
        end(process)


def end_children_on_sigterm() -> None:
    """Leave as Ctrl-C does when this process is told to end: what it has started ends, too."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(ENDED_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            with suppress(BrokenPipeError):
                pipe.close()


class Child:
    """A process of ours that answers a line of JSON with a line of JSON."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self._name = name
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, command: str, **arguments: Any) -> Any:
        if self._process.stdin is None or self._process.stdout is None:
            raise BenchError(f"The {self._name} has no pipes.")
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": command, **arguments}) + "\n")
            self._process.stdin.flush()
        if answer := self._process.stdout.readline():
            return json.loads(answer)
        raise BenchError(f"The {self._name} ended unasked (its last words are above).")


@contextmanager
def child(module: str, folder: Path) -> Iterator[Child]:
    pipe = subprocess.PIPE
    with spawned(["-m", f"benchmarks.{module}", str(folder)], stdin=pipe, stdout=pipe) as process:
        yield Child(f"{module} process", process)


def run_open_load(job: OpenJob) -> OpenReport:
    """Run the generator that does not wait for answers, once."""
    pipe = subprocess.PIPE
    with spawned(["-m", "benchmarks.openloop"], stdin=pipe, stdout=pipe) as process:
        output, _ = process.communicate(json.dumps(asdict(job)))
    if not output:
        raise BenchError("The load generator ended unasked (its last words are above).")
    return open_report_of(json.loads(output))


def run_load(job: Job) -> Report:
    """Run the load generator once.

    Raises:
        RowError: a request was answered with something other than 200, or not at all.
    """
    pipe = subprocess.PIPE
    with spawned(["-m", "benchmarks.load"], stdin=pipe, stdout=pipe) as process:
        output, _ = process.communicate(json.dumps(asdict(job)))
    answer = json.loads(output or '{"error": "the load generator ended unasked"}')
    if "error" in answer:
        raise RowError(f"aborted, not every answer was a 200: {answer['error']}")
    return report_of(answer)


@dataclass(frozen=True, slots=True)
class Server:
    """The service, running."""

    port: int
    process: subprocess.Popen[str]
    log: IO[bytes]

    def get(self, path: str) -> int:
        """Tell the status of a GET; 0 when nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    def log_length(self) -> int:
        return os.fstat(self.log.fileno()).st_size

    def events_after(self, offset: int) -> Iterator[dict[str, Any]]:
        """Give the JSON lines the server logged after the first *offset* bytes."""
        for line in os.pread(self.log.fileno(), self.log_length() - offset, offset).splitlines():
            with suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    yield event

    def last_words(self) -> str:
        start = max(0, self.log_length() - 2000)
        return os.pread(self.log.fileno(), 2000, start).decode("utf-8", "replace").strip()


@contextmanager
def spawned_server(*, log_level: str, lanes: int, checkout: Path = ROOT, **others: str) -> Iterator[Server]:
    """Spawn `python main.py` on a free port, and do not wait for it; its log goes to a file, so nobody need read it.

    *others* are further settings of the service.
    """
    port = free_port()
    settings = {"HOST": "127.0.0.1", "PORT": str(port), "LOG_LEVEL": log_level, "THREAD_POOL_WORKERS": str(lanes)}
    with (
        tempfile.TemporaryFile() as log,
        spawned(
            ["main.py"],
            cwd=checkout,
            env=os.environ | settings | others,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        yield Server(port, process, log)


@contextmanager
def healthy_server(*, log_level: str, lanes: int, checkout: Path = ROOT, **others: str) -> Iterator[Server]:
    with spawned_server(log_level=log_level, lanes=lanes, checkout=checkout, **others) as server:
        deadline = time.monotonic() + HEALTHY_WITHIN_S
        while server.get("/health") != http.client.OK:
            refuse_if_over(server, deadline)
            time.sleep(0.05)
        yield server


def refuse_if_over(server: Server, deadline: float) -> None:
    refuse_if_ended(server)
    if time.monotonic() > deadline:
        raise BenchError(f"The server was not ready within {HEALTHY_WITHIN_S:.0f} s.")


def refuse_if_ended(server: Server) -> None:
    if (code := server.process.poll()) is not None:
        raise BenchError(f"The server ended with code {code}. Its last words:\n{server.last_words()}")
