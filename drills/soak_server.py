"""Runs the service like `python main.py`, and reports its tasks, threads and open files on request.

`python -m drills.soak_server DESCRIPTOR` reads lines from stdin, and answers each with a line of JSON on the open file
DESCRIPTOR. Standard output stays the log.
"""

import asyncio
import gc
import json
import os
import re
import sys
import threading
from collections import Counter

from assembly.serve import serve_app
from drills.monitor import open_files
from host.memory import trim_memory
from main import app


async def _answer_requests() -> None:
    """Start a thread that waits for requests. Answers are written in the event loop, where tasks are counted."""
    loop, descriptor = asyncio.get_running_loop(), int(sys.argv[1])

    def answer() -> None:
        os.write(descriptor, json.dumps(_count_resources()).encode() + b"\n")

    def wait_for_requests() -> None:
        for _ in sys.stdin:
            loop.call_soon_threadsafe(answer)

    threading.Thread(target=wait_for_requests, name="soak_requests", daemon=True).start()


def _count_resources() -> dict[str, dict[str, int]]:
    """Collect garbage, and count tasks by coroutine, threads by name without their numbers, and open files.

    Memory that is free goes back to the kernel, so that the memory of the process shows what is held.
    """
    gc.collect()
    trim_memory()
    tasks = Counter(getattr(task.get_coro(), "__qualname__", "?") for task in asyncio.all_tasks())
    threads = Counter(re.split(r"[_-]\d", thread.name)[0] for thread in threading.enumerate())
    return {"tasks": dict(tasks), "threads": dict(threads), "files": open_files()}


if __name__ == "__main__":
    app.on_startup.append(_answer_requests)
    sys.exit(serve_app(app))
