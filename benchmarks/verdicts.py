"""Compares what was measured with the targets."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from benchmarks.session import Findings, Sample
from benchmarks.workloads import (
    CPU_ROW,
    IDLE_ROW,
    LOADS,
    MAX_LATENCY_RATIO,
    MAX_OVERHEAD,
    MAX_RSS_MB,
    MAX_SHARED_P50_RATIO,
    MAX_SHARED_P99_RATIO,
    MAX_START_RATIO,
    MIN_WORK_SHARE,
    SHARED_ROW,
    START_ROW,
    Row,
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line of the table of targets. *is_met* is None for what could not be measured."""

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
    """The median over the rounds, with the lowest and the highest round."""

    middle: float
    low: float
    high: float

    def written(self, digits: int = 2, unit: str = "x", scale: int = 1) -> str:
        middle, low, high = (f"{value * scale:.{digits}f}" for value in (self.middle, self.low, self.high))
        return f"{middle} {unit} ({low} to {high})"


def median_of(values: list[float]) -> Median:
    return Median(median(values), min(values), max(values))


def verdicts(findings: Findings, rows: tuple[int, ...]) -> list[Verdict]:
    found: list[Verdict] = []
    for number in rows:
        if number in findings.aborted:
            found.append(Verdict(number, LOADS[number].title, "", findings.aborted[number], is_met=None))
        elif number in LOADS and findings.samples.get(number):
            found += _of_load(LOADS[number], findings)
    if CPU_ROW in rows and findings.samples:
        found += [_of_overhead(findings), _of_memory(findings)]
    if START_ROW in rows and findings.starts:
        found.append(_of_start(findings))
    return found


def _of_load(row: Row, findings: Findings) -> list[Verdict]:
    samples = findings.samples[row.number]
    if row.number == SHARED_ROW:
        return [*_of_shared_latency(row, findings), _of_shared_work(row, samples)]
    if row.number == IDLE_ROW:
        ratio = _over_rounds(samples, _latency_ratio)
        return [
            _at_most(row.number, row.title, ratio, MAX_LATENCY_RATIO, f"p50 ≤ {MAX_LATENCY_RATIO} x FastEmbed's own")
        ]
    ratio, least = _over_rounds(samples, _throughput_ratio), row.min_ratio or 0.0
    target = f"≥ {least} x FastEmbed per request (texts/s)"
    return [Verdict(row.number, row.title, target, ratio.written(), ratio.middle >= least)]


def _at_most(row: int, work: str, ratio: Median, limit: float, target: str) -> Verdict:
    return Verdict(row, work, target, ratio.written(), ratio.middle <= limit)


def _of_shared_latency(row: Row, findings: Findings) -> list[Verdict]:
    latencies = [sample.served.latencies[0] for sample in findings.samples[row.number]]
    idle_ms = [sample.served.latencies[0].p50_ms for sample in findings.samples.get(IDLE_ROW, [])]
    if len(idle_ms) != len(latencies):
        return [Verdict(row.number, row.title, "", "row 5 was not measured in every round", is_met=None)]
    p50 = median_of([one.p50_ms / idle for one, idle in zip(latencies, idle_ms, strict=True)])
    p99 = median_of([one.p99_ms / idle for one, idle in zip(latencies, idle_ms, strict=True)])
    targets = [f"≤ {limit:.0f} x idle p50 (row 5)" for limit in (MAX_SHARED_P50_RATIO, MAX_SHARED_P99_RATIO)]
    return [
        _at_most(row.number, f"{row.title}: its p50", p50, MAX_SHARED_P50_RATIO, targets[0]),
        _at_most(row.number, "… its p99", p99, MAX_SHARED_P99_RATIO, targets[1]),
    ]


def _of_shared_work(row: Row, samples: list[Sample]) -> Verdict:
    share = _over_rounds(samples, _work_share)
    work, target = "… work done in all, by modelled cost", f"≥ {MIN_WORK_SHARE:.0%} of bulk alone"
    return Verdict(row.number, work, target, share.written(0, "%", 100), share.middle >= MIN_WORK_SHARE)


def _of_overhead(findings: Findings) -> Verdict:
    work, target = "all of the above: CPU per text", f"≤ {MAX_OVERHEAD:.0%} over the bare loop"
    overheads = {number: overhead_of(samples) for number, samples in sorted(findings.samples.items())}
    measured = ", ".join(
        f"row {number}: {f'{found.middle * 100:+.0f} %' if found else 'no micro-batches logged'}"
        for number, found in overheads.items()
    )
    known = [found for found in overheads.values() if found]
    is_met = all(found.middle <= MAX_OVERHEAD for found in known)
    return Verdict(CPU_ROW, work, target, measured, is_met if len(known) == len(overheads) else None)


def _of_memory(findings: Findings) -> Verdict:
    memory = findings.memory
    measured = f"{memory.server:.0f} MB (peak {memory.server_peak:.0f} MB)"
    target = f"≤ {MAX_RSS_MB:.0f} MB"
    return Verdict(CPU_ROW, "all of the above: RSS at the end", target, measured, memory.server <= MAX_RSS_MB)


def _of_start(findings: Findings) -> Verdict:
    ratio = median_of([start.server_s / start.load_s for start in findings.starts])
    work = "start to first correct answer, bundled model, warm disk"
    target = f"≤ {MAX_START_RATIO} x importing FastEmbed and loading the model"
    return _at_most(START_ROW, work, ratio, MAX_START_RATIO, target)


def _over_rounds(samples: list[Sample], ratio: Callable[[Sample], float]) -> Median:
    return median_of([ratio(sample) for sample in samples])


def _throughput_ratio(sample: Sample) -> float:
    return sample.served.texts_per_s / sample.called.texts_per_s if sample.called else 0.0


def _latency_ratio(sample: Sample) -> float:
    return sample.served.latencies[0].p50_ms / sample.called.latency.p50_ms if sample.called else 0.0


def _work_share(sample: Sample) -> float:
    return sample.served.cost_per_s / sample.alone.cost_per_s if sample.alone else 0.0


def overhead_of(samples: list[Sample]) -> Median | None:
    """Return by what share the server's CPU exceeds that of the bare loop; None: no micro-batches were recorded."""
    pairs = [(sample.served.cpu_ms_per_text, sample.bare_cpu_ms_per_text) for sample in samples]
    found = [served / bare - 1 for served, bare in pairs if bare]
    return median_of(found) if found else None
