"""Ends the process although some of its threads still run: nothing can stop a download or a model run that hangs."""

import os
import sys
import threading
from typing import NoReturn


def exit_now(code: int) -> NoReturn:
    """End the process without waiting for its threads."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def exit_despite_threads(code: int) -> int:
    """End the process if other threads still run, else return *code*.

    Python would wait for their end, and unload ONNX Runtime while a model runs.
    """
    if any(thread is not threading.main_thread() for thread in threading.enumerate()):
        exit_now(code)
    return code
