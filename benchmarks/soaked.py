"""The service as `python main.py` starts it, in a process that also tells what it holds when it is asked.

The product has no such endpoint, and needs none: `python -m benchmarks.soaked DESCRIPTOR` reads lines from stdin, and
answers each with a line of JSON on the open file *DESCRIPTOR*. Standard output stays the log's.
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
from main import app


async def listen() -> None:
    """Answer from the event loop, where tasks are counted; the thread that waits for questions is one more."""
    loop, descriptor = asyncio.get_running_loop(), int(sys.argv[1])

    def answer() -> None:
        os.write(descriptor, json.dumps(held()).encode() + b"\n")

    def wait_for_questions() -> None:
        for _ in sys.stdin:
            loop.call_soon_threadsafe(answer)

    threading.Thread(target=wait_for_questions, name="listen", daemon=True).start()


def held() -> dict[str, dict[str, int]]:
    """Tasks by what they do and threads by what they are for, once all garbage is gone."""
    gc.collect()
    tasks = Counter(getattr(task.get_coro(), "__qualname__", "?") for task in asyncio.all_tasks())
    threads = Counter(re.split(r"[_-]\d", thread.name)[0] for thread in threading.enumerate())
    return {"tasks": dict(tasks), "threads": dict(threads)}


if __name__ == "__main__":
    app.on_startup.append(listen)
    sys.exit(serve_app(app))
