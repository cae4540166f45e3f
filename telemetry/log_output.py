"""Writes standard output and standard error in the background: no reader and no full disk stops the service.

Writing to a pipe that nobody reads, or to a terminal stopped by Ctrl-S, blocks; writing to a full disk fails. So lines
enter a bounded buffer, and one thread per output writes them. Lines that do not fit, or that cannot be written, are
dropped and counted.
"""

import _thread
import atexit
import io
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from typing import TextIO, cast

MAX_BUFFERED_BYTES = 1024 * 1024
"""Bytes that may wait per output: about five thousand lines, which is several seconds of a busy service."""
MAX_WRITE_BYTES = 4096
"""Lines are written together up to this size. The system writes that much to a pipe as a whole (PIPE_BUF), so lines of
processes that share a pipe do not mix."""
MAX_PARTIAL_CHARACTERS = 64 * 1024
"""A line of this length is passed on although its end is missing."""
FLUSH_S = 1.0
"""How long the end of the process waits for lines that are not written yet."""
PAUSE_S = 0.02
"""Pause of the thread when it has written all lines: waking it for each line would slow the event loop."""
NAMES = {1: "stdout", 2: "stderr"}


class LineWriter:
    """Owns the buffer of one output, and the thread that writes it. The thread starts with the first line."""

    def __init__(self, descriptor: int | None, *, max_bytes: int = MAX_BUFFERED_BYTES) -> None:
        """Write nothing yet.

        Args:
            descriptor: where to write; None: the output is closed, so all lines are dropped.
            max_bytes: bytes that may wait.
        """
        self.on_recovery: Callable[[int, int], None] | None = None
        """Gets the lines dropped since its last call and since the start, once lines can be written again."""
        self.dropped = 0
        self._reported = 0
        self._descriptor = descriptor
        self._max_bytes = max_bytes
        self._begin()

    def _begin(self) -> None:
        """Start with an empty buffer and without a thread, as a forked process must."""
        # The lock and the queue are reentrant: a signal handler may log while the code that it interrupts is logging.
        self._lock = threading.RLock()
        self._queue: queue.SimpleQueue[bytes | threading.Event] = queue.SimpleQueue()
        self._buffered_bytes = 0
        self._has_thread = False
        self._flushed: threading.Event | None = None  # set when the latest `flush` is done
        self._pause = threading.Lock()  # never free: to wait for it takes the time given
        self._pause.acquire()
        self._is_mid_line = False
        self._is_failing = self._descriptor is None

    def write(self, data: bytes) -> None:
        """Accept *data*, one line or more, or drop it. Never blocks."""
        size = len(data)
        with self._lock:  # no calls between reading and setting a number: a signal handler may write in between
            buffered_bytes = self._buffered_bytes + size
            if self._descriptor is not None and buffered_bytes <= self._max_bytes:
                self._buffered_bytes = buffered_bytes
            else:
                lines = data.count(b"\n")
                self.dropped += lines
                return
            if not self._has_thread:
                self._start()
        self._queue.put(data)

    def flush(self, timeout_s: float) -> None:
        """Wait until everything accepted so far is written or dropped, for at most *timeout_s*.

        If an earlier call still waits for a write that blocks, do not wait again.
        """
        if self._has_thread and (self._flushed is None or self._flushed.is_set()):
            self._flushed = is_written = threading.Event()
            self._queue.put(is_written)
            is_written.wait(timeout_s)

    def forget_thread(self) -> None:
        """Begin again in a forked process: its parent writes what is buffered."""
        self._begin()

    def _start(self) -> None:
        # Not `threading.Thread`: its start takes a lock that the code interrupted by a signal handler may hold. And a
        # write that blocks cannot be stopped, so nothing may wait for the end of this thread.
        try:
            _thread.start_new_thread(self._work, (self._queue,))
        except RuntimeError:  # the system allows no more threads; the next line tries again
            return
        self._has_thread = True

    def _work(self, waiting: "queue.SimpleQueue[bytes | threading.Event]") -> None:
        if trace := threading.gettrace():
            sys.settrace(trace)  # as `threading.Thread` does: debuggers and coverage see this thread, too
        try:
            self._run(waiting)
        finally:
            self._has_thread = False  # whatever ended it, the next line starts another one

    def _run(self, waiting: "queue.SimpleQueue[bytes | threading.Event]") -> None:
        held: bytes | threading.Event | None = None  # taken from the queue, but not written yet
        while True:
            item = held or waiting.get()
            held = None
            if isinstance(item, bytes):
                while held is None and not waiting.empty():
                    held = waiting.get()
                    if isinstance(held, bytes) and len(item) + len(held) <= MAX_WRITE_BYTES:
                        item, held = item + held, None
                self._write_now(item)
            elif self._report_recovery():
                waiting.put(item)  # behind the line that reports it
            else:
                item.set()
            if held is None and waiting.empty():
                self._report_recovery()
                self._pause.acquire(timeout=PAUSE_S)

    def _write_now(self, data: bytes) -> None:
        """Write *data*, which may block."""
        written = 0
        try:
            if self._is_mid_line:
                self._write_some(b"\n")
                self._is_mid_line = False
            while written < len(data):
                written += self._write_some(data[written:])
        except OSError:  # the disk is full, the reader has left, the terminal is gone
            if written:
                self._is_mid_line = data[written - 1 : written] != b"\n"
        with self._lock:
            self._buffered_bytes -= len(data)
            self.dropped += data.count(b"\n", written)
        self._is_failing = written < len(data)

    def _write_some(self, data: bytes) -> int:
        descriptor = self._descriptor
        if descriptor is None:
            return 0
        while True:
            try:
                return os.write(descriptor, data)
            except BlockingIOError:  # the parent process, or one that shares the output, made it non-blocking
                ready = select.poll()
                ready.register(descriptor, select.POLLOUT)
                ready.poll()

    def _report_recovery(self) -> bool:
        """Report lines dropped since the last report, if lines can be written again; return whether it was done."""
        dropped = self.dropped
        if self._is_failing or dropped == self._reported or self.on_recovery is None:
            return False
        self.on_recovery(dropped - self._reported, dropped)
        self._reported = dropped
        return True


class LineStream(io.TextIOBase):
    """A text stream like `sys.stdout` that gives complete lines to a `LineWriter`. Its methods never block."""

    def __init__(self, number: int, writer: LineWriter) -> None:
        """Stand for the output with this file descriptor *number*."""
        self.writer = writer
        self._number = number
        self._partial = ""
        self._lock = threading.RLock()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # an attribute in the base class
        return "utf-8"

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self._partial or not text.endswith("\n"):
            with self._lock:
                complete, end, self._partial = (self._partial + text).rpartition("\n")
                if len(self._partial) > MAX_PARTIAL_CHARACTERS:
                    complete, end, self._partial = complete + end + self._partial, "", ""
            self._pass_on(complete + end)
        else:
            self._pass_on(text)
        return len(text)

    def flush(self) -> None:
        """Pass on a line without an end, too. Does not wait until it is written."""
        if self._partial:
            with self._lock:
                partial, self._partial = self._partial, ""
            self._pass_on(partial)

    def forget_threads(self) -> None:
        """Begin again in a forked process."""
        self._lock = threading.RLock()
        self._partial = ""
        self.writer.forget_thread()

    def _pass_on(self, text: str) -> None:
        if text:
            self.writer.write(text.encode("utf-8", "backslashreplace"))


def redirect_output() -> bool:
    """Make `sys.stdout` and `sys.stderr` streams that never block; return False if that was done before."""
    if isinstance(sys.stdout, LineStream):
        return False
    for number, name in NAMES.items():
        setattr(sys, name, _stream_of(number))
    return True


def log_stream() -> TextIO:
    """Return the stream for log lines: standard output, through a `LineStream` if it is the real one.

    If something replaced `sys.stdout`, such as a test that captures it, the lines go there.
    """
    if sys.stdout is not None and sys.stdout is not sys.__stdout__:
        return sys.stdout
    return cast("TextIO", _stream_of(1))


def report_dropped_lines(report: Callable[[str, int, int], None]) -> None:
    """Make *report* log that lines were dropped, once lines can be written again.

    It gets the output's name, and the lines dropped since its last call and since the start.
    """
    for stream in (log_stream(), sys.stderr):
        if isinstance(stream, LineStream):
            stream.writer.on_recovery = partial(report, NAMES[stream.fileno()])


def flush_output(timeout_s: float = FLUSH_S) -> None:
    """Wait until all lines are written, for at most *timeout_s*; for the end of the process."""
    ends_s = time.monotonic() + timeout_s
    for stream in (log_stream(), sys.stderr):
        if isinstance(stream, LineStream):
            stream.flush()
            stream.writer.flush(max(0.0, ends_s - time.monotonic()))
        elif stream is not None:
            with suppress(OSError, ValueError):
                stream.flush()


def dropped_lines() -> int:
    """Return how many lines of standard output and standard error were dropped since the start."""
    streams = (log_stream(), sys.stderr)
    return sum(stream.writer.dropped for stream in streams if isinstance(stream, LineStream))


@cache
def _stream_of(number: int) -> LineStream:
    """Return the only stream for the descriptor *number*."""
    is_open = getattr(sys, f"__{NAMES[number]}__") is not None  # when Python started
    stream = LineStream(number, LineWriter(number if is_open else None))
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=stream.forget_threads)
    atexit.unregister(flush_output)  # so that it runs once, however many streams there are
    atexit.register(flush_output)
    return stream
