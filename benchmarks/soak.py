"""Mixed work on a real server for a while: then nothing may be left over, and all books must balance.

Run it as `python benchmarks/soak.py` (10 minutes; `--seconds 60` in CI). Callers do everything at once: single texts,
batches, windows, dtypes, tokens, wrong requests of all kinds, deadlines, models that come and go, and leaving in the
middle. After a warm-up and at the end, when all is quiet, memory, tasks, threads, files and sockets are compared; and
what the callers counted is held against `/metrics` and the log. Exit code 1: something is left over or does not add up.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.cpu import memory_mb_of, open_files_of, threads_of  # noqa: E402 - the path above makes it importable
from benchmarks.processes import (  # noqa: E402
    BenchError,
    Server,
    end_children_on_sigterm,
    refuse_if_over,
    spawned,
)
from benchmarks.report import markdown, revision, this_machine  # noqa: E402
from benchmarks.soak_calls import BUNDLED, TINY, Principal, Tally  # noqa: E402
from benchmarks.watch import get  # noqa: E402
from tests.support.servers import free_port  # noqa: E402
from tests.support.tiny import TinyModel  # noqa: E402

CALLERS = 10
READY = "GET /health/ready"
"""Asked until the server was ready, so nobody counted how often."""
NO_ROUTE, LEAVERS_ROUTE = "(no route)", "POST /embed/batch"
CALLER_LEFT = 499
MAX_GROWTH = 1.05
QUIET_WITHIN_S = 30.0
RSS_SAMPLES = 9
POOLS = {"load": len(TINY) + 1, "asyncio": 2 * (os.cpu_count() or 1) + 4}
"""Threads of pools that grow to a bound as they are needed, and so are no leftovers up to it."""
UNEXPECTED = ("error", "critical")
EXPECTED_FAILURES = ("inference-failed",)
"""Failures that the callers provoke, so their records belong in the log."""


@dataclass(frozen=True, slots=True)
class Held:
    """What the server holds while all is quiet."""

    rss_mb: float
    tasks: dict[str, int]
    threads: dict[str, int]
    native_threads: int
    files: dict[str, int]


@dataclass(frozen=True, slots=True)
class Soaked:
    """The server under test, and the pipe on which it tells what it holds."""

    server: Server
    answers: IO[str]

    def held(self) -> Held:
        """Look until two looks in a row, half a second apart, see the same."""
        deadline, before = time.monotonic() + QUIET_WITHIN_S, None
        while (now := self._look()) != before:
            if time.monotonic() > deadline:
                raise BenchError(f"The server does not come to rest: {before}, then {now}.")
            before = now
            time.sleep(0.5)
        samples = []
        for _ in range(RSS_SAMPLES):
            samples.append(memory_mb_of(self.server.process.pid)[0])
            time.sleep(0.1)
        return Held(median(samples), *now)

    def _look(self) -> tuple[dict[str, int], dict[str, int], int, dict[str, int]]:
        if self.server.process.stdin is None:
            raise BenchError("The server has no standard input.")
        self.server.process.stdin.write("\n")
        self.server.process.stdin.flush()
        told = json.loads(self.answers.readline() or "{}")
        if not told:
            raise BenchError(f"The server ended unasked. Its last words:\n{self.server.last_words()}")
        pid = self.server.process.pid
        threads: dict[str, int] = told["threads"]
        return told["tasks"], threads, threads_of(pid) - sum(threads.values()), open_files_of(pid)


def main() -> int:
    """Print what was found, and give the exit code."""
    parser = argparse.ArgumentParser(prog="soak.py", description="Work the service hard, then look for leftovers.")
    parser.add_argument("--seconds", type=float, default=600.0, help="of work after the warm-up (default: %(default)s)")
    parser.add_argument("--seed", default="soak")
    options = parser.parse_args()
    end_children_on_sigterm()
    machine = this_machine()
    print(f"{machine.cpu}, {machine.cores} usable cores; Python {machine.python}, {machine.packages}; {machine.date}")
    print(f"revision {revision()}; command: python benchmarks/soak.py --seconds {options.seconds:g}", flush=True)
    try:
        faults = soak(options.seconds, options.seed)
    except BenchError as error:
        print(f"soak.py: {error}", file=sys.stderr)
        return 1
    print("\nfaults: " + "; ".join(faults) if faults else "\nnothing is left over, and all books balance")
    return 1 if faults else 0


def soak(seconds: float, seed: str) -> list[str]:
    """Work, and tell all that is wrong afterwards."""
    with tempfile.TemporaryDirectory() as folder, soaked_server(Path(folder)) as soaked:
        tally = Tally()
        asyncio.run(work(soaked.server, tally, min(60.0, max(6.0, seconds / 4)), f"{seed}/warm"))
        before = soaked.held()
        asyncio.run(work(soaked.server, tally, seconds, seed))
        after = soaked.held()
        metrics = settled_metrics(soaked.server, tally)
        events = list(soaked.server.events_after(0))
    tell(before, after, tally, metrics)
    return [
        *leftovers(before, after),
        *unbalanced(tally, metrics, events),
        *(f"a surprising answer ({count} x): {what}" for what, count in tally.surprises.items()),
        *unexpected_lines(events),
    ]


@contextmanager
def soaked_server(folder: Path) -> Iterator[Soaked]:
    """The service in `benchmarks.soaked`, healthy; it may hold fewer models than its callers want."""
    for name in TINY:
        TinyModel(name, dim=16).write(folder)
    port = free_port()
    settings = {
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "LOG_FORMAT": "json",
        "LOG_LEVEL": "INFO",
        "MODELS_DIR": str(folder),
        "HUB_CACHE_DIR": str(folder / "hub"),
        "MAX_CACHED_MODELS": "3",
        "MAX_QUEUE_SECONDS": "3",
    }
    from_child, to_parent = os.pipe()
    with (
        os.fdopen(from_child, encoding="utf-8") as answers,
        tempfile.TemporaryFile() as log,
        spawned(
            ["-m", "benchmarks.soaked", str(to_parent)],
            env=os.environ | settings,
            pass_fds=[to_parent],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        os.close(to_parent)
        server = Server(port, process, log)
        deadline = time.monotonic() + 120
        while server.get("/health/ready") != 200:
            refuse_if_over(server, deadline)
            time.sleep(0.05)
        yield Soaked(server, answers)


async def work(server: Server, tally: Tally, seconds: float, seed: str) -> None:
    """All callers at once for so long; then the same models are asked for, so that the same ones are in memory."""
    end = time.monotonic() + seconds
    callers = [Principal(server.port, tally, f"{seed}/{number}") for number in range(CALLERS)]
    await asyncio.gather(*(caller.call_until(lambda: time.monotonic() > end) for caller in callers))
    last = Principal(server.port, tally, f"{seed}/last")
    for name in (BUNDLED, *TINY, BUNDLED):
        await last.post("/embed", {"text": "one two", "model_name": name}, texts=1)
    await last.hang_up()


def settled_metrics(server: Server, tally: Tally) -> dict[str, Any]:
    """The metrics once those who left have been counted, too."""
    deadline = time.monotonic() + QUIET_WITHIN_S
    while True:
        status, metrics, _ = get(server, "/metrics")
        if status != 200:
            raise BenchError(f"GET /metrics is answered with {status}.")
        queue = metrics["queue"]
        if not (queue["waiting_requests"] or queue["running"]) or time.monotonic() > deadline:
            return dict(metrics)
        tally.sent["GET /metrics"] += 1
        time.sleep(0.1)


def leftovers(before: Held, after: Held) -> Iterator[str]:
    """What the server holds at the end and did not hold after the warm-up."""
    if after.rss_mb > MAX_GROWTH * before.rss_mb:
        yield f"memory grew from {before.rss_mb:.1f} to {after.rss_mb:.1f} MB"
    for what, then, now in (
        ("task", before.tasks, after.tasks),
        ("thread", before.threads, after.threads),
        ("open", before.files, after.files),
    ):
        for name, count in now.items():
            if count > max(then.get(name, 0), POOLS.get(name, 0) if what == "thread" else 0):
                yield f"{what} {name}: {then.get(name, 0)} after the warm-up, {count} at the end"
    if after.native_threads > before.native_threads:
        yield f"threads of libraries: {before.native_threads} after the warm-up, {after.native_threads} at the end"


def unbalanced(tally: Tally, metrics: dict[str, Any], events: list[dict[str, Any]]) -> Iterator[str]:
    """Where the callers' books and the server's differ."""
    statuses = {event["request_id"]: event["status"] for event in events if event.get("event") == "request_answered"}
    missing = [request_id for request_id in tally.left if request_id not in statuses]
    left = Counter(statuses.get(request_id, 0) for request_id in tally.left)
    counted = {name: told["requests"] for name, told in metrics["endpoints"].items() if name != READY}
    sent = {name: count for name, count in tally.sent.items() if count}
    # Who leaves before the router has seen his request is counted without a route.
    early = counted.get(NO_ROUTE, 0) - sent.get(NO_ROUTE, 0)
    if 0 < early <= sum(count for status, count in left.items() if status == CALLER_LEFT):
        counted |= {NO_ROUTE: counted[NO_ROUTE] - early, LEAVERS_ROUTE: counted.get(LEAVERS_ROUTE, 0) + early}
    if counted != sent:
        yield f"requests: sent {sent}, counted {counted}"
    errors = Counter(metrics["errors"])
    expected = Counter({code: count for code, count in tally.answers.items() if code})
    unseen = errors - expected  # of those who left: the log has their statuses, but no codes
    if expected - errors or unseen.total() != sum(count for status, count in left.items() if status != 200):
        yield f"errors: callers saw {dict(expected)}, counted {dict(errors)}, of those who left {dict(left)}"
    texts = tally.texts + sum(
        tally.left[name] for name, status in statuses.items() if name in tally.left and status == 200
    )
    if metrics["total_embeddings"] != texts:
        yield f"texts: callers got {texts}, counted {metrics['total_embeddings']}"
    if missing:
        yield f"{len(missing)} requests whose callers left have no line in the log ({dict(left)})"
    queue, dropped = metrics["queue"], metrics["micro_batches"]["dropped_texts"]
    if queue["waiting_texts"] or queue["waiting_seconds"] or queue["running"]:
        yield f"work still waits: {queue}"
    if not dropped:
        yield "nobody's waiting texts were dropped, though callers left"


def unexpected_lines(events: list[dict[str, Any]]) -> Iterator[str]:
    """Failures in the log that no caller provoked."""
    found = Counter(
        f"{event['event']} {event.get('code', '')}".strip()
        for event in events
        if event.get("level") in UNEXPECTED and event.get("code") not in EXPECTED_FAILURES
    )
    yield from (f"in the log ({count} x): {what}" for what, count in found.items())


def tell(before: Held, after: Held, tally: Tally, metrics: dict[str, Any]) -> None:
    lines = [
        ["resident memory, MB", f"{before.rss_mb:.1f}", f"{after.rss_mb:.1f} ({after.rss_mb / before.rss_mb:.3f} x)"],
        ["tasks", str(sum(before.tasks.values())), str(sum(after.tasks.values()))],
        ["threads of Python", str(sum(before.threads.values())), str(sum(after.threads.values()))],
        ["threads of libraries", str(before.native_threads), str(after.native_threads)],
        *([what, str(before.files[what]), str(after.files[what])] for what in before.files),
    ]
    print("\n" + markdown(["", "after the warm-up", "at the end"], lines))
    answers = {code or "200": count for code, count in tally.answers.most_common()}
    print(f"\nsent {tally.sent.total()} requests, {len(tally.left)} of them by callers who left; answers: {answers};")
    print(f"texts: {tally.texts}; dropped unserved: {metrics['micro_batches']['dropped_texts']}")


if __name__ == "__main__":
    sys.exit(main())
