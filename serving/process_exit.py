"""Ends the process although some of its threads still run: nothing can stop a download or a model run that hangs."""

import os
import sys
import threading
from typing import NoReturn

from telemetry.log_output import flush_output


def exit_now(code: int) -> NoReturn:
    """End the process without waiting for its threads, and at most a second for its last log lines."""
    flush_output()
    os._exit(code)


def exit_despite_threads(code: int) -> int:
    """End the process if other threads still run, else return *code*.

    Python would wait for their end, and unload ONNX Runtime while a model runs.
    """
    if any(thread is not threading.main_thread() for thread in threading.enumerate()):
        exit_now(code)
    return code


def end_early(signal_name: str) -> NoReturn:
    """End the process because of a signal before the service ran. Exit code 0: there was nothing to lose."""
    sys.stderr.write(f"Stopped by {signal_name} before the service ran.\n")
    exit_now(0)


def exit_quietly(_signal_name: str) -> NoReturn:
    """End a worker because of a signal before it served. The supervisor reports what there is to report."""
    exit_now(0)


def fail(reason: str) -> int:
    """Write *reason* to standard error, after the log lines so far, and return the exit code 1."""
    flush_output()
    sys.stderr.write(f"{reason}\n")
    return 1
