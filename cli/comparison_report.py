"""Reports a comparison of two models: tables and a verdict for people, one JSON object for programs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cli.console import BYTES_PER_MB, print_line, print_table
from cli.model_process import LoadReport
from engine.catalog import Model
from engine.comparison import NEIGHBOURS, neighbours_of
from engine.model_cards import InputType

Agreement = Literal["same", "near", "partial", "different", "unknown"]
Numbers = NDArray[np.float64]

MIN_OVERLAPS: Mapping[Agreement, float] = {"same": 0.99, "near": 0.90, "partial": 0.70}
"""Least mean overlap for each agreement; below, it is `different`.

Float16 weights keep an overlap of 0.99 and more, good int8 weights one of 0.90 and more.
"""
MIN_SHARED_INDEX_COSINE = 0.99
"""Least cosine, of all but the worst 5 % of the texts, at which one index may contain vectors of both models."""
FEW_TEXTS = 100
"""Below this number, ten neighbours are a large part of all texts, and models agree by chance."""

VERDICTS: Mapping[Agreement, tuple[str, str]] = {
    "same": ("B finds the same neighbours as A", "It can replace A."),
    "near": (
        "B finds nearly the same neighbours as A",
        "It can replace A where the tenth result matters less than the first.",
    ),
    "partial": (
        "B finds most neighbours of A, but not all",
        "Before you switch, try it on searches whose results you know.",
    ),
    "different": ("B finds other neighbours than A", "For a search it is a different model, better or worse."),
}
"""The result and the advice for each agreement."""

VERDICT_HELP = (
    f"The verdict is based on two numbers. overlap@{NEIGHBOURS}: the share of a text's {NEIGHBOURS} nearest neighbours "
    f"(by cosine) that both models have in common, averaged over all texts. {MIN_OVERLAPS['same']:.2f} and more counts "
    f"as the same neighbours, {MIN_OVERLAPS['near']:.2f} as nearly the same, {MIN_OVERLAPS['partial']:.2f} as most of "
    "them. cosine: between the two vectors of a text, if both models have the same dimensions. One index may contain "
    f"vectors of both models if the cosine is at least {MIN_SHARED_INDEX_COSINE} for 95 % of the texts and the "
    f"neighbours are the same or nearly the same. With fewer than {FEW_TEXTS} texts, the verdict is uncertain."
)
COST_HELP = (
    "Times are medians per text, over slices of up to 64 texts, on one lane (one core), tokenising included; the "
    "service has several lanes. Memory is the growth of the process, for one copy of the model. Repeated lines of the "
    "file count once."
)


@dataclass(frozen=True, slots=True)
class Skipped:
    """How many lines of the file were not used."""

    blank: int
    repeated: int
    beyond_limit: int


@dataclass(frozen=True, slots=True)
class ModelResult:
    """One of the two models: its vectors, and what they cost.

    Attributes:
        vectors: float32, shape ``(texts, dim)``.
        wall_ms: median wall-clock time per text.
        cpu_ms: median CPU time per text.
        memory_bytes: growth of its process by loading it and embedding all texts; None: unknown on this system.
        truncated: number of texts that were longer than the model's limit.
    """

    model: Model
    file_bytes: int
    loaded: LoadReport
    vectors: NDArray[np.float32]
    wall_ms: float
    cpu_ms: float
    memory_bytes: int | None
    truncated: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models on the same texts.

    Attributes:
        lines: the line number of each text in the file.
        cosines: one per text; None: the models have different dimensions.
        overlaps: one per text, see `engine.comparison.overlaps`.
    """

    models: tuple[ModelResult, ModelResult]
    lines: Sequence[int]
    skipped: Skipped
    input_type: InputType | None
    cosines: Numbers | None
    overlaps: Numbers

    @property
    def neighbours(self) -> int:
        """How many neighbours of each text are compared."""
        return neighbours_of(len(self.lines))

    @property
    def chance(self) -> float:
        """The expected overlap of two unrelated models."""
        return self.neighbours / (len(self.lines) - 1)

    @property
    def agreement(self) -> Agreement:
        """How far the models agree; `unknown` if all texts are neighbours of each other."""
        if self.chance == 1.0:
            return "unknown"
        overlap = self.overlaps.mean()
        return next((name for name, least in MIN_OVERLAPS.items() if overlap >= least), "different")

    @property
    def may_share_index(self) -> bool:
        """Whether one index may contain vectors of both models."""
        if self.cosines is None or self.agreement not in {"same", "near"}:
            return False
        return bool(np.percentile(self.cosines, 5) >= MIN_SHARED_INDEX_COSINE)


def print_report(result: Comparison) -> None:
    """Print the comparison for people."""
    print_line(_describe_texts(result))
    print_line()
    for letter, side in zip("AB", result.models, strict=True):
        print_line(f"{letter}  {side.model.name} ({side.model.source})")
    print_line()
    print_table([["", "A", "B"], *([label, *map(show, result.models)] for label, show in ROWS.items())])
    print_line()
    _print_agreement(result)
    print_line()
    for line in verdict(result):
        print_line(line)


def verdict(result: Comparison) -> Iterator[str]:
    """Yield the conclusions, as sentences."""
    texts = len(result.lines)
    if result.agreement == "unknown":
        yield f"Too few texts: each of the {texts} is a neighbour of all others. Use {FEW_TEXTS} or more."
        return
    finding, advice = VERDICTS[result.agreement]
    cosine = "" if result.cosines is None else f", cosine {result.cosines.mean():.3f} on average"
    yield f"{finding} (overlap@{result.neighbours} {result.overlaps.mean():.3f}{cosine})."
    yield advice
    yield (
        "One index may contain vectors of both."
        if result.may_share_index
        else "Do not mix their vectors in one index: to switch, embed all texts again."
    )
    yield f"B takes {_relative_cost(*result.models)}."
    if texts < FEW_TEXTS:
        yield f"With only {texts} texts, this is uncertain. Use {FEW_TEXTS} or more."


def as_json(result: Comparison) -> dict[str, Any]:
    """Return the comparison for programs. It contains line numbers, but no text."""
    return {
        "texts": len(result.lines),
        "skipped": asdict(result.skipped),
        "input_type": result.input_type,
        "models": {letter: _model_as_json(side) for letter, side in zip("ab", result.models, strict=True)},
        "cosine": None if result.cosines is None else _spread(result.cosines, result.lines),
        "overlap": {
            "neighbours": result.neighbours,
            "by_chance": round(result.chance, 4),
            **_spread(result.overlaps, result.lines),
        },
        "agreement": result.agreement,
        "may_share_index": result.may_share_index,
        "verdict": " ".join(verdict(result)),
    }


def _megabytes(size_bytes: int | None) -> str:
    return "not measured" if size_bytes is None else f"{size_bytes / BYTES_PER_MB:,.1f}"


BATCHING = {"mixed": "yes", "equal": "if equally long", "single": "only alone"}
ROWS: Mapping[str, Callable[[ModelResult], str]] = {
    "ms per text": lambda side: f"{side.wall_ms:,.2f}",
    "CPU ms per text": lambda side: f"{side.cpu_ms:,.2f}",
    "seconds to load": lambda side: f"{side.loaded.seconds:,.2f}",
    "MB in memory, loaded": lambda side: _megabytes(side.loaded.memory_bytes),
    "MB in memory, after all texts": lambda side: _megabytes(side.memory_bytes),
    "MB of files": lambda side: _megabytes(side.file_bytes),
    "dimensions": lambda side: str(side.model.dim),
    "maximum tokens per text": lambda side: str(side.loaded.max_tokens or "unlimited"),
    "truncated texts": lambda side: str(side.truncated),
    "same vector in any batch": lambda side: BATCHING[side.loaded.check.batching],
    "fingerprint": lambda side: side.loaded.fingerprint.digest,
}
"""The rows of the table: the label, and the cell for a model."""


def _describe_texts(result: Comparison) -> str:
    counts = {
        "blank": result.skipped.blank,
        "repeated": result.skipped.repeated,
        "beyond --limit": result.skipped.beyond_limit,
    }
    skipped = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
    input_type = f", each embedded as a {result.input_type}" if result.input_type else ""
    return f"{len(result.lines)} texts{input_type}" + (f"; skipped lines: {skipped}" if skipped else "")


def _print_agreement(result: Comparison) -> None:
    name = f"overlap@{result.neighbours}"
    rows = [["", "mean", "5th percentile", "minimum", "on line"]]
    if result.cosines is not None:
        rows.append(["cosine of A and B", *_spread_as_cells(result.cosines, result.lines, digits=4)])
    rows.append([name, *_spread_as_cells(result.overlaps, result.lines, digits=3)])
    print_table(rows)
    first, second = result.models
    if result.cosines is None:
        print_line(f"cosine: not comparable ({first.model.dim} and {second.model.dim} dimensions)")
    print_line(f"Two unrelated models would have {name} {result.chance:.2f}.")
    for letter, side in zip("AB", result.models, strict=True):
        if side.model.card.needs_prompt and result.input_type is None:
            print_line(f"{letter} distinguishes queries from documents: set --input-type to get better vectors.")


def _spread_as_cells(values: Numbers, lines: Sequence[int], *, digits: int) -> list[str]:
    spread = _spread(values, lines)
    return [*(f"{spread[key]:.{digits}f}" for key in ("mean", "p5", "least")), str(spread["least_line"])]


def _spread(values: Numbers, lines: Sequence[int]) -> dict[str, Any]:
    worst = int(values.argmin())
    return {
        "mean": round(float(values.mean()), 6),
        "p5": round(float(np.percentile(values, 5)), 6),
        "least": round(float(values[worst]), 6),
        "least_line": lines[worst],
    }


def _relative_cost(first: ModelResult, second: ModelResult) -> str:
    cost = f"{second.cpu_ms / first.cpu_ms:.2f} times the CPU time of A" if first.cpu_ms else "no measurable CPU time"
    if first.memory_bytes and second.memory_bytes:
        cost += f" and {second.memory_bytes / first.memory_bytes:.2f} times its memory"
    return cost


def _model_as_json(side: ModelResult) -> dict[str, Any]:
    check, fingerprint = side.loaded.check, side.loaded.fingerprint
    return {
        "model": side.model.name,
        "source": side.model.source,
        "dimension": side.model.dim,
        "max_tokens": side.loaded.max_tokens,
        "ms_per_text": round(side.wall_ms, 4),
        "cpu_ms_per_text": round(side.cpu_ms, 4),
        "load_seconds": round(side.loaded.seconds, 3),
        "memory_bytes_loaded": side.loaded.memory_bytes,
        "memory_bytes": side.memory_bytes,
        "file_bytes": side.file_bytes,
        "truncated": side.truncated,
        "batch_invariant": check.is_batch_invariant,
        "batching": check.batching,
        "revision": fingerprint.revision,
        "fingerprint": fingerprint.digest,
    }
