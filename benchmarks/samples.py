"""One measurement of a server under load in numbers that do not depend on this project, and tables of several.

- *Tokens* are those that the model receives: with special tokens, cut at its limit, without padding; see `tokens.py`.
- *Core* is a usable core: the smaller of CPU affinity and CPU quota. The load generator has no core of its own.
- *CPU* is user and kernel time of the server's process with all its threads and child processes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Protocol

from benchmarks.formats import Target
from benchmarks.load import Job, Report, run_load, texts_done, tokens_done
from benchmarks.machine import this_machine
from benchmarks.tables import percentile
from benchmarks.texts import Stream

QUIET_CORE_SHARE = 0.1
"""CPU of other processes, as a share of one core, above which numbers are not reliable."""

COLUMNS = ["texts/s", "tokens/s/core", "CPU ms per 1,000 tokens", "p50 ms", "p99 ms"]


@dataclass(frozen=True, slots=True)
class Sample:
    """What a server did in one round. CPU is NaN where the server's process is not known."""

    texts_per_s: float
    tokens_per_s: float
    cpu_ms_per_1000_tokens: float
    p50_ms: float
    p99_ms: float
    load_core_share: float = 0.0
    others_core_share: float = 0.0


@dataclass(frozen=True, slots=True)
class Meter:
    """Puts load on servers: *seconds* counted after *warm_s* uncounted ones."""

    seconds: float
    warm_s: float

    def sample(self, target: Target, pid: int | None, streams: Sequence[Stream], seed: str) -> Sample:
        """Put all *streams* on a server at once; latencies are the first stream's.

        Raises:
            RowError: an answer was not a 200.
        """
        report = run_load(Job(target.port, pid, list(streams), seed, self.warm_s, self.seconds, target))
        tokens = tokens_done(report, streams, seed)
        if not tokens:
            return Sample(0.0, 0.0, math.nan, math.nan, math.nan)
        latencies = report.streams[0].latencies_ms or [math.nan]
        return Sample(
            texts_per_s=texts_done(report, streams) / report.window_s,
            tokens_per_s=tokens / report.window_s,
            cpu_ms_per_1000_tokens=math.nan if pid is None else report.server_cpu_s * 1e6 / tokens,
            p50_ms=percentile(latencies, 0.5),
            p99_ms=percentile(latencies, 0.99),
            load_core_share=report.own_cpu_s / report.window_s,
            others_core_share=math.nan if pid is None else _others(report),
        )


def _others(report: Report) -> float:
    return max(0.0, report.all_cpu_s - report.server_cpu_s - report.own_cpu_s) / report.window_s


def cells(samples: Sequence[Sample], cores: int) -> list[str]:
    """Return the cells of `COLUMNS`: the median of the rounds, and in brackets the lowest and the highest."""
    return [
        spread([one.texts_per_s for one in samples]),
        spread([one.tokens_per_s / cores for one in samples]),
        spread([one.cpu_ms_per_1000_tokens for one in samples]),
        spread([one.p50_ms for one in samples]),
        spread([one.p99_ms for one in samples]),
    ]


def spread(values: Sequence[float], show: Callable[[float], str] | None = None) -> str:
    show = show or number
    if any(math.isnan(value) for value in values):
        return "not measured"
    return f"{show(median(values))} ({show(min(values))} to {show(max(values))})"


def number(value: float) -> str:
    """Return three digits that count, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


class Disturbed(Protocol):
    """A measurement that knows how much CPU others used meanwhile."""

    @property
    def others_core_share(self) -> float: ...


def facts(command: str, samples: Sequence[Disturbed]) -> str:
    """Return the lines that belong above every table: command, machine, versions, disturbance."""
    machine = this_machine()
    shares = [one.others_core_share for one in samples if not math.isnan(one.others_core_share)] or [math.nan]
    noisy = " **Too much for reliable numbers.**" if median(shares) > QUIET_CORE_SHARE else ""
    return (
        f"Written by `{command}`, {machine.date}, revision {machine.revision}. {machine.cpu}, {machine.cores} usable "
        f"cores; instruction sets: {machine.features}. {machine.system}, Python {machine.python}, {machine.packages}. "
        f"Processes outside the benchmark used {median(shares):.0%} of one core (at most {max(shares):.0%}).{noisy}"
    )


class SectionError(Exception):
    """A page lacks the markers of a section."""


def replace_section(page: Path, name: str, text: str) -> None:
    """Replace what a page has between `<!-- begin NAME: ... -->` and `<!-- end NAME -->`.

    Raises:
        SectionError: the page lacks the markers.
    """
    before = page.read_text("utf-8")
    head, begin, rest = before.partition(f"<!-- begin {name}:")
    first_line, _, rest = rest.partition("\n")
    _, end, tail = rest.partition(f"<!-- end {name} -->")
    if not begin or not end:
        raise SectionError(f"{page.name} lacks the markers of the section {name!r}.")
    page.write_text(f"{head}{begin}{first_line}\n\n{text.strip()}\n\n{end}{tail}", "utf-8")
