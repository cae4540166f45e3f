"""What was measured against what was asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from benchmarks.rows import (
    BESIDE_P50_LIMIT,
    BESIDE_P99_LIMIT,
    BESIDE_ROW,
    CPU_ROW,
    IDLE_ROW,
    LATENCY_RATIO_LIMIT,
    LOADS,
    OVERHEAD_LIMIT,
    RSS_LIMIT_MB,
    START_RATIO_LIMIT,
    START_ROW,
    WORK_SHARE_LIMIT,
    Row,
)
from benchmarks.session import Findings, Turn


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line of the table; *is_met* is None for what could not be measured."""

    row: int
    work: str
    target: str
    measured: str
    is_met: bool | None

    @property
    def result(self) -> str:
        return {True: "passed", False: "**missed**", None: "not measured"}[self.is_met]


@dataclass(frozen=True, slots=True)
class Median:
    """The median over the rounds, and between what they lay."""

    middle: float
    low: float
    high: float

    def written(self, digits: int = 2, unit: str = "x") -> str:
        return f"{self.middle:.{digits}f} {unit} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def median_of(values: list[float]) -> Median:
    return Median(median(values), min(values), max(values))


def verdicts(findings: Findings, rows: tuple[int, ...]) -> list[Verdict]:
    found: list[Verdict] = []
    for number in rows:
        if number in findings.aborted:
            found.append(Verdict(number, LOADS[number].title, "", findings.aborted[number], is_met=None))
        elif number in LOADS and findings.turns.get(number):
            found += of_load(LOADS[number], findings)
    if CPU_ROW in rows and findings.turns:
        found += [of_overhead(findings), of_memory(findings)]
    if START_ROW in rows and findings.starts:
        found.append(of_start(findings))
    return found


def of_load(row: Row, findings: Findings) -> list[Verdict]:
    if row.number == BESIDE_ROW:
        return of_beside(row, findings)
    return [of_latency(row, findings) if row.number == IDLE_ROW else of_throughput(row, findings)]


def of_throughput(row: Row, findings: Findings) -> Verdict:
    ratio = over_rounds(findings.turns[row.number], throughput_ratio)
    least = row.least_ratio or 0.0
    return Verdict(
        row.number, row.title, f"≥ {least} x FastEmbed per request (texts/s)", ratio.written(), ratio.middle >= least
    )


def of_latency(row: Row, findings: Findings) -> Verdict:
    ratio = over_rounds(findings.turns[row.number], latency_ratio)
    target = f"p50 ≤ {LATENCY_RATIO_LIMIT} x FastEmbed's own"
    return Verdict(row.number, row.title, target, ratio.written(), ratio.middle <= LATENCY_RATIO_LIMIT)


def of_beside(row: Row, findings: Findings) -> list[Verdict]:
    turns, idle = findings.turns[row.number], findings.turns.get(IDLE_ROW, [])
    idle_p50_ms = [turn.served.latencies[0].p50_ms for turn in idle]
    shares = over_rounds(turns, work_share)
    work = Verdict(
        row.number,
        "… work done in all, by modelled cost",
        f"≥ {WORK_SHARE_LIMIT:.0%} of bulk alone",
        Median(shares.middle * 100, shares.low * 100, shares.high * 100).written(0, "%"),
        shares.middle >= WORK_SHARE_LIMIT,
    )
    if len(idle_p50_ms) != len(turns):
        return [Verdict(row.number, row.title, "", "row 5 was not measured in every round", is_met=None), work]
    beside = [turn.served.latencies[0] for turn in turns]
    p50 = median_of([one.p50_ms / idle_ms for one, idle_ms in zip(beside, idle_p50_ms, strict=True)])
    p99 = median_of([one.p99_ms / idle_ms for one, idle_ms in zip(beside, idle_p50_ms, strict=True)])
    return [
        Verdict(
            row.number,
            f"{row.title}: its p50",
            f"≤ {BESIDE_P50_LIMIT:.0f} x idle p50 (row 5)",
            p50.written(),
            p50.middle <= BESIDE_P50_LIMIT,
        ),
        Verdict(
            row.number,
            "… its p99",
            f"≤ {BESIDE_P99_LIMIT:.0f} x idle p50 (row 5)",
            p99.written(),
            p99.middle <= BESIDE_P99_LIMIT,
        ),
        work,
    ]


def of_overhead(findings: Findings) -> Verdict:
    work, target = "all of the above: CPU per text", f"≤ {OVERHEAD_LIMIT:.0%} over the bare loop"
    overheads = {number: overhead_of(turns) for number, turns in findings.turns.items()}
    measured = ", ".join(f"row {number}: {share(found)}" for number, found in sorted(overheads.items()))
    known = [found for found in overheads.values() if found]
    is_met = all(found.middle <= OVERHEAD_LIMIT for found in known)
    return Verdict(CPU_ROW, work, target, measured, is_met if len(known) == len(overheads) else None)


def share(overhead: Median | None) -> str:
    return f"{overhead.middle * 100:+.0f} %" if overhead else "no micro-batches logged"


def of_memory(findings: Findings) -> Verdict:
    memory = findings.memory
    measured = f"{memory.server:.0f} MB (peak {memory.server_peak:.0f} MB)"
    target = f"≤ {RSS_LIMIT_MB:.0f} MB"
    return Verdict(CPU_ROW, "all of the above: RSS at the end", target, measured, memory.server <= RSS_LIMIT_MB)


def of_start(findings: Findings) -> Verdict:
    ratio = median_of([start.server_s / start.load_s for start in findings.starts])
    work = "start to first right answer, bundled model, warm disk"
    target = f"≤ {START_RATIO_LIMIT} x importing FastEmbed and loading the model"
    return Verdict(START_ROW, work, target, ratio.written(), ratio.middle <= START_RATIO_LIMIT)


def over_rounds(turns: list[Turn], ratio: Callable[[Turn], float]) -> Median:
    return median_of([ratio(turn) for turn in turns])


def throughput_ratio(turn: Turn) -> float:
    return turn.served.texts_per_s / turn.called.texts_per_s if turn.called else 0.0


def latency_ratio(turn: Turn) -> float:
    return turn.served.latencies[0].p50_ms / turn.called.latency.p50_ms if turn.called else 0.0


def work_share(turn: Turn) -> float:
    return turn.served.cost_per_s / turn.alone.cost_per_s if turn.alone else 0.0


def overhead_of(turns: list[Turn]) -> Median | None:
    """Tell what share of the bare loop's CPU the server used on top of it."""
    pairs = [(turn.served.cpu_ms_per_text, turn.bare_cpu_ms_per_text) for turn in turns]
    found = [served / bare - 1 for served, bare in pairs if bare]
    return median_of(found) if found else None
