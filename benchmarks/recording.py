"""CPU that recording metrics takes per request: with the service's own observer, and with one that does nothing.

Run `python benchmarks/recording.py`. Two apps in one process answer the same requests in turns; only the second one
records nothing of requests and model runs. Requests are calls of the app, so that neither sockets nor a client count.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

if not __package__:  # run as a script: let `benchmarks` be found
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from litestar import Litestar
from litestar.types import HTTPScope

import main as service
from benchmarks.arguments import whole
from benchmarks.machine import describe_run
from config import load_settings
from engine.run_counters import RunCounters
from telemetry.answered_request import AnsweredRequest
from telemetry.metrics import Metrics

CLIENTS = 8
"""Requests at a time: enough that runs are shared, as under load."""
SETTINGS = {"log_level": "ERROR", "enable_rate_limit": False}


class SilentMetrics(Metrics):
    """Records no request, but keeps the last one."""

    last: AnsweredRequest | None = None

    def observe(self, answered: AnsweredRequest) -> None:
        self.last = answered


class SilentRuns(RunCounters):
    """Records no model run."""

    def record(self, *_: object) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Row:
    """Requests of one kind; each has a text of its own, or all have the same one, whose result is kept."""

    title: str
    is_kept: bool


ROWS = (Row("one short text, computed", is_kept=False), Row("one short text, cached result", is_kept=True))


@dataclass(slots=True)
class Spent:
    """CPU microseconds per request of each block: of the event loop's thread, and of all threads."""

    loop_us: list[float] = field(default_factory=list)
    all_us: list[float] = field(default_factory=list)


def main() -> int:
    """Print a line per row, and return the exit code."""
    parser = argparse.ArgumentParser(prog="recording.py", description="CPU that recording metrics takes.")
    parser.add_argument("--rounds", type=whole(), default=15)
    parser.add_argument("--requests", type=whole(most=100_000), default=400, help="per round and app")
    options = parser.parse_args()
    print(describe_run("python benchmarks/recording.py"), flush=True)
    asyncio.run(_measure(options.rounds, options.requests))
    return 0


async def _measure(rounds: int, requests: int) -> None:
    async with AsyncExitStack() as stack:
        recording = await stack.enter_async_context(_running(Metrics))
        silent = await stack.enter_async_context(_running(SilentMetrics))
        silent.state.parts.service.parts.scheduler._runs = SilentRuns()  # noqa: SLF001 - only a benchmark does this
        print(f"{'us of CPU per request':<37}{'recording':>12}{'without':>10}{'ratio':>8}{'observe()':>12}{'share':>8}")
        texts = (f"How do I reset password {number}?" for number in count())
        for row in ROWS:
            spent = {False: Spent(), True: Spent()}
            for number in range(rounds + 1):  # the first round warms up
                for is_recording in (True, False) if number % 2 else (False, True):
                    found = await _block(recording if is_recording else silent, row, requests, texts)
                    if number:
                        spent[is_recording].loop_us.append(found[0])
                        spent[is_recording].all_us.append(found[1])
            observe_us = _observe_us(recording.state.parts.metrics, silent.state.parts.metrics.last)
            for title, read in (("event loop", lambda one: one.loop_us), ("all threads", lambda one: one.all_us)):
                print(_line(f"{row.title}, {title}", spent, read, observe_us), flush=True)


def _line(title: str, spent: dict[bool, Spent], read: Callable[[Spent], list[float]], observe_us: float) -> str:
    with_us, without_us = median(read(spent[True])), median(read(spent[False]))
    ratio = median(one / other for one, other in zip(read(spent[True]), read(spent[False]), strict=True))
    share = observe_us / without_us
    return f"{title:<42}{with_us:>7.0f}{without_us:>10.0f}{ratio:>8.3f}{observe_us:>12.2f}{share:>8.2%}"


def _observe_us(metrics: Metrics, answered: AnsweredRequest | None, times: int = 20_000) -> float:
    """Return the CPU microseconds of recording one such request, by itself."""
    if answered is None:
        raise RuntimeError("no request was answered")
    began = time.thread_time()
    for _ in range(times):
        metrics.observe(answered)
    return (time.thread_time() - began) / times * 1e6


@asynccontextmanager
async def _running(metrics: type[Metrics]) -> AsyncIterator[Litestar]:
    with patch("assembly.app.Metrics", metrics):
        app = service.create_app(load_settings(_env_file=None, **SETTINGS))
    async with app.lifespan():
        await _call(app, "warm up")
        yield app


async def _block(app: Litestar, row: Row, requests: int, texts: Iterator[str]) -> tuple[float, float]:
    """Return the CPU microseconds per request of the event loop's thread, and of all threads."""
    await _call(app, "kept")
    began_loop, began_all = time.thread_time(), time.process_time()
    waiting = iter(["kept"] * requests if row.is_kept else [next(texts) for _ in range(requests)])

    async def client() -> None:
        for text in waiting:
            await _call(app, text)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return (time.thread_time() - began_loop) / requests * 1e6, (time.process_time() - began_all) / requests * 1e6


async def _call(app: Litestar, text: str) -> None:
    body, statuses = json.dumps({"text": text}).encode(), []

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope: Any = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/embed",
        "raw_path": b"/embed",
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
        "state": {},
        "extensions": {},
    }
    checked: HTTPScope = scope
    await app(checked, receive, send)
    if statuses[0] != 200:
        message = f"the service answered {statuses[0]}"
        raise RuntimeError(message)


if __name__ == "__main__":
    sys.exit(main())
