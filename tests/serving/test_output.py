"""Outputs that nobody reads, that are full, closed or gone: the service answers, counts lost lines, and ends."""

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import httpx
import pytest

from tests.support.processes import END_S, killed_at_the_end, open_pidfd
from tests.support.servers import ROOT, environment, free_port

pytestmark = [
    pytest.mark.timeout(90),
    pytest.mark.skipif(sys.platform != "linux", reason="/dev/full, and terminals that a test can stop"),
]

REQUESTS = 60
START_S = 60.0
HELLO = b"hello"
"""What a test writes into an output before the service does."""


def full(descriptor: int) -> int:
    """Write to *descriptor* until nothing more fits, and return it."""
    os.set_blocking(descriptor, False)
    with suppress(BlockingIOError):
        while True:
            os.write(descriptor, HELLO * 100)
    os.set_blocking(descriptor, True)
    return descriptor


def pipe_that_nobody_reads() -> list[int]:
    reading, writing = os.pipe()
    return [full(writing), reading]


def pipe_that_is_nonblocking() -> list[int]:
    reading, writing = os.pipe()
    os.set_blocking(full(writing), False)
    return [writing, reading]


def pipe_whose_reader_has_left() -> list[int]:
    reading, writing = os.pipe()
    os.close(reading)
    return [writing]


def socket_that_nobody_reads() -> list[int]:
    ours, theirs = socket.socketpair()
    return [full(ours.detach()), theirs.detach()]


def terminal_stopped_by_ctrl_s() -> list[int]:
    controlling, terminal = pty.openpty()
    termios.tcflow(terminal, termios.TCOOFF)
    return [terminal, controlling]


def full_disk() -> list[int]:
    return [os.open("/dev/full", os.O_WRONLY)]


@contextmanager
def opened(make_output: Callable[[], list[int]]) -> Iterator[int]:
    """Open an output, and close it and what belongs to it at the end of the block."""
    output, *others = make_output()
    try:
        yield output
    finally:
        for descriptor in (output, *others):
            os.close(descriptor)


@contextmanager
def served(settings: dict[str, str], output: int | None) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """Start a server with *output* as standard output and standard error; None: both are closed. It listens."""
    port = free_port()
    given = environment(
        {"HOST": "127.0.0.1", "LOG_FORMAT": "json", "LOG_LEVEL": "DEBUG", **settings, "PORT": str(port)}
    )
    close = "exec 1>&- 2>&-; " if output is None else ""
    process = subprocess.Popen(
        ["/bin/sh", "-c", f'{close}exec "$0" main.py', sys.executable],
        cwd=ROOT,
        env=given,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
    )
    with killed_at_the_end(process), httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=START_S) as client:
        wait_until_it_listens(process, port)
        yield process, client


def wait_until_it_listens(process: subprocess.Popen[bytes], port: int) -> None:
    """Its log cannot say so here: nobody can read it."""
    with open_pidfd(process.pid) as ended:
        while process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            select.select([ended], [], [], 0.1)
    pytest.fail(f"the server ended with {process.returncode}")


def dropped_lines(client: httpx.Client) -> int:
    return int(client.get("/metrics").json()["log"]["lines_dropped"])


@pytest.fixture
def tiny(tiny_models: Path) -> dict[str, str]:
    return {"MODELS_DIR": str(tiny_models), "REQUIRED_MODELS": "tiny/one"}


@pytest.mark.parametrize(
    ("make_output", "fails_at_once"),
    [
        pytest.param(pipe_that_nobody_reads, False, id="pipe that nobody reads"),
        pytest.param(pipe_that_is_nonblocking, False, id="nonblocking pipe that nobody reads"),
        pytest.param(socket_that_nobody_reads, False, id="socket that nobody reads"),
        pytest.param(terminal_stopped_by_ctrl_s, False, id="terminal stopped by Ctrl-S"),
        pytest.param(pipe_whose_reader_has_left, True, id="pipe whose reader has left"),
        pytest.param(full_disk, True, id="full disk"),
        pytest.param(None, True, id="closed"),
    ],
)
def test_service_answers_and_ends_although_its_output_cannot_be_written(
    make_output: Callable[[], list[int]] | None, tiny: dict[str, str], *, fails_at_once: bool
) -> None:
    with (
        opened(make_output) if make_output else nullcontext() as output,
        served(tiny, output) as (process, client),
    ):
        for _ in range(REQUESTS):
            assert client.get("/health/live").status_code == 200
        assert client.post("/embed", json={"text": "one"}).status_code == 200
        if fails_at_once:
            while dropped_lines(client) <= REQUESTS:
                pass  # the thread that writes has not yet tried all lines
        else:
            assert dropped_lines(client) <= REQUESTS
        text = client.get("/metrics", headers={"Accept": "text/plain"}).text
        assert "\nfast_embedding_log_lines_dropped_total " in text
        process.terminate()
        assert process.wait(END_S) == 0


UNREAD = """
import os, sys
import structlog
from serving.process_start import prepare_process
from telemetry.log_output import MAX_BUFFERED_BYTES, dropped_lines
from telemetry.log_setup import configure_logging
prepare_process()
configure_logging(level="INFO", is_json=True)
log = structlog.get_logger()
while not dropped_lines():
    log.info("line", text="-" * 1000)
os.write(int(sys.argv[1]), b"dropped")
sys.stdin.read()
log.info("last")
"""


def test_log_says_how_many_lines_are_missing_once_it_is_read_again() -> None:
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", UNREAD, str(writing)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[writing],
    )
    os.close(writing)
    with killed_at_the_end(process), os.fdopen(reading, "rb") as dropped:
        assert dropped.read(7) == b"dropped"
        assert process.stdout
        assert process.stdin
        for line in process.stdout:
            if b"log_lines_dropped" in line:
                break
        process.stdin.close()
        event, lines = json.loads(line), process.stdout.read().splitlines()
        assert process.wait(END_S) == 0
    assert (event["output"], event["lines"], event["total"]) == ("stdout", 1, 1)
    assert [json.loads(line)["event"] for line in lines] == ["last"]


@pytest.mark.parametrize("settings", [{"MAX_TEXT_LENGTH": "long"}, {"REQUIRED_MODELS": "no/such"}])
def test_start_that_fails_ends_in_time_although_nobody_reads_why(settings: dict[str, str]) -> None:
    with opened(pipe_that_nobody_reads) as output:
        ended = subprocess.run(
            [sys.executable, "main.py"],
            cwd=ROOT,
            env=environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=START_S,
            check=False,
        )
    assert ended.returncode == 1


C_LEVEL = """
import os, sys
from serving.process_start import prepare_process
prepare_process()
for descriptor in (1, 2):
    try:
        while True:
            os.write(descriptor, b"from a library in C" * 50)
    except OSError:
        pass
os._exit(7)
"""


@pytest.mark.parametrize(
    "make_output", [pipe_that_nobody_reads, socket_that_nobody_reads, terminal_stopped_by_ctrl_s, full_disk]
)
def test_library_in_c_that_writes_to_a_full_output_does_not_block(make_output: Callable[[], list[int]]) -> None:
    with opened(make_output) as output:
        ended = subprocess.run(
            [sys.executable, "-c", C_LEVEL], cwd=ROOT, stdout=output, stderr=output, timeout=START_S, check=False
        )
        assert ended.returncode == 7
        is_still_blocking = os.get_blocking(output) or make_output is socket_that_nobody_reads
        assert is_still_blocking  # the output that this process shares with it


def test_log_is_complete_after_a_normal_end(tiny: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as output, served(tiny, output.fileno()) as (process, client):
        for number in range(REQUESTS):
            client.get("/health/live", headers={"X-Request-ID": f"number-{number}"})
        process.send_signal(signal.SIGTERM)
        assert process.wait(END_S) == 0
    lines = log.read_text(encoding="utf-8").splitlines()
    assert sum('"number-' in line for line in lines) == REQUESTS
    assert "Finished server process" in lines[-1]
