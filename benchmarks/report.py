"""The findings as a page: `docs/BENCHMARKS.md`."""

import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from statistics import fmean, median
from typing import TypeVar

from benchmarks.cpu import cpu_model, usable_cores
from benchmarks.measure import most_frequent
from benchmarks.processes import ROOT
from benchmarks.rows import BESIDE_ROW, LOADS, Row
from benchmarks.session import Findings, Plan, Turn
from benchmarks.verdicts import Verdict, overhead_of

T = TypeVar("T")

QUIET_CORE_SHARE = 0.1
PACKAGES = ("fastembed", "onnxruntime", "litestar", "uvicorn", "numpy")

GENERATED = "<!-- Everything below this line is written by benchmarks/bench.py. -->\n"
"""Divides a page: the text above it is written by hand, and stays."""
PAGE = """
## Results

Written by `{command}`; do not edit below this line. How to read it and how to run it again: `benchmarks/README.md`.

The service and FastEmbed's own `embed()`, called once per request in a bare process, take turns on the same seeded,
distinct English texts with the bundled all-MiniLM-L6-v2. Every number is the median over the rounds ({rounds} of
{seconds:g} s after {warm_s:g} s of warm-up), in brackets the lowest and the highest round. A ratio is taken within each
round.

| | |
|---|---|
{machine}

## Against the targets

{table}

## Row by row

CPU is of the whole process, all threads, user and kernel, in ms per text. The *bare loop* runs the same micro-batches
(texts and longest length, recorded with `LOG_LEVEL=DEBUG`) with random tokens on ONNX Runtime, a one-thread session on
as many plain threads as the server has lanes (one where one text is under way at a time), and nothing else. The load
generator runs on the same cores; its share is of one core.

{details}

{mixed}{start}
{memory}
"""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it ran, without names that tell whose it is."""

    date: str
    cpu: str
    cores: int
    system: str
    python: str
    packages: str
    revision: str


def this_machine() -> Machine:
    return Machine(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        cpu=cpu_model(),
        cores=usable_cores(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        packages=", ".join(f"{name} {version_of(name)}" for name in PACKAGES),
        revision=revision(),
    )


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def revision() -> str:
    if not (git := shutil.which("git")):
        return "unknown"

    def say(*arguments: str) -> str:
        return subprocess.run([git, *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    changed = " with local changes" if say("status", "--porcelain", "--untracked-files=no") else ""
    return (say("rev-parse", "--short", "HEAD") or "unknown") + changed


def page(plan: Plan, findings: Findings, found: list[Verdict], machine: Machine, command: str) -> str:
    facts = {
        "Date": machine.date,
        "CPU": f"{machine.cpu}, {machine.cores} usable cores",
        "System": f"{machine.system}, Python {machine.python}",
        "Packages": machine.packages,
        "Revision": machine.revision,
        "Disturbance": disturbance(findings),
        "Vectors": f"least cosine to FastEmbed's {findings.least_cosine:.6f}",
    }
    text = PAGE.format(
        command=command,
        rounds=plan.rounds,
        seconds=plan.seconds,
        warm_s=plan.warm_s,
        machine="\n".join(f"| {name} | {value} |" for name, value in facts.items()),
        table=table(found),
        details=details(findings),
        mixed=beside(findings.turns.get(BESIDE_ROW, [])),
        start=start(findings),
        memory=memory(findings),
    )
    return text.rstrip() + "\n"


def disturbance(findings: Findings) -> str:
    """Tell how much of the cores others took: the noise in all numbers below."""
    shares = [turn.served.others_core_share for turns in findings.turns.values() for turn in turns]
    if not shares:
        return "not measured"
    noisy = "; **too much for these numbers to hold**" if fmean(shares) > QUIET_CORE_SHARE else ""
    return f"while the service ran, others used {fmean(shares):.0%} of one core (at most {max(shares):.0%}){noisy}"


def table(found: list[Verdict]) -> str:
    lines = [[str(one.row), one.work, one.target, one.measured, one.result] for one in found]
    return markdown(["#", "work", "target", "measured", ""], lines)


def details(findings: Findings) -> str:
    rows = [(LOADS[number], turns) for number, turns in sorted(findings.turns.items())]
    return "\n\n".join(row_details(row, turns, findings) for row, turns in rows)


def row_details(row: Row, turns: list[Turn], findings: Findings) -> str:
    served = ["service", middle(turns, lambda turn: turn.served.texts_per_s, 1)]
    served += [middle(turns, lambda turn: turn.served.latencies[0].p50_ms, 1)]
    served += [middle(turns, lambda turn: turn.served.latencies[0].p99_ms, 1)]
    served += [middle(turns, lambda turn: turn.served.cpu_ms_per_text, 2)]
    lines = [served]
    if called := [turn.called for turn in turns if turn.called]:
        lines.append(["FastEmbed", middle(called, lambda call: call.texts_per_s, 1)])
        lines[-1] += [middle(called, lambda call: call.latency.p50_ms, 1)]
        lines[-1] += [middle(called, lambda call: call.latency.p99_ms, 1)]
        lines[-1] += [middle(called, lambda call: call.cpu_ms_per_text, 2)]
    if bare := [turn.bare_cpu_ms_per_text for turn in turns if turn.bare_cpu_ms_per_text]:
        lines.append(["bare loop", "", "", "", f"{median(bare):.2f}"])
    head = ["", "texts/s", "p50 ms", "p99 ms", "CPU ms per text"]
    return f"### {row.number}. {row.title}\n\n{markdown(head, lines)}\n\n{remarks(row, turns, findings)}"


def remarks(row: Row, turns: list[Turn], findings: Findings) -> str:
    said = [f"Timed requests: {sum(turn.served.latencies[0].requests for turn in turns)}"]
    if len(row.streams) > 1:
        said.append("latencies are the short-text client's, the rest is of all clients")
    said.append(f"load generator {median(turn.served.load_core_share for turn in turns):.1%} of one core")
    if overhead := overhead_of(turns):
        said.append(f"{overhead.middle:+.1%} CPU over the bare loop ({overhead.low:+.1%} to {overhead.high:+.1%})")
    if recording := findings.recordings.get(row.number):
        said.append(f"texts per model run: {most_frequent(recording.shapes, 5)}")
    return "; ".join(said) + "."


def beside(turns: list[Turn]) -> str:
    """Tell who got how much when short and bulk shared the server."""
    pairs = [(turn.served, turn.alone) for turn in turns if turn.alone]
    if not pairs:
        return ""
    lines = [
        [
            "bulk alone",
            middle(pairs, lambda pair: pair[1].texts_per_s, 1),
            middle(pairs, lambda pair: pair[1].cost_per_s, 0),
            middle(pairs, lambda pair: pair[1].latencies[0].p50_ms, 0),
            middle(pairs, lambda pair: pair[1].cpu_ms_per_text, 2),
        ],
        [
            "bulk and short",
            middle(pairs, lambda pair: pair[0].texts_per_s, 1),
            middle(pairs, lambda pair: pair[0].cost_per_s, 0),
            middle(pairs, lambda pair: pair[0].latencies[1].p50_ms, 0),
            middle(pairs, lambda pair: pair[0].cpu_ms_per_text, 2),
        ],
    ]
    head = ["row 6, all streams", "texts/s", "modelled cost/s (tokens)", "p50 ms of a bulk request", "CPU ms per text"]
    return markdown(head, lines) + "\n\n"


def start(findings: Findings) -> str:
    starts = findings.starts
    if not starts:
        return ""
    lines = [
        ["`python main.py` to the first right answer", middle(starts, lambda one: one.server_s, 2)],
        ["a process that imports FastEmbed and loads the model", middle(starts, lambda one: one.load_s, 2)],
        ["a process that imports FastEmbed", middle(starts, lambda one: one.import_s, 2)],
    ]
    return f"### 8. Start\n\n{markdown(['', 's'], lines)}\n\nStarts of each, in turns: {len(starts)}.\n\n"


def memory(findings: Findings) -> str:
    if not findings.turns:
        return ""
    of = findings.memory
    lines = [["service, at the end", f"{of.server:.0f}"], ["service, at its peak", f"{of.server_peak:.0f}"]]
    lines.append(["FastEmbed process, at the end", f"{of.baseline:.0f}"])
    return f"### Memory\n\n{markdown(['', 'RSS MB'], lines)}"


def middle(items: list[T], value: Callable[[T], float], digits: int) -> str:
    return f"{median(value(item) for item in items):.{digits}f}"


def markdown(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows)
