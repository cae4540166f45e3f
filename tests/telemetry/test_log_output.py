"""Outputs that block, fail or come back: no write blocks, lost lines are counted, and no other line is lost."""

import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from telemetry.log_output import MAX_PARTIAL_CHARACTERS, LineStream, LineWriter
from tests.support.servers import ROOT

PIPE_BYTES = 4096
"""The smallest pipe that Linux makes."""
WAIT_S = 30.0

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs a pipe of known size")


class Pipe:
    """A small pipe that only reads when asked to."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self._open = {self.reading, self.writing}
        if sys.platform == "linux":
            fcntl.fcntl(self.writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def close(self, *descriptors: int) -> None:
        """Close these ends, or both, unless they are closed: another thread may have their numbers by now."""
        for descriptor in self._open & set(descriptors or self._open):
            self._open.remove(descriptor)
            os.close(descriptor)

    def fill(self) -> int:
        """Write until nothing more fits; return the bytes."""
        written = 0
        os.set_blocking(self.writing, False)
        with suppress(BlockingIOError):
            while True:
                written += os.write(self.writing, b"-")
        os.set_blocking(self.writing, True)
        return written

    def read(self, size: int) -> bytes:
        content = b""
        while len(content) < size:
            content += os.read(self.reading, size - len(content))
        return content

    def read_lines_until(self, writer: LineWriter) -> list[bytes]:
        """Read while *writer* writes all that it has; return the lines."""
        content = bytearray()

        def read() -> None:
            while part := os.read(self.reading, 65536):
                content.extend(part)

        reader = threading.Thread(target=read)
        reader.start()
        writer.flush(WAIT_S)
        self.close(self.writing)
        reader.join(WAIT_S)
        self.close(self.reading)
        return bytes(content).splitlines()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def test_lines_are_written_in_order_and_none_is_lost(pipe: Pipe) -> None:
    writer = LineWriter(pipe.writing)
    lines = [b"line %d" % number for number in range(20_000)]
    for line in lines:
        writer.write(line + b"\n")
    assert pipe.read_lines_until(writer) == lines
    assert writer.dropped == 0


@linux_only
def test_full_pipe_drops_what_exceeds_the_buffer_and_reports_it_when_it_is_read(pipe: Pipe) -> None:
    writer, reports = LineWriter(pipe.writing, max_bytes=10_000), []
    writer.on_recovery = lambda *counts: reports.append(counts)
    filled = pipe.fill()
    lines = [b"%99d" % number for number in range(500)]
    for line in lines:
        writer.write(line + b"\n")
    assert writer.dropped == 400
    assert pipe.read(filled) == b"-" * filled
    assert pipe.read_lines_until(writer) == lines[:100]
    writer.flush(WAIT_S)
    assert reports == [(400, 400)]


@linux_only
def test_flush_of_a_full_pipe_ends_in_time_and_a_second_one_at_once(pipe: Pipe) -> None:
    writer = LineWriter(pipe.writing)
    filled = pipe.fill()
    writer.write(b"a\n")
    writer.flush(0.01)
    writer.flush(WAIT_S * 1000)  # the test would time out
    pipe.read(filled)
    assert pipe.read_lines_until(writer) == [b"a"]


@linux_only
def test_output_that_somebody_made_nonblocking_is_waited_for(pipe: Pipe) -> None:
    filled = pipe.fill()
    os.set_blocking(pipe.writing, False)
    writer = LineWriter(pipe.writing)
    writer.write(b"a\n" * 5000)
    pipe.read(filled)
    assert pipe.read_lines_until(writer) == [b"a"] * 5000
    assert writer.dropped == 0


def test_lines_for_a_reader_that_has_left_are_dropped_and_counted(pipe: Pipe) -> None:
    pipe.close(pipe.reading)
    writer = LineWriter(pipe.writing)
    writer.write(b"a\nb\n")
    writer.flush(WAIT_S)
    assert writer.dropped == 2


def test_lines_for_a_closed_output_are_dropped_and_counted() -> None:
    writer = LineWriter(None)
    writer.write(b"a\n")
    writer.flush(WAIT_S)
    assert writer.dropped == 1


@linux_only
def test_lines_are_written_again_once_a_full_disk_has_space(pipe: Pipe) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    writer, reports = LineWriter(full), []
    writer.on_recovery = lambda *counts: reports.append(counts)
    for _ in range(3):
        writer.write(b"lost\n")
    writer.flush(WAIT_S)
    assert (writer.dropped, reports) == (3, [])
    os.dup2(pipe.writing, full)
    writer.write(b"written\n")
    writer.flush(WAIT_S)
    os.close(full)
    assert pipe.read_lines_until(writer) == [b"written"]
    writer.flush(WAIT_S)
    assert reports == [(3, 3)]


def output_of(script: str) -> list[str]:
    """Return the lines that *script* writes in a process of its own."""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


HALF_A_LINE = """
import resource, tempfile
from telemetry.log_output import LineWriter
with tempfile.TemporaryFile() as file:
    resource.setrlimit(resource.RLIMIT_FSIZE, (7, resource.RLIM_INFINITY))
    writer = LineWriter(file.fileno())
    for line in (b"one\\n", b"second\\n"):
        writer.write(line)
        writer.flush(30)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    writer.write(b"third\\n")
    writer.flush(30)
    file.seek(0)
    print(file.read(), writer.dropped)
"""


@linux_only
def test_line_after_one_that_was_cut_off_begins_on_a_line_of_its_own() -> None:
    assert output_of(HALF_A_LINE) == [r"b'one\nsec\nthird\n' 1"]


FORKED = """
import os, sys
from telemetry.log_output import redirect_output
redirect_output()
print("parent")
if os.fork() == 0:
    print("child")
    sys.exit()
os.wait()
print("parent again")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_process_writes_its_own_lines_only() -> None:
    assert sorted(output_of(FORKED)) == ["child", "parent", "parent again"]


INTERRUPTED = """
import signal
import structlog
from telemetry.log_output import flush_output, redirect_output
from telemetry.log_setup import configure_logging
redirect_output()
configure_logging(level="INFO", is_json=True)
log = structlog.get_logger()
handled = 0
def handle(*_):
    global handled
    handled += 1
    log.info("handler")
    if handled < 500:
        signal.setitimer(signal.ITIMER_REAL, 1e-4)
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 1e-4)
while handled < 500:
    for _ in range(100):
        log.info("main")
    flush_output()  # a full buffer would drop lines
print(f"handled {handled}")
"""


@pytest.mark.timeout(60)
def test_signal_handler_may_log_while_the_code_that_it_interrupts_logs() -> None:
    lines = output_of(INTERRUPTED)
    count = sum('"handler"' in line for line in lines)
    assert lines[-1] == f"handled {count}"
    assert count == 500
    assert all(line.endswith("}") for line in lines[:-1])


def stream_to(pipe: Pipe) -> LineStream:
    return LineStream(pipe.writing, LineWriter(pipe.writing))


def test_parts_of_a_line_are_written_as_one(pipe: Pipe) -> None:
    stream = stream_to(pipe)
    for part in ("a", "b\nc", "\n", "", "end"):
        stream.write(part)
    stream.flush()
    assert pipe.read_lines_until(stream.writer) == [b"ab", b"c", b"end"]


def test_line_without_an_end_does_not_fill_the_memory(pipe: Pipe) -> None:
    stream = stream_to(pipe)
    for _ in range(2):
        stream.write("-" * MAX_PARTIAL_CHARACTERS)
    assert pipe.read_lines_until(stream.writer) == [b"-" * 2 * MAX_PARTIAL_CHARACTERS]


def test_characters_without_an_encoding_are_written_escaped(pipe: Pipe) -> None:
    stream = stream_to(pipe)
    stream.write("\ud800ü\n")
    assert pipe.read_lines_until(stream.writer) == ["\\ud800ü".encode()]


def test_stream_has_the_properties_of_the_output_it_stands_for(pipe: Pipe) -> None:
    stream = stream_to(pipe)
    assert (stream.fileno(), stream.isatty(), stream.writable(), stream.encoding) == (
        pipe.writing,
        False,
        True,
        "utf-8",
    )


BOTH_OUTPUTS = """
import os, sys
from telemetry.log_output import dropped_lines, flush_output, redirect_output
os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
assert redirect_output()
assert not redirect_output()
print("to standard error", file=sys.stderr)
flush_output()
print(dropped_lines())
print("the last line")
"""


@linux_only
def test_both_outputs_are_counted_together_and_flushed_at_the_end_of_the_process() -> None:
    assert output_of(BOTH_OUTPUTS) == ["1", "the last line"]
