"""Send ten times the load that the service can handle, and check its answers, its throughput and its memory.

Run `python -m drills.overload`. It starts a server, measures its peak throughput (with clients that wait for their
answers), then sends ten times as many requests at a fixed rate. The load generator is a process of its own on the last
core, which the server may not use; with `--shared`, both use all cores, and sending and rejecting take CPU from
embedding. Exit code 1: a target was missed.

`--smoke` takes about 20 seconds. It checks only the targets that do not depend on the machine's speed.
"""

import argparse
import sys
import time
from collections import Counter
from dataclasses import dataclass
from statistics import median

from benchmarks.machine import cpu_s_of, describe_run, memory_mb_of
from benchmarks.processes import BenchError, Server, end_children_on_sigterm, healthy_server
from benchmarks.tables import markdown, percentile
from benchmarks.texts import Kind, distinct_texts
from drills.monitor import Monitor, monitored, tokens_answered
from drills.open_loop_load import OpenLoopJob, OpenLoopReport, OpenLoopStream, run_open_loop
from drills.process_limits import pinned, split_cores

LOADS: dict[str, tuple[Kind, int, tuple[int, ...]]] = {
    "single short texts": ("short", 1, (16, 64)),
    "batches of 8 mixed texts": ("mixed", 8, (2, 4, 16)),
}
"""Kind of text, texts per request, and the numbers of clients that are tried to find the peak."""
OVERLOAD_FACTOR = 10
PEAK_SKIP, OVERLOAD_SKIP = 0.3, 0.25
"""Shares of the time that are not measured, because the load is only beginning."""
MAX_REJECTION_MS = 50.0
MIN_THROUGHPUT_SHARE = 0.9
MAX_GROWTH = 1.05
MAX_RECOVERY_S = 1.0
ALLOWED = ("200", "429", "503")
SMOKE = {"seconds": 4.0, "peak_seconds": 2.0, "max_queue_seconds": [2.0], "work": "single"}


@dataclass(frozen=True, slots=True)
class Peak:
    """The highest throughput of the server."""

    tokens_per_s: float
    requests_per_s: float
    texts_per_cpu_s: float


@dataclass(frozen=True, slots=True)
class Idle:
    """Latencies without other load, in milliseconds: of short texts, and of one text that fills a micro-batch."""

    short_ms: list[float]
    micro_batch_ms: float


@dataclass(frozen=True, slots=True)
class Target:
    """A target and what was measured. A smoke run has only targets that hold on a slow and busy machine, too."""

    name: str
    target: str
    measured: str
    is_met: bool
    is_in_smoke_run: bool = False


def main() -> int:
    """Print the tables, and return the exit code."""
    options = _parse_options()
    end_children_on_sigterm()
    print(describe_run(f"python -m drills.overload {' '.join(sys.argv[1:])}"))
    try:
        missed = [name for max_queue_s in options.max_queue_seconds for name in _run(options, max_queue_s)]
    except BenchError as error:
        print(f"overload: {error}", file=sys.stderr)
        return 1
    print("\nmissed: " + "; ".join(missed) if missed else "\nall targets met")
    return 1 if missed else 0


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="overload", description="Send ten times the load that the service can handle."
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload (default: %(default)s)")
    parser.add_argument(
        "--peak-seconds", type=float, default=8.0, help="of each try at the peak (default: %(default)s)"
    )
    parser.add_argument(
        "--max-queue-seconds",
        type=lambda text: [float(number) for number in text.split(",")],
        default=[10.0, 2.0],
        help="values of MAX_QUEUE_SECONDS and MAX_BULK_QUEUE_SECONDS (default: 10,2)",
    )
    parser.add_argument("--work", choices=["single", "batches", "both"], default="both")
    parser.add_argument("--shared", action="store_true", help="let server and load generator use all cores")
    parser.add_argument("--smoke", action="store_true", help="a short run without targets about speed")
    options = parser.parse_args()
    if options.smoke:
        vars(options).update(SMOKE)
    return options


def _run(options: argparse.Namespace, max_queue_s: float) -> list[str]:
    """Put each kind of load on a server of its own; return the names of missed targets."""
    missed = []
    for name in LOADS:
        if options.work != "both" and options.work not in name:
            continue
        print(f"\n### {name}, MAX_QUEUE_SECONDS={max_queue_s:g}\n", flush=True)
        targets = _measure(name, options, max_queue_s)
        if options.smoke:
            targets = [one for one in targets if one.is_in_smoke_run]
        rows = [[one.name, one.target, one.measured, "met" if one.is_met else "**missed**"] for one in targets]
        print("\n" + markdown(["", "target", "measured", ""], rows), flush=True)
        missed += [f"{name}, {max_queue_s:g} s: {one.name}" for one in targets if not one.is_met]
    return missed


def _measure(name: str, options: argparse.Namespace, max_queue_s: float) -> list[Target]:
    kind, texts, clients = LOADS[name]
    server_cores, load_cores = split_cores(is_shared=options.shared)
    lanes = len(server_cores)
    settings = {"MAX_QUEUE_SECONDS": str(max_queue_s), "MAX_BULK_QUEUE_SECONDS": str(max_queue_s)}
    with (
        pinned(server_cores),
        healthy_server(settings, lanes=lanes) as server,
        pinned(load_cores),
    ):
        idle = _idle_latencies(server, lanes=lanes)
        peaks = [_peak(server, OpenLoopStream(kind, texts, clients=count), options.peak_seconds) for count in clients]
        peak = max(filter(None, peaks), key=lambda found: found.tokens_per_s, default=None)
        if peak is None:
            raise BenchError("Even the fewest clients had requests rejected, so there is no peak to compare with.")
        before_mb, _ = memory_mb_of(server.process.pid)
        stream = OpenLoopStream(kind, texts, rate=OVERLOAD_FACTOR * peak.requests_per_s)
        with monitored(server) as monitor:
            job = OpenLoopJob(server.port, server.process.pid, [stream], "overload", options.seconds, 60 + max_queue_s)
            report = run_open_loop(job)
        recovery_s, recovered_ms = _recovery(server, idle)
        _print_context(report, peak, stream)
        print(f"Resident memory before {before_mb:.0f} MB, maximum {monitor.max_rss_mb:.0f} MB, ", end="")
        print(f"after {memory_mb_of(server.process.pid)[0]:.0f} MB.")
        return [
            *_targets_of_answers(report, idle, max_queue_s),
            *_targets_of_server(monitor, peak),
            Target(
                "a single text as fast as before, after the last answer",
                f"within {MAX_RECOVERY_S:g} s",
                f"{recovery_s:.2f} s ({recovered_ms:.0f} ms; before {median(idle.short_ms):.0f} ms)",
                recovery_s <= MAX_RECOVERY_S,
            ),
        ]


def _idle_latencies(server: Server, *, lanes: int) -> Idle:
    """Measure single requests without other load.

    A single text may use all cores. Under load, a micro-batch has only the core of its lane, so it takes *lanes* times
    as long.
    """
    short = distinct_texts("short", "idle")
    for _ in range(5):
        server.post("/embed", {"text": next(short)})
    full = " ".join(next(distinct_texts("mixed", f"idle/{number}")) for number in range(20))[:2000]
    full_ms = median(server.post("/embed", {"text": f"{number} {full}"}).ms for number in range(5))
    return Idle([server.post("/embed", {"text": next(short)}).ms for _ in range(20)], full_ms * lanes)


def _peak(server: Server, stream: OpenLoopStream, seconds: float) -> Peak | None:
    """Return the throughput of the stream's clients; None if requests were rejected, as a short queue does."""
    before, tokens_before = cpu_s_of(server.process.pid), tokens_answered(server)
    with monitored(server) as monitor:
        job = OpenLoopJob(server.port, server.process.pid, [stream], f"peak/{stream.clients}", seconds)
        [answers] = run_open_loop(job).streams
    if set(answers.latencies_ms) != {"200"} or answers.failures:
        return None
    done, cpu_s = len(answers.latencies_ms["200"]), cpu_s_of(server.process.pid) - before
    tokens_per_s = monitor.tokens_per_s(skip=PEAK_SKIP)
    tokens_per_request = ((tokens_answered(server) or 0) - (tokens_before or 0)) / done
    return Peak(tokens_per_s, tokens_per_s / tokens_per_request, done * stream.texts_per_request / cpu_s)


def _recovery(server: Server, idle: Idle) -> tuple[float, float]:
    """Return the seconds until a single text is about as fast as without load, and the milliseconds it took then."""
    max_ms, began = 2 * max(idle.short_ms), time.perf_counter()
    texts = distinct_texts("short", "recovery")
    while time.perf_counter() - began < 60:
        health = server.get("/health")
        answer = server.post("/embed", {"text": next(texts)})
        if (health.status, answer.status) == (200, 200) and answer.ms <= max_ms:
            return time.perf_counter() - began - answer.ms / 1e3, answer.ms
    return float("inf"), answer.ms


def _count_answers(report: OpenLoopReport) -> Counter[str]:
    """Count answers by status and code, and requests without an answer by reason."""
    found: Counter[str] = Counter()
    for stream in report.streams:
        found.update({kind: len(latencies) for kind, latencies in stream.latencies_ms.items()})
        found.update({f"no answer: {kind}": count for kind, count in stream.failures.items()})
    return found


def _targets_of_answers(report: OpenLoopReport, idle: Idle, max_queue_s: float) -> list[Target]:
    [answers] = report.streams
    others = {kind: count for kind, count in _count_answers(report).items() if not kind.startswith(ALLOWED)}
    rejected = [ms for kind, latencies in answers.latencies_ms.items() if kind != "200" for ms in latencies] or [0.0]
    accepted = answers.latencies_ms.get("200", [float("inf")])
    max_ms = max_queue_s * 1e3 + idle.micro_batch_ms
    rejected_ms, p99_ms = percentile(rejected, 0.5), percentile(accepted, 0.99)
    return [
        Target(
            "answers other than 200, 429, 503, and requests without one",
            "0",
            str(others or 0),
            not others,
            is_in_smoke_run=True,
        ),
        Target(
            "median of rejections",
            f"< {MAX_REJECTION_MS:g} ms",
            f"{rejected_ms:.1f} ms (p99 {percentile(rejected, 0.99):.0f} ms)",
            rejected_ms < MAX_REJECTION_MS,
        ),
        Target("p99 of accepted", f"<= {max_ms:.0f} ms", f"{p99_ms:.0f} ms", p99_ms <= max_ms),
    ]


def _targets_of_server(monitor: Monitor, peak: Peak) -> list[Target]:
    share = monitor.tokens_per_s(skip=OVERLOAD_SKIP) / peak.tokens_per_s
    early_mb, late_mb = monitor.rss_mb(0.3, 0.5), monitor.rss_mb(0.8, 1)
    health_ms = [one.health_ms for one in monitor.observations]
    unhealthy = sum(one.health != 200 for one in monitor.observations)
    return [
        Target(
            "tokens/s of the peak's", f">= {MIN_THROUGHPUT_SHARE:.0%}", f"{share:.1%}", share >= MIN_THROUGHPUT_SHARE
        ),
        Target(
            "memory at the end over its middle",
            f"<= {MAX_GROWTH:g} x",
            f"{late_mb / early_mb:.3f} x ({late_mb:.0f} MB)",
            late_mb <= MAX_GROWTH * early_mb,
        ),
        Target(
            "`/health` other than 200 under overload",
            "0",
            f"{unhealthy} of {len(health_ms)} (median {median(health_ms):.0f} ms, maximum {max(health_ms):.0f} ms)",
            not unhealthy,
            is_in_smoke_run=True,
        ),
    ]


def _print_context(report: OpenLoopReport, peak: Peak, stream: OpenLoopStream) -> None:
    """Print what is not a target but explains the numbers."""
    [answers] = report.streams
    texts_per_cpu_s = answers.in_time * stream.texts_per_request / report.server_cpu_s
    print(f"Peak {peak.requests_per_s:.1f} requests/s, {peak.tokens_per_s:.0f} tokens/s. Sent {answers.sent} requests,")
    print(f"{stream.rate:.0f} per second. Answers: {dict(_count_answers(report))}; the last one came")
    print(f"{report.last_answer_s:.1f} s after the end. Texts per CPU second of the server: {texts_per_cpu_s:.0f},")
    print(f"at the peak {peak.texts_per_cpu_s:.0f}. CPU: server {report.server_cpu_s:.1f} s, generator")
    print(f"{report.own_cpu_s:.1f} s; the generator was late by {percentile(report.late_ms, 0.99):.1f} ms at p99.")


if __name__ == "__main__":
    sys.exit(main())
