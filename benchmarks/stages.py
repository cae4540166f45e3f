"""Show where the time and the CPU of one lone request go, step by step, beside a handler that does nothing.

`python benchmarks/stages.py` runs the service in this process as `main.py` does (settings from the environment, but the
log at INFO and to nowhere), and in another process a caller that sends one short text at a time.

To place its marks it replaces methods of the service's and of uvicorn's classes, see `PLACES`, while the service runs:
about 3 us per request in all (0.25 us a place in a tight loop). It does so in its own process only.

How to read it:

- A step's median is that of its own durations, and its share is of the sum of all steps; "since" is the median time
  since the request's bytes arrived. From "hand over" to "hand back" a lane's thread works, or the system wakes one.
- With the step "answer to the socket" the answer is out: the steps after it keep the event loop from the next request,
  but not the caller from his answer. His own median, in the second table, holds what the kernel and he take, too.
- CPU is this process's, user and kernel. "Elsewhere" is how many cores all other processes kept busy meanwhile, the
  caller among them, by the kernel's ticks of 10 ms: with more than a few tenths the numbers are too high.
- Caches go cold while a processor has nothing to do, above all a virtual one: the empty handler with a pause before
  each request tells what a lone caller pays for that, whatever the service does.
"""

import argparse
import asyncio
import logging
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

if not __package__:  # run as a script: let `benchmarks` and the service's modules be found
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
from litestar import Litestar, Response, post
from litestar.params import JSONBody

from api import build_answers
from api.request_types import EmbedRequest, TextLimits
from assembly.app import parts_of
from assembly.lifecycle import Lifecycle
from assembly.serve import connection_limits
from benchmarks.cpu import cpu_s_of_all
from benchmarks.processes import BenchError, Child, spawned
from benchmarks.report import this_machine
from config import load_settings
from engine.encoder import Encoder
from engine.scheduler import Scheduler
from engine.tokenizer import TextTokenizer
from main import create_app
from serving import server
from serving.protocol import HttpProtocol
from tests.support.servers import free_port
from web.request_log import RequestLog
from web.responses import JsonResponse

WARM_S = 2.0
"""Long enough for the session for lone texts to be opened, which is done after the first answers."""
PAUSE_S = 0.004
"""About what a model run takes: the event loop is idle that long in each request to the service."""
VECTOR = np.random.default_rng(0).standard_normal(384).astype(np.float32)
ARRIVED = "the bytes arrive"


@dataclass(frozen=True, slots=True)
class Place:
    """A method or function, and the marks set before and after its call: each names the step that ends there."""

    owner: Any
    name: str
    before: str
    after: str | None = None


PLACES = (
    Place(HttpProtocol, "data_received", ARRIVED),
    Place(RequestLog, "__call__", "bytes in -> app called"),
    Place(TextLimits, "check_text", "routing and body"),
    Place(TextTokenizer, "cut", "checks, model lease", "tokenise"),
    Place(Scheduler, "_start", "admission"),
    Place(Encoder, "encode", "hand over to the lane", "model run (FastEmbed)"),
    Place(Scheduler, "_on_done", "hand back to the loop"),
    Place(build_answers, "embed_answer", "wake the handler, check the vector"),
    Place(JsonResponse, "render", "make the answer", "JSON"),
    Place(HttpProtocol, "on_response_complete", "answer to the socket"),
    Place(RequestLog, "_note", "leave Litestar", "log and count"),
)
"""In the order in which a lone request passes them."""
MARKS = [mark for place in PLACES for mark in (place.before, place.after) if mark]


class Marks:
    """Owns the times at which each request passed the marks.

    Only one request is ever under way, so a mark belongs to the latest one, whichever thread sets it.
    """

    def __init__(self) -> None:
        self._requests: list[dict[str, float]] = [{}]

    @contextmanager
    def placed(self) -> Iterator[None]:
        with ExitStack() as stack:
            for place in PLACES:
                stack.enter_context(mock.patch.object(place.owner, place.name, self._marked(place)))
            yield

    def latest(self, requests: int) -> list[list[float]]:
        """Give the times of the latest *requests* whole requests, in the order of `MARKS`.

        Raises:
            BenchError: there are fewer; the service passes other places than it did.
        """
        whole = [[times[mark] for mark in MARKS] for times in self._requests if len(times) == len(MARKS)]
        if len(whole) < requests:
            missed = set(MARKS).difference(*self._requests)
            raise BenchError(f"{len(whole)} of {requests} requests passed all marks; never set: {missed or 'none'}.")
        return whole[-requests:]

    def _marked(self, place: Place) -> Callable[..., Any]:
        original = getattr(place.owner, place.name)

        def marked(*args: Any, **kwargs: Any) -> Any:
            self._set(place.before)
            result = original(*args, **kwargs)
            if place.after:
                self._set(place.after)
            return result

        return marked

    def _set(self, mark: str) -> None:
        if mark == ARRIVED:
            self._requests.append({})
        self._requests[-1][mark] = time.perf_counter()


@dataclass(frozen=True, slots=True)
class Cost:
    """What one request took: the caller's median latency, the mean CPU of the event loop's thread and of all others."""

    latency_ms: float
    main_cpu_ms: float
    others_cpu_ms: float
    cores_elsewhere: float
    """Busy with other processes meanwhile."""


@post("/embed", status_code=200)
async def answer_at_once(data: JSONBody[EmbedRequest]) -> Response[Any]:
    return JsonResponse({"embedding": VECTOR, "text_length": len(data.text)})


def empty_app() -> Litestar:
    return Litestar([answer_at_once], openapi_config=None, logging_config=None)


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything measured; *times* holds a row per request to the service, see `Marks.latest`."""

    times: list[list[float]]
    service: Cost
    empty_at_once: Cost
    empty_paused: Cost


def measure(requests: int) -> Findings:
    marks = Marks()
    settings = load_settings().model_copy(update={"log_level": "INFO", "debug": False})
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        app = create_app(settings)
        with marks.placed():
            [service] = costs(app, requests, parts_of(app).service.lifecycle, pauses_s=[0.0])
        at_once, paused = costs(empty_app(), requests, Lifecycle(), pauses_s=[0.0, PAUSE_S])
        logging.getLogger().handlers.clear()  # they would write to what is closed now
    return Findings(marks.latest(requests), service, at_once, paused)


def costs(app: Litestar, requests: int, state: Lifecycle, *, pauses_s: Sequence[float]) -> list[Cost]:
    """Run *app* as production does, send it *requests* requests for each of *pauses_s*, and stop it.

    Raises:
        BenchError: it did not start, or gave an answer other than 200; standard error says more.
        KeyboardInterrupt: a signal stopped it before.
    """
    port = free_port()
    calling: list[asyncio.Task[list[Cost]]] = []
    is_interrupted = False

    def stop(_: asyncio.Task[list[Cost]]) -> None:
        nonlocal is_interrupted
        is_interrupted = state.phase == "draining"
        if not is_interrupted:
            signal.raise_signal(signal.SIGTERM)

    async def begin() -> None:
        calling.append(asyncio.create_task(call(port, requests, pauses_s)))
        calling[0].add_done_callback(stop)

    app.on_startup.append(begin)
    with mock.patch.object(server, "exit_despite_threads", lambda code: code):  # else it may end this process
        code = server.serve(
            app,
            host="127.0.0.1",
            port=port,
            drain_s=1,
            limits=connection_limits(load_settings()),
            state=state,
            count_failure=lambda _: None,
            reject_early=lambda _: None,
        )
    if code or not calling:
        raise BenchError("The service did not start (its last words are above).")
    if is_interrupted:
        raise KeyboardInterrupt
    return calling[0].result()


async def call(port: int, requests: int, pauses_s: Sequence[float]) -> list[Cost]:
    pipe = subprocess.PIPE
    with spawned(["-m", "benchmarks.lone", str(port)], stdin=pipe, stdout=pipe) as process:
        caller = Child("lone caller", process)
        await asyncio.to_thread(caller.ask, "warm", seconds=WARM_S)
        return [await cost_of(caller, requests, pause_s) for pause_s in pauses_s]


async def cost_of(caller: Child, requests: int, pause_s: float) -> Cost:
    before = clocks()
    latencies_ms = await asyncio.to_thread(caller.ask, "ask", requests=requests, pause_s=pause_s)
    wall_s, main_s, own_s, all_s = (now - then for now, then in zip(clocks(), before, strict=True))
    return Cost(
        latency_ms=statistics.median(latencies_ms),
        main_cpu_ms=main_s * 1e3 / requests,
        others_cpu_ms=(own_s - main_s) * 1e3 / requests,
        cores_elsewhere=max(0.0, all_s - own_s) / wall_s,
    )


def clocks() -> tuple[float, float, float, float]:
    """Tell seconds: the time, and the CPU of this thread, of this process and of everything on the machine.

    For thread and process the kernel's clocks are asked, which tell what `/proc/self/task/*/stat` does, but finer than
    its 10 ms.
    """
    return time.perf_counter(), time.thread_time(), time.process_time(), cpu_s_of_all()


def print_steps(times: list[list[float]]) -> None:
    """Print what lies between each two of `MARKS`; *times* holds a row per request, in seconds."""
    passed_ms = np.array(times) * 1e3
    steps_ms = np.median(np.diff(passed_ms, axis=1), axis=0)
    since_ms = np.median(passed_ms[:, 1:] - passed_ms[:, :1], axis=0)
    print(f"{'step':<36}{'median ms':>10}{'since ms':>10}{'share':>8}")
    for mark, step, since in zip(MARKS[1:], steps_ms, since_ms, strict=True):
        print(f"{mark:<36}{step:10.3f}{since:10.3f}{step / steps_ms.sum():8.1%}")


def print_costs(rows: dict[str, Cost]) -> None:
    print(f"{'per request, ms':<36}{'latency':>10}{'CPU':>10}{'main thread':>14}{'others':>10}{'elsewhere':>14}")
    for name, cost in rows.items():
        cpu_ms = cost.main_cpu_ms + cost.others_cpu_ms
        own = f"{cost.latency_ms:10.3f}{cpu_ms:10.3f}{cost.main_cpu_ms:14.3f}{cost.others_cpu_ms:10.3f}"
        print(f"{name:<36}{own}{cost.cores_elsewhere:8.2f} cores")


def whole(written: str) -> int:
    if (number := int(written)) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def print_findings(found: Findings) -> None:
    machine = this_machine()
    print(f"{machine.cpu}, {machine.cores} cores; Python {machine.python}, {machine.packages}; {machine.revision}")
    print(f"{len(found.times)} requests, one short text each, one at a time\n")
    print_steps(found.times)
    print()
    print_costs(
        {
            "the service, back to back": found.service,
            "an empty handler, back to back": found.empty_at_once,
            f"an empty handler, {PAUSE_S * 1e3:g} ms between": found.empty_paused,
        }
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="stages.py", description="Show where the time of one lone request goes.")
    parser.add_argument("--requests", type=whole, default=300, help="measured, of each kind (default: %(default)s)")
    options = parser.parse_args()
    try:
        print_findings(measure(options.requests))
    except BenchError as error:
        print(f"stages.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stages.py: interrupted; every process it started has ended.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
