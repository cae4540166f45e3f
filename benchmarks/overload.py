"""Ten times the load that the service can serve: what becomes of its answers, its pace and its memory.

Run it as `python benchmarks/overload.py`. It starts a server, measures the most it can serve (clients that wait for
their answers), then sends ten times as many requests by the clock, whatever comes back. The generator is a process of
its own, on a core of its own: the last one, which the server may not use (`--shared`: both use all cores, and the work
of sending and refusing is taken from that of embedding). Exit code 1: a target was missed, and is named.
"""

import argparse
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.cpu import cpu_s_of, memory_mb_of, pinned, split_cores  # noqa: E402 - our own modules can be found now
from benchmarks.openloop import OpenJob, OpenReport, OpenStream  # noqa: E402
from benchmarks.processes import (  # noqa: E402
    BenchError,
    Server,
    end_children_on_sigterm,
    healthy_server,
    run_open_load,
)
from benchmarks.report import markdown, revision, this_machine  # noqa: E402
from benchmarks.texts import Kind, distinct_texts  # noqa: E402
from benchmarks.watch import Watch, get, post, tokens_answered, watched  # noqa: E402
from benchmarks.work import percentile  # noqa: E402

WORK: dict[str, tuple[Kind, int, tuple[int, ...]]] = {
    "single short texts": ("short", 1, (16, 64)),
    "batches of 8 mixed texts": ("mixed", 8, (2, 4, 16)),
}
"""Kind of text, texts of a request, and the numbers of clients tried to find the peak."""
TIMES = 10
PEAK_SKIPS, OVERLOAD_SKIPS = 0.3, 0.25
"""Shares of the time in which the load is only beginning."""
REFUSED_WITHIN_MS = 50.0
MIN_SHARE = 0.9
MAX_GROWTH = 1.05
HEALTHY_WITHIN_S = 1.0
ALLOWED = ("200", "429", "503")


@dataclass(frozen=True, slots=True)
class Peak:
    """The most that the server can serve."""

    tokens_per_s: float
    requests_per_s: float
    texts_per_cpu_s: float


@dataclass(frozen=True, slots=True)
class Idle:
    """Answers to lone requests, in milliseconds: short texts, and one that fills a micro-batch."""

    short_ms: list[float]
    micro_batch_ms: float


@dataclass(frozen=True, slots=True)
class Target:
    """One thing promised, and what was seen."""

    name: str
    target: str
    measured: str
    is_met: bool


def main() -> int:
    """Print the tables, and give the exit code."""
    options = parser().parse_args()
    end_children_on_sigterm()
    machine = this_machine()
    print(f"{machine.cpu}, {machine.cores} usable cores; Python {machine.python}, {machine.packages}; {machine.date}")
    print(f"revision {revision()}; command: python benchmarks/overload.py {' '.join(sys.argv[1:])}".rstrip())
    try:
        missed = [name for max_queue_s in options.max_queue_seconds for name in run(options, max_queue_s)]
    except BenchError as error:
        print(f"overload.py: {error}", file=sys.stderr)
        return 1
    print("\nmissed: " + "; ".join(missed) if missed else "\nall targets met")
    return 1 if missed else 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="overload.py", description="Send ten times the load that can be served.")
    made.add_argument("--seconds", type=float, default=60.0, help="of overload (default: %(default)s)")
    made.add_argument("--peak-seconds", type=float, default=8.0, help="for each try at the peak (default: %(default)s)")
    made.add_argument(
        "--max-queue-seconds",
        type=lambda text: [float(number) for number in text.split(",")],
        default=[10.0, 2.0],
        help="values of MAX_QUEUE_SECONDS (default: 10,2)",
    )
    made.add_argument("--work", choices=["single", "batches", "both"], default="both")
    made.add_argument("--shared", action="store_true", help="server and generator use all cores together")
    return made


def run(options: argparse.Namespace, max_queue_s: float) -> list[str]:
    """Measure each kind of work on a server of its own; give the names of what was missed."""
    missed = []
    for name in WORK:
        if options.work != "both" and options.work not in name:
            continue
        print(f"\n### {name}, MAX_QUEUE_SECONDS={max_queue_s:g}\n", flush=True)
        targets = measured(name, options, max_queue_s)
        rows = [[one.name, one.target, one.measured, "met" if one.is_met else "**missed**"] for one in targets]
        print("\n" + markdown(["", "target", "measured", ""], rows), flush=True)
        missed += [f"{name}, {max_queue_s:g} s: {one.name}" for one in targets if not one.is_met]
    return missed


def measured(name: str, options: argparse.Namespace, max_queue_s: float) -> list[Target]:
    kind, texts, clients = WORK[name]
    server_cores, load_cores = split_cores(is_shared=options.shared)
    lanes = len(server_cores)
    with (
        pinned(server_cores),
        healthy_server(log_level="INFO", lanes=lanes, MAX_QUEUE_SECONDS=str(max_queue_s)) as server,
        pinned(load_cores),
    ):
        idle = idle_answers(server, lanes=lanes)
        peaks = [peak_of(server, OpenStream(kind, texts, clients=count), options.peak_seconds) for count in clients]
        peak = max(filter(None, peaks), key=lambda found: found.tokens_per_s, default=None)
        if peak is None:
            raise BenchError("Not even the fewest clients were all served, so there is no peak to speak of.")
        before_mb = memory_mb_of(server.process.pid)[0]
        stream = OpenStream(kind, texts, rate=TIMES * peak.requests_per_s)
        with watched(server) as watch:
            report = run_open_load(
                OpenJob(server.port, server.process.pid, [stream], "overload", options.seconds, 60 + max_queue_s)
            )
        healthy_after_s, afterwards_ms = recovery(server, idle)
        tell(report, watch, peak, stream, before_mb=before_mb, after_mb=memory_mb_of(server.process.pid)[0])
        return [
            *targets_of_answers(report, idle, max_queue_s),
            *targets_of_server(watch, peak),
            Target(
                "a lone text as fast as before, after the last answer",
                f"within {HEALTHY_WITHIN_S:g} s",
                f"{healthy_after_s:.2f} s ({afterwards_ms:.0f} ms; before {median(idle.short_ms):.0f} ms)",
                healthy_after_s <= HEALTHY_WITHIN_S,
            ),
        ]


def idle_answers(server: Server, *, lanes: int) -> Idle:
    """Ask alone. A lone text may use all cores; under load a micro-batch has a lane's, so its time is *lanes* fold."""
    short = distinct_texts("short", "idle")
    for _ in range(5):
        post(server, "/embed", {"text": next(short)})
    full = " ".join(next(distinct_texts("mixed", f"idle/{number}")) for number in range(20))[:2000]
    full_ms = median(post(server, "/embed", {"text": f"{number} {full}"})[2] for number in range(5))
    return Idle([post(server, "/embed", {"text": next(short)})[2] for _ in range(20)], full_ms * lanes)


def peak_of(server: Server, stream: OpenStream, seconds: float) -> Peak | None:
    """What so many clients get done; None where some were refused: with a short queue, fewer are the most."""
    before, tokens_before = cpu_s_of(server.process.pid), tokens_answered(server)
    with watched(server) as watch:
        report = run_open_load(OpenJob(server.port, server.process.pid, [stream], f"peak/{stream.clients}", seconds))
    [answers] = report.streams
    if set(answers.latencies_ms) != {"200"} or answers.failures:
        return None
    done, cpu_s = len(answers.latencies_ms["200"]), cpu_s_of(server.process.pid) - before
    tokens_per_s = watch.tokens_per_s(skip=PEAK_SKIPS)
    tokens_per_request = ((tokens_answered(server) or 0) - (tokens_before or 0)) / done
    return Peak(tokens_per_s, tokens_per_s / tokens_per_request, done * stream.texts_per_request / cpu_s)


def recovery(server: Server, idle: Idle) -> tuple[float, float]:
    """Seconds until a lone text is served at its normal pace again, and the milliseconds that it then took."""
    normal_ms, began = 2 * max(idle.short_ms), time.perf_counter()
    texts = distinct_texts("short", "recovery")
    while time.perf_counter() - began < 60:
        health, _, _ = get(server, "/health")
        status, _, taken_ms = post(server, "/embed", {"text": next(texts)})
        if (health, status) == (200, 200) and taken_ms <= normal_ms:
            return time.perf_counter() - began - taken_ms / 1e3, taken_ms
    return float("inf"), taken_ms


def counted(report: OpenReport) -> Counter[str]:
    """Answers by status and code, and requests without one by what happened."""
    found: Counter[str] = Counter()
    for stream in report.streams:
        found.update({kind: len(latencies) for kind, latencies in stream.latencies_ms.items()})
        found.update({f"no answer: {kind}": count for kind, count in stream.failures.items()})
    return found


def targets_of_answers(report: OpenReport, idle: Idle, max_queue_s: float) -> list[Target]:
    [answers] = report.streams
    others = {kind: count for kind, count in counted(report).items() if not kind.startswith(ALLOWED)}
    refused = [ms for kind, latencies in answers.latencies_ms.items() if kind != "200" for ms in latencies]
    accepted = answers.latencies_ms.get("200", [])
    most_ms = max_queue_s * 1e3 + idle.micro_batch_ms
    refused_ms, p99_ms = percentile(refused or [0.0], 0.5), percentile(accepted or [float("inf")], 0.99)
    return [
        Target("answers other than 200, 429, 503, and requests without one", "0", str(others or 0), not others),
        Target(
            "median of refusals",
            f"< {REFUSED_WITHIN_MS:g} ms",
            f"{refused_ms:.1f} ms (p99 {percentile(refused or [0.0], 0.99):.0f} ms)",
            refused_ms < REFUSED_WITHIN_MS,
        ),
        Target("p99 of accepted", f"<= {most_ms:.0f} ms", f"{p99_ms:.0f} ms", p99_ms <= most_ms),
    ]


def targets_of_server(watch: Watch, peak: Peak) -> list[Target]:
    share = watch.tokens_per_s(skip=OVERLOAD_SKIPS) / peak.tokens_per_s
    early_mb, late_mb = watch.rss_mb(0.3, 0.5), watch.rss_mb(0.8, 1)
    probes = [look.health_ms for look in watch.looks]
    unhealthy = sum(look.health != 200 for look in watch.looks)
    return [
        Target("tokens/s of the peak's", f">= {MIN_SHARE:.0%}", f"{share:.1%}", share >= MIN_SHARE),
        Target(
            "resident memory, end of the overload over its middle",
            f"<= {MAX_GROWTH:g} x",
            f"{late_mb / early_mb:.3f} x ({late_mb:.0f} MB)",
            late_mb <= MAX_GROWTH * early_mb,
        ),
        Target(
            "`/health` other than 200 under overload",
            "0",
            f"{unhealthy} of {len(probes)} (median {median(probes):.0f} ms, most {max(probes):.0f} ms)",
            not unhealthy,
        ),
    ]


def tell(
    report: OpenReport, watch: Watch, peak: Peak, stream: OpenStream, *, before_mb: float, after_mb: float
) -> None:
    """What is no target but explains the numbers."""
    [answers] = report.streams
    texts_per_cpu_s = answers.in_time * stream.texts_per_request / report.server_cpu_s
    print(f"peak {peak.requests_per_s:.1f} requests/s, {peak.tokens_per_s:.0f} tokens/s; sent {answers.sent} requests,")
    print(f"{stream.rate:.0f} a second; answers: {dict(counted(report))}; the last one came")
    print(f"{report.last_answer_s:.1f} s after the end. Texts per CPU second of the server: {texts_per_cpu_s:.0f}, ")
    print(f"at the peak {peak.texts_per_cpu_s:.0f}. CPU: server {report.server_cpu_s:.1f} s, generator")
    print(f"{report.own_cpu_s:.1f} s; the generator was late by {percentile(report.late_ms, 0.99):.1f} ms at p99.")
    print(f"Resident memory before {before_mb:.0f} MB, most {watch.most_rss_mb:.0f} MB, after {after_mb:.0f} MB.")


if __name__ == "__main__":
    sys.exit(main())
