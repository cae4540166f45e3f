"""The rows of `result_cache.py`, their goals, and the tables of what was measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from benchmarks.load import RowError
from benchmarks.replay import Replayed
from benchmarks.samples import facts, spread
from benchmarks.tables import markdown
from benchmarks.verdicts import Verdict, median_of
from benchmarks.workloads import CACHE_ROW

CLIENTS, BATCH_TEXTS, BATCH_CLIENTS = 16, 32, 2
STREAM_CLIENTS = 8
"""Frequent texts are more frequent in a stream of thousands than in one of millions. Of 16 clients' queries, 7 % would
equal one in flight, which is computed once without the cache, too; of 8 clients' queries in a million, 0.3 %."""
SEARCH_REPEATS, CHAT_REPEATS, CHANGED = 0.5, 0.1, 0.05
SHARE_TOLERANCE = 0.02
"""By how much the share of known results may differ from the intended one."""


@dataclass(frozen=True, slots=True)
class Pair:
    """What the servers without and with the cache did in one round."""

    off: Replayed
    on: Replayed

    @property
    def rate(self) -> float:
        return self.on.texts_per_s / self.off.texts_per_s


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of work. *known*: the share of the texts that the cache need not compute."""

    title: str
    known: float


ROWS = {
    "distinct": Row("distinct short texts, 16 clients", 0.0),
    "repeated": Row("one short text again and again, 16 clients; without cache: distinct ones", 1.0),
    "search": Row("search: short texts, 50 % repeats, Zipf exponent 0.83, 8 clients", SEARCH_REPEATS),
    "chat": Row("chat: mixed texts, 10 % repeats, Zipf exponent 0.83, 8 clients", CHAT_REPEATS),
    "ingest-short": Row("ingest: batches of 32 short texts, no repeats, 2 clients", 0.0),
    "ingest": Row("ingest: batches of 32 mixed texts, no repeats, 2 clients", 0.0),
    "reindex": Row("the same again, 5 % of the texts changed", 1 - CHANGED),
    "beside": Row("short texts beside 2 clients with mixed batches, 16 clients; without cache: distinct ones", 1.0),
    "redis": Row("texts that another replica left in Redis, 16 clients; without cache: distinct ones", 1.0),
}
COUNTS = {
    "distinct": 1500,
    "repeated": 8000,
    "search": 4000,
    "chat": 600,
    "ingest-short": 1280,
    "ingest": 320,
    "beside": 300,
    "hits beside": 4000,
    "bulk beside": 30 * BATCH_TEXTS,
    "redis": 1500,
}
"""Texts per round."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A target for the median over the rounds of *value*."""

    row: str
    work: str
    target: str
    limit: float
    value: Callable[[Pair], float]
    unit: str = "x"
    is_least: bool = True

    def verdict(self, pairs: Sequence[Pair]) -> Verdict:
        found = median_of([self.value(pair) for pair in pairs])
        is_met = found.middle >= self.limit if self.is_least else found.middle <= self.limit
        return Verdict(CACHE_ROW, self.work, self.target, found.written(unit=self.unit), is_met)


def _rate(pair: Pair) -> float:
    return pair.rate


def _main_thread_ms(pair: Pair) -> float:
    return pair.on.thread_ms


def _texts_per_cpu_s(pair: Pair) -> float:
    return pair.off.cpu_ms / pair.on.cpu_ms


def _p99_ms(pair: Pair) -> float:
    return pair.on.p99_ms


DISTINCT, RATE, CPU = "x the rate of distinct texts", "x the rate without cache", "x the texts per CPU second"
GOALS = (
    Goal("repeated", "one short text repeated", f"≥ 8 {DISTINCT} (aim: 12)", 8, _rate),
    Goal(
        "repeated",
        "… CPU of the main thread per hit",
        "≤ 0.4 ms (aim: 0.25)",
        0.4,
        _main_thread_ms,
        "ms",
        is_least=False,
    ),
    Goal("search", "search, 50 % repeats", f"≥ 1.8 {RATE}", 1.8, _rate),
    Goal("chat", "chat, 10 % repeats", f"≥ 1.05 {RATE}", 1.05, _rate),
    Goal("ingest-short", "ingest of short texts, no repeats", f"≥ 0.97 {CPU} without cache", 0.97, _texts_per_cpu_s),
    Goal("ingest", "ingest of mixed texts, no repeats", f"≥ 0.97 {CPU} without cache", 0.97, _texts_per_cpu_s),
    Goal("reindex", "95 % of the documents known", f"≥ 10 {RATE}", 10, _rate),
    Goal("beside", "p99 of hits beside bulk work", "≤ 25 ms", 25, _p99_ms, "ms", is_least=False),
    Goal("redis", "hits in Redis, second replica", f"≥ 5 {DISTINCT}", 5, _rate),
)


@dataclass(slots=True)
class Found:
    """All rounds of each row; and rows that could not be measured, with the reason."""

    rounds: dict[str, list[Pair]] = field(default_factory=lambda: {name: [] for name in ROWS})
    aborted: dict[str, str] = field(default_factory=dict)
    skipped: str = ""


def check_shares(name: str, pair: Pair) -> None:
    """Refuse numbers of a cache that had more or fewer of the texts than intended.

    Raises:
        RowError: with the shares.
    """
    on, off = pair.on, pair.off
    if off.hits or abs(on.hits + on.coalesced - ROWS[name].known) > SHARE_TOLERANCE:
        raise RowError(
            f"of the texts, {on.hits:.1%} were hits, {on.coalesced:.1%} coalesced and {on.misses:.1%} computed; "
            f"{ROWS[name].known:.0%} should have been known. Without cache: {off.hits:.1%} hits."
        )


def verdicts(found: Found) -> list[Verdict]:
    """Compare with the goals. Rows that were skipped have no verdict."""
    return [
        Verdict(CACHE_ROW, goal.work, goal.target, found.aborted[goal.row], is_met=None)
        if goal.row in found.aborted
        else goal.verdict(found.rounds[goal.row])
        for goal in GOALS
        if goal.row in found.aborted or found.rounds[goal.row]
    ]


def tables(found: Found) -> str:
    """Return a line for each server and row: medians of the rounds, in brackets the lowest and the highest."""
    lines = []
    for name, pairs in found.rounds.items():
        if name in found.aborted or not pairs:
            continue
        off, on = [pair.off for pair in pairs], [pair.on for pair in pairs]
        lines.append([ROWS[name].title, "off", *_cells(off), ""])
        lines.append(["", "on", *_cells(on), f"{spread([pair.rate for pair in pairs])} x"])
    head = [
        "work",
        "cache",
        "hits",
        "coalesced",
        "texts/s",
        "CPU ms per text",
        "main thread, ms per request",
        "p50 ms",
        "p99 ms",
        "",
    ]
    notes = [
        (
            "*Hits* are the texts whose results were in the cache, and *coalesced* those that were computed for an "
            "equal text in flight, without the cache, too: both by the header `X-Cache`. *CPU* is of all threads of "
            "the server, for bulk work beside it, too. The last column compares texts/s, within a round."
        ),
        *([found.skipped] if found.skipped else []),
        *(f"{ROWS[name].title}: not measured, {reason}" for name, reason in found.aborted.items()),
    ]
    return "\n\n".join([markdown(head, lines), *notes])


def _cells(samples: Sequence[Replayed]) -> list[str]:
    shares = [f"{median(getattr(one, share) for one in samples):.1%}" for share in ("hits", "coalesced")]
    columns = ("texts_per_s", "cpu_ms", "thread_ms", "p50_ms", "p99_ms")
    return [*shares, *(spread([getattr(one, column) for one in samples]) for column in columns)]


def section(found: Found, command: str) -> str:
    """Return the section of docs/BENCHMARKS.md."""
    lines = [[one.work, one.target, one.measured, one.result] for one in verdicts(found)]
    samples = [sample for pairs in found.rounds.values() for pair in pairs for sample in (pair.off, pair.on)]
    return "\n\n".join([facts(command, samples), markdown(["work", "target", "measured", ""], lines), tables(found)])
