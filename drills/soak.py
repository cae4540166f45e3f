"""Put mixed work on a real server for a while, then check that it holds no more resources and that all counts agree.

Run `python -m drills.soak` (10 minutes; `--smoke`: about 20 seconds). Clients send single texts, batches, windows,
dtypes, tokens, all kinds of invalid requests, deadlines and requests for models that come and go, and disconnect in the
middle. With `--repeats`, half of the texts come again, and the server has a small result cache, which is full soon;
after the warm-up and at the end, all results are deleted. After a warm-up and at the end, when the server is idle,
memory, tasks, threads, files and sockets are compared. What the clients counted is compared with `/metrics` and the
log. Exit code 1: something grew or does not agree.
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

from benchmarks.machine import describe_run, memory_mb_of
from benchmarks.processes import MAX_EXIT_S, BenchError, Server, end_children_on_sigterm, spawned_server
from benchmarks.tables import markdown
from benchmarks.workloads import MODEL
from drills.soak_clients import NO_ROUTE, TINY, Client, Sent, Tally
from drills.soak_models import write_tiny_model
from host.cores import usable_cores

CLIENTS = 10
SMOKE_S = 8.0
WARM_UP_S = (6.0, 60.0)
"""The warm-up takes a quarter of the time, within these bounds."""
READY_ROUTE = "GET /health/ready"
"""Polled until the server was ready; not counted by the clients."""
ABANDONED_ROUTE = "POST /embed/batch"
CLIENT_DISCONNECTED = 499
LARGEST_BATCH = 32
"""Texts of the last request before memory is measured: its runs are as large as any, and so is the memory for them."""
COPY_ADOPTED = "optimised_copy_adopted"
MAX_GROWTH = 1.05
MAX_SETTLING_S = 30.0
RSS_SAMPLES = 9
ASYNCIO_THREADS = 2 * (os.cpu_count() or 1) + 4
POOLS = {"load": len(TINY) + 1, "asyncio": ASYNCIO_THREADS, "uvloop": ASYNCIO_THREADS}
"""Threads of pools that grow on demand to these bounds, so they are no leaks below them."""
SETTINGS = {
    "LOG_FORMAT": "json",
    "MAX_CACHED_MODELS": "3",
    "MAX_QUEUE_SECONDS": "3",
    "OPTIMISED_MODELS_MAX_SIZE": "1GB",
}
WITH_RESULTS = {"RESULT_CACHE_MB": "1"}
PROVOKED_FAILURES = ("inference-failed",)
"""Codes of errors in the log that the clients provoke."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What the server holds while it is idle."""

    rss_mb: float
    tasks: dict[str, int]
    threads: dict[str, int]
    native_threads: int
    files: dict[str, int]


@dataclass(frozen=True, slots=True)
class SoakServer:
    """The server under test, and the pipe on which it reports its tasks and threads."""

    server: Server
    answers: IO[str]

    def resources(self) -> Resources:
        """Return what the server holds, once two counts, half a second apart, are equal."""
        deadline, before = time.monotonic() + MAX_SETTLING_S, None
        while (now := self._count()) != before:
            if time.monotonic() > deadline:
                raise BenchError(f"The server does not become idle: {before}, then {now}.")
            before = now
            time.sleep(0.5)
        samples = []
        for _ in range(RSS_SAMPLES):
            samples.append(memory_mb_of(self.server.process.pid)[0])
            time.sleep(0.1)
        return Resources(median(samples), *now)

    def _count(self) -> tuple[dict[str, int], dict[str, int], int, dict[str, int]]:
        if self.server.process.stdin is None:
            raise BenchError("The server has no standard input.")
        self.server.process.stdin.write("\n")
        self.server.process.stdin.flush()
        if not (line := self.answers.readline()):
            self.server.process.wait(MAX_EXIT_S)
            self.server.raise_if_ended()
        counts, pid = json.loads(line), self.server.process.pid
        threads: dict[str, int] = counts["threads"]
        native_threads = len(list(Path(f"/proc/{pid}/task").iterdir())) - sum(threads.values())
        return counts["tasks"], threads, native_threads, counts["files"]


def main() -> int:
    """Print what was found, and return the exit code."""
    parser = argparse.ArgumentParser(prog="soak", description="Put mixed work on the service, then look for leaks.")
    parser.add_argument("--seconds", type=float, default=600.0, help="of work after the warm-up (default: %(default)s)")
    parser.add_argument("--seed", default="soak")
    parser.add_argument("--repeats", action="store_true", help="with a result cache, and texts that come again")
    parser.add_argument("--smoke", action="store_true", help=f"the same as --seconds {SMOKE_S:g}")
    options = parser.parse_args()
    seconds = SMOKE_S if options.smoke else options.seconds
    end_children_on_sigterm()
    repeats = " --repeats" if options.repeats else ""
    print(describe_run(f"python -m drills.soak --seconds {seconds:g}{repeats}"), flush=True)
    try:
        faults = _soak(seconds, options.seed, Sent() if options.repeats else None)
    except BenchError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1
    print("\nfaults: " + "; ".join(faults) if faults else "\nnothing leaked, and all counts agree")
    return 1 if faults else 0


def _soak(seconds: float, seed: str, sent: Sent | None) -> list[str]:
    """Run the drill, and return all that is wrong afterwards."""
    settings = SETTINGS if sent is None else SETTINGS | WITH_RESULTS
    with tempfile.TemporaryDirectory() as folder, _soak_server(Path(folder), settings) as soak_server:
        server, tally = soak_server.server, Tally()
        asyncio.run(_work(server, tally, min(max(WARM_UP_S[0], seconds / 4), WARM_UP_S[1]), f"{seed}/warm", sent))
        before = soak_server.resources()
        asyncio.run(_work(server, tally, seconds, seed, sent))
        after = soak_server.resources()
        metrics = _settled_metrics(server, tally)
        events = list(server.events_after(0))
    _print_summary(before, after, tally, metrics)
    return [
        *_leaks(before, after),
        *_disagreements(tally, metrics, events),
        *_wrong_results(metrics, has_results=sent is not None),
        *(f"an unexpected answer ({count} x): {answer}" for answer, count in tally.unexpected.items()),
        *_unexpected_errors(events),
    ]


@contextmanager
def _soak_server(folder: Path, settings: dict[str, str]) -> Iterator[SoakServer]:
    """Start the service in `drills.soak_server`, and wait until it is ready and runs its copy of the bundled model.

    The copy is made in the background. Adopted during the warm-up, it would change memory while that is measured.
    """
    for name in TINY:
        write_tiny_model(folder, name)
    from_child, to_parent = os.pipe()
    with (
        os.fdopen(from_child, encoding="utf-8") as answers,
        spawned_server(
            {"MODELS_DIR": str(folder), "HUB_CACHE_DIR": str(folder / "hub"), **settings},
            lanes=usable_cores(),
            command=("-m", "drills.soak_server", str(to_parent)),
            pass_fds=[to_parent],
            stdin=subprocess.PIPE,
        ) as server,
    ):
        os.close(to_parent)
        server.wait_for(lambda: server.get("/health/ready").status == 200)
        server.wait_for(lambda: any(event["event"] == COPY_ADOPTED for event in server.events_after(0)))
        yield SoakServer(server, answers)


async def _work(server: Server, tally: Tally, seconds: float, seed: str, sent: Sent | None) -> None:
    """Run all clients for a time; then use the same models in the same order, so that the same ones stay loaded.

    With *sent*, delete what is kept.
    """
    end = time.monotonic() + seconds
    clients = [Client(server.port, tally, f"{seed}/{number}", sent) for number in range(CLIENTS)]
    await asyncio.gather(*(client.run_until(lambda: time.monotonic() > end) for client in clients))
    last = Client(server.port, tally, f"{seed}/last")
    for name in (MODEL, *TINY, MODEL):
        await last.embed_words("one two", name)
    await last.embed_texts(LARGEST_BATCH)
    if sent is not None:
        await last.delete_results()
    await last.close()


def _settled_metrics(server: Server, tally: Tally) -> dict[str, Any]:
    """Return the metrics once abandoned requests have been counted, too."""
    deadline = time.monotonic() + MAX_SETTLING_S
    while True:
        answer = server.get("/metrics")
        if answer.status != 200:
            raise BenchError(f"The status of GET /metrics is {answer.status}.")
        queue = answer.json["queue"]
        if not (queue["waiting_requests"] or queue["running"]) or time.monotonic() > deadline:
            return dict(answer.json)
        tally.sent["GET /metrics"] += 1
        time.sleep(0.1)


def _leaks(before: Resources, after: Resources) -> Iterator[str]:
    """Yield what the server holds at the end and did not hold after the warm-up."""
    if after.rss_mb > MAX_GROWTH * before.rss_mb:
        yield f"memory grew from {before.rss_mb:.1f} to {after.rss_mb:.1f} MB"
    for kind, then, now, bounds in (
        ("task", before.tasks, after.tasks, {}),
        ("thread", before.threads, after.threads, POOLS),
        ("open", before.files, after.files, {}),
        ("threads of libraries", {"": before.native_threads}, {"": after.native_threads}, {}),
    ):
        for name, count in now.items():
            if count > max(then.get(name, 0), bounds.get(name, 0)):
                yield f"{kind} {name}: {then.get(name, 0)} after the warm-up, {count} at the end"


def _disagreements(tally: Tally, metrics: dict[str, Any], events: list[dict[str, Any]]) -> Iterator[str]:
    """Yield where the counts of the clients and of the server differ."""
    logged = {event["request_id"]: event["status"] for event in events if event.get("event") == "request_answered"}
    statuses = {request_id: logged.get(request_id, 0) for request_id in tally.abandoned}
    abandoned = Counter(statuses.values())
    if abandoned[0]:
        yield f"{abandoned[0]} abandoned requests are not in the log ({dict(abandoned)})"
    counted = {name: endpoint["requests"] for name, endpoint in metrics["endpoints"].items() if name != READY_ROUTE}
    # The server counts a request without a route if the client disconnects before it is routed.
    unrouted = counted.get(NO_ROUTE, 0) - tally.sent[NO_ROUTE]
    if 0 < unrouted <= abandoned[CLIENT_DISCONNECTED]:
        counted |= {NO_ROUTE: tally.sent[NO_ROUTE], ABANDONED_ROUTE: counted.get(ABANDONED_ROUTE, 0) + unrouted}
    if +Counter(counted) != +tally.sent:
        yield f"requests: sent {dict(tally.sent)}, counted {counted}"
    errors = Counter(metrics["errors"])
    expected = Counter({code: count for code, count in tally.answers.items() if code})
    unseen = errors - expected  # of abandoned requests: the log has their statuses, but no codes
    if expected - errors or unseen.total() != abandoned.total() - abandoned[200]:
        yield f"errors: received {dict(expected)}, counted {dict(errors)}, of abandoned requests {dict(abandoned)}"
    texts = tally.texts + sum(tally.abandoned[request_id] for request_id in statuses if statuses[request_id] == 200)
    if metrics["total_embeddings"] != texts:
        yield f"texts: received {texts}, counted {metrics['total_embeddings']}"
    queue = metrics["queue"]
    if queue["waiting_texts"] or queue["waiting_seconds"] or queue["running"]:
        yield f"work is still waiting: {queue}"
    if not metrics["micro_batches"]["dropped_texts"]:
        yield "no waiting text was dropped, although clients disconnected"


def _wrong_results(metrics: dict[str, Any], *, has_results: bool) -> Iterator[str]:
    """Yield what is wrong with the counts of the result cache."""
    results = metrics["result_cache"]
    if sum(results[name] for name in ("hits", "misses", "coalesced")) != metrics["total_embeddings"]:
        yield f"not each of {metrics['total_embeddings']} texts has one source: {results}"
    if results["bytes"] or results["entries"]:
        yield f"{results['entries']} results and {results['bytes']} bytes are left after all were deleted"
    if bool(results["hits"]) != has_results:
        yield f"{results['hits']} hits"


def _unexpected_errors(events: list[dict[str, Any]]) -> Iterator[str]:
    """Yield errors in the log that no client provoked."""
    found = Counter(
        f"{event['event']} {event.get('code', '')}".strip()
        for event in events
        if event.get("level") in {"error", "critical"} and event.get("code") not in PROVOKED_FAILURES
    )
    yield from (f"in the log ({count} x): {error}" for error, count in found.items())


def _print_summary(before: Resources, after: Resources, tally: Tally, metrics: dict[str, Any]) -> None:
    lines = [
        ["resident memory, MB", f"{before.rss_mb:.1f}", f"{after.rss_mb:.1f} ({after.rss_mb / before.rss_mb:.3f} x)"],
        ["tasks", str(sum(before.tasks.values())), str(sum(after.tasks.values()))],
        ["threads of Python", str(sum(before.threads.values())), str(sum(after.threads.values()))],
        ["threads of libraries", str(before.native_threads), str(after.native_threads)],
        *([kind, str(before.files[kind]), str(after.files[kind])] for kind in before.files),
    ]
    print("\n" + markdown(["", "after the warm-up", "at the end"], lines))
    answers = {code or "200": count for code, count in tally.answers.most_common()}
    print(f"\nSent {tally.sent.total()} requests, {len(tally.abandoned)} of them abandoned. Answers: {answers}.")
    print(f"Texts: {tally.texts}; dropped from the queue: {metrics['micro_batches']['dropped_texts']}.")
    results = metrics["result_cache"]
    print("Results: " + ", ".join(f"{name} {results[name]}" for name in ("hits", "misses", "coalesced", "evictions")))


if __name__ == "__main__":
    sys.exit(main())
