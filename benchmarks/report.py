"""Writes the findings as a page: `docs/BENCHMARKS.md`."""

from collections.abc import Callable
from statistics import fmean, median
from typing import TypeVar

from benchmarks import cache_rows
from benchmarks.machine import Machine
from benchmarks.measure import Served, most_frequent
from benchmarks.session import Findings, Plan, Sample
from benchmarks.startup import start_table
from benchmarks.tables import markdown
from benchmarks.verdicts import Verdict, overhead_of
from benchmarks.workloads import CACHE_ROW, LOADS, SHARED_ROW, Row

T = TypeVar("T")

QUIET_CORE_SHARE = 0.1
"""CPU of other processes, as a share of one core, above which the page warns that the numbers are not reliable."""

GENERATED = "<!-- Everything below this line is written by benchmarks/bench.py. -->\n"
"""Divides the page: the text above this line is written by hand and kept."""
PAGE = """
## Results

Written by `{command}`; do not edit below this line. How to read it and how to run it again: `benchmarks/README.md`.

The service and FastEmbed's own `embed()`, called once per request in a process of its own, run alternately on the same
seeded, distinct English texts with the bundled all-MiniLM-L6-v2. Every number is the median over the rounds ({rounds}
of {seconds:g} s after {warm_s:.2g} s of warm-up), in brackets the lowest and the highest round. A ratio is taken within
each round.

| | |
|---|---|
{machine}

## Against the targets

{table}

## Row by row

CPU is of the whole process, all threads, user and kernel, in ms per text. The *bare loop* runs the same micro-batches
(texts and longest length, recorded with `LOG_LEVEL=DEBUG`) with random tokens on ONNX Runtime, a one-thread session on
as many plain threads as the server has lanes (one where one text is in progress at a time), and nothing else. The load
generator runs on the same cores; its share is of one core.

{details}

{shared}{start}
{memory}

{cache}
"""


def page(
    plan: Plan, findings: Findings, cache: cache_rows.Found, found: list[Verdict], *, machine: Machine, command: str
) -> str:
    facts = {
        "Date": machine.date,
        "CPU": f"{machine.cpu} ({machine.features}), {machine.cores} usable cores",
        "System": f"{machine.system}, Python {machine.python}",
        "Packages": machine.packages,
        "Revision": machine.revision,
        "Disturbance": _disturbance(findings),
        "Vectors": f"least cosine to FastEmbed's {findings.min_cosine:.6f}",
    }
    lines = [[str(one.row), one.work, one.target, one.measured, one.result] for one in found]
    text = PAGE.format(
        command=command,
        rounds=plan.rounds,
        seconds=plan.seconds,
        warm_s=plan.warm_s,
        machine="\n".join(f"| {name} | {value} |" for name, value in facts.items()),
        table=markdown(["#", "work", "target", "measured", ""], lines),
        details="\n\n".join(
            _row(LOADS[number], samples, findings) for number, samples in sorted(findings.samples.items())
        ),
        shared=_shared(findings.samples.get(SHARED_ROW, [])),
        start=_start(findings),
        memory=_memory(findings),
        cache=f"### {CACHE_ROW}. Result cache\n\n{cache_rows.tables(cache)}" if CACHE_ROW in plan.rows else "",
    )
    return text.rstrip() + "\n"


def _disturbance(findings: Findings) -> str:
    """State how much of a core other processes used: the noise in all numbers of the page."""
    shares = [sample.served.others_core_share for samples in findings.samples.values() for sample in samples]
    if not shares:
        return "not measured"
    noisy = "; **too much for reliable numbers**" if fmean(shares) > QUIET_CORE_SHARE else ""
    return f"while the service ran, others used {fmean(shares):.0%} of one core (at most {max(shares):.0%}){noisy}"


def _row(row: Row, samples: list[Sample], findings: Findings) -> str:
    lines = [
        [
            "service",
            _median(samples, lambda sample: sample.served.texts_per_s, 1),
            _median(samples, lambda sample: sample.served.latencies[0].p50_ms, 1),
            _median(samples, lambda sample: sample.served.latencies[0].p99_ms, 1),
            _median(samples, lambda sample: sample.served.cpu_ms_per_text, 2),
        ]
    ]
    if called := [sample.called for sample in samples if sample.called]:
        lines += [
            [
                "FastEmbed",
                _median(called, lambda call: call.texts_per_s, 1),
                _median(called, lambda call: call.latency.p50_ms, 1),
                _median(called, lambda call: call.latency.p99_ms, 1),
                _median(called, lambda call: call.cpu_ms_per_text, 2),
            ]
        ]
    if bare := [sample.bare_cpu_ms_per_text for sample in samples if sample.bare_cpu_ms_per_text]:
        lines.append(["bare loop", "", "", "", f"{median(bare):.2f}"])
    head = ["", "texts/s", "p50 ms", "p99 ms", "CPU ms per text"]
    return f"### {row.number}. {row.title}\n\n{markdown(head, lines)}\n\n{_remarks(row, samples, findings)}"


def _remarks(row: Row, samples: list[Sample], findings: Findings) -> str:
    remarks = [f"Timed requests: {sum(sample.served.latencies[0].requests for sample in samples)}"]
    if len(row.streams) > 1:
        remarks.append("latencies are the short-text client's, the rest is of all clients")
    remarks.append(f"load generator {median(sample.served.load_core_share for sample in samples):.1%} of one core")
    if overhead := overhead_of(samples):
        remarks.append(f"{overhead.middle:+.1%} CPU over the bare loop ({overhead.low:+.1%} to {overhead.high:+.1%})")
    if recording := findings.recordings.get(row.number):
        remarks.append(f"texts per model run: {most_frequent(recording.shapes, 5)}")
    return "; ".join(remarks) + "."


def _shared(samples: list[Sample]) -> str:
    """Compare all work of the shared row with that of the bulk clients alone."""
    pairs = [(sample.alone, sample.served) for sample in samples if sample.alone]
    if not pairs:
        return ""
    lines = [
        _all_streams("bulk alone", [alone for alone, _ in pairs]),
        _all_streams("bulk and short", [served for _, served in pairs]),
    ]
    head = ["row 6, all streams", "texts/s", "modelled cost/s (tokens)", "p50 ms of a bulk request", "CPU ms per text"]
    return markdown(head, lines) + "\n\n"


def _all_streams(name: str, served: list[Served]) -> list[str]:
    return [
        name,
        _median(served, lambda one: one.texts_per_s, 1),
        _median(served, lambda one: one.cost_per_s, 0),
        _median(served, lambda one: one.latencies[-1].p50_ms, 0),
        _median(served, lambda one: one.cpu_ms_per_text, 2),
    ]


def _start(findings: Findings) -> str:
    starts = findings.starts
    if not starts:
        return ""
    return f"### 8. Start\n\n{start_table(starts)}\n\nStarts of each, alternately: {len(starts)}.\n\n"


def _memory(findings: Findings) -> str:
    if not findings.samples:
        return ""
    memory = findings.memory
    lines = [
        ["service, at the end", f"{memory.server:.0f}"],
        ["service, at its peak", f"{memory.server_peak:.0f}"],
        ["FastEmbed process, at the end", f"{memory.baseline:.0f}"],
    ]
    return f"### Memory\n\n{markdown(['', 'RSS MB'], lines)}"


def _median(items: list[T], value: Callable[[T], float], digits: int) -> str:
    return f"{median(value(item) for item in items):.{digits}f}"
