"""What a comparison of two models shows: a table and a verdict for people, one object for programs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cli.console import BYTES_PER_MB, table
from cli.model_process import Loaded
from engine.catalog import Model
from engine.comparison import NEIGHBOURS, neighbours_of
from engine.model_cards import InputType

SAME, NEAR, PARTIAL = 0.99, 0.90, 0.70
"""Least mean overlap for each verdict. Float16 weights keep 0.99 and more, good int8 weights 0.90 and more."""
ONE_INDEX_COSINE = 0.99
"""Least cosine, of all but the worst twentieth of the texts, for vectors of both models to stand in one index."""
FEW_TEXTS = 100
"""Below this, ten neighbours are a large part of all texts, and chance alone makes models agree."""

Agreement = Literal["same", "near", "partial", "different", "unknown"]
Numbers = NDArray[np.float64]

VERDICTS = (
    f"The verdict rests on two numbers. overlap@{NEIGHBOURS}: of the {NEIGHBOURS} texts that are nearest to a text by "
    f"A (by cosine), the share that is among the {NEIGHBOURS} nearest by B, on average over all texts. {SAME:.2f} and "
    f"more counts as the same neighbours, {NEAR:.2f} as nearly the same, {PARTIAL:.2f} as most of them, less as "
    "others. cosine: between the two vectors of a text, where the models have the same dimensions. One index may hold "
    f"vectors of both where it is at least {ONE_INDEX_COSINE} for 95 % of the texts and the neighbours are nearly the "
    f"same. Under {FEW_TEXTS} texts all of this is a weak hint."
)
COSTS = (
    "ms are medians over turns of up to 64 texts, tokenising included, on one lane (one core); the service has "
    "several. MB in memory are the growth of the process, for one copy of the model. A line that stands in the file "
    "twice is taken once."
)


@dataclass(frozen=True, slots=True)
class Skipped:
    """Lines of the file that were not taken."""

    blank: int
    repeated: int
    beyond_limit: int


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two models: what it gave, and what that cost.

    Attributes:
        vectors: float32, one row per text.
        memory_bytes: growth of its process by loading and by all texts; None: this system does not tell.
        truncated: of how many texts it did not see all.
    """

    model: Model
    file_bytes: int
    loaded: Loaded
    vectors: NDArray[np.float32]
    wall_ms: float
    cpu_ms: float
    memory_bytes: int | None
    truncated: int

    @property
    def batching(self) -> str:
        """Whether a text has the same vector whatever shares its run, and how the service sees to that."""
        ways = {"mixed": "yes", "equal": "if equally long", "single": "only alone"}
        return ways[self.loaded.check.batching]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models on the same texts.

    Attributes:
        lines: the line of the file on which each text stands.
        cosines: per text; None: the models have different dimensions.
        overlaps: per text, see `engine.comparison.overlaps`.
    """

    sides: tuple[Side, Side]
    lines: Sequence[int]
    skipped: Skipped
    input_type: InputType | None
    cosines: Numbers | None
    overlaps: Numbers

    @property
    def neighbours(self) -> int:
        return neighbours_of(len(self.lines))

    @property
    def chance(self) -> float:
        """The overlap of models that have nothing in common."""
        return self.neighbours / (len(self.lines) - 1)

    @property
    def agreement(self) -> Agreement:
        if self.chance == 1.0:
            return "unknown"
        overlap = self.overlaps.mean()
        return (
            "same"
            if overlap >= SAME
            else "near"
            if overlap >= NEAR
            else "partial"
            if overlap >= PARTIAL
            else "different"
        )

    @property
    def may_share_index(self) -> bool:
        if self.cosines is None or self.agreement not in {"same", "near"}:
            return False
        return bool(np.percentile(self.cosines, 5) >= ONE_INDEX_COSINE)


def as_lines(result: Comparison) -> Iterator[str]:
    """The comparison for people."""
    yield _told_texts(result)
    yield ""
    for letter, side in zip("AB", result.sides, strict=True):
        yield f"{letter}  {side.model.name} ({side.model.source})"
    yield ""
    yield from table([["", "A", "B"], *([name, *map(show, result.sides)] for name, show in ROWS.items())])
    yield ""
    yield from _told_agreement(result)
    yield ""
    yield from verdict(result)


def verdict(result: Comparison) -> Iterator[str]:
    """What follows from it, in plain words."""
    texts = len(result.lines)
    if result.agreement == "unknown":
        yield f"Too few texts to tell: each of the {texts} is a neighbour of all others. Take {FEW_TEXTS} or more."
        return
    cosine = "" if result.cosines is None else f", cosine {result.cosines.mean():.3f} on average"
    yield f"{FINDINGS[result.agreement]} (overlap@{result.neighbours} {result.overlaps.mean():.3f}{cosine})."
    yield ADVICE[result.agreement]
    yield (
        "One index may hold vectors of both."
        if result.may_share_index
        else "Do not mix their vectors in one index: whoever switches must embed everything anew."
    )
    yield f"B takes {_told_gains(*result.sides)}."
    if texts < FEW_TEXTS:
        yield f"With only {texts} texts this is a weak hint; take {FEW_TEXTS} or more."


def as_json(result: Comparison) -> dict[str, Any]:
    """The comparison for programs. It holds numbers of lines, but no text."""
    return {
        "texts": len(result.lines),
        "skipped": {
            "blank": result.skipped.blank,
            "repeated": result.skipped.repeated,
            "beyond_limit": result.skipped.beyond_limit,
        },
        "input_type": result.input_type,
        "models": {letter: _side_as_json(side) for letter, side in zip("ab", result.sides, strict=True)},
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


FINDINGS: Mapping[Agreement, str] = {
    "same": "B finds the same neighbours as A",
    "near": "B finds nearly the same neighbours as A",
    "partial": "B finds most neighbours of A, but not all",
    "different": "B finds other neighbours than A",
}
ADVICE: Mapping[Agreement, str] = {
    "same": "It may take the place of A.",
    "near": "It may take the place of A where the tenth result matters less than the first.",
    "partial": "Try it on searches whose answers you know before you switch.",
    "different": "To a search it is another model, for better or worse.",
}


def _megabytes(size_bytes: int | None) -> str:
    return "not measured" if size_bytes is None else f"{size_bytes / BYTES_PER_MB:,.1f}"


ROWS: Mapping[str, Any] = {
    "ms per text": lambda side: f"{side.wall_ms:,.2f}",
    "CPU ms per text": lambda side: f"{side.cpu_ms:,.2f}",
    "seconds to load": lambda side: f"{side.loaded.seconds:,.2f}",
    "MB in memory, loaded": lambda side: _megabytes(side.loaded.memory_bytes),
    "MB in memory, after all texts": lambda side: _megabytes(side.memory_bytes),
    "MB of files": lambda side: _megabytes(side.file_bytes),
    "dimensions": lambda side: str(side.model.dim),
    "tokens of a text at most": lambda side: "any" if side.loaded.max_tokens is None else str(side.loaded.max_tokens),
    "texts cut at that": lambda side: str(side.truncated),
    "same vector in any batch": lambda side: side.batching,
    "fingerprint": lambda side: side.loaded.fingerprint.digest,
}
"""The table: what each line is called, and what it shows of a side."""


def _told_texts(result: Comparison) -> str:
    counts = {
        "blank": result.skipped.blank,
        "repeated": result.skipped.repeated,
        "beyond the limit": result.skipped.beyond_limit,
    }
    skipped = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
    read_as = f", each as a {result.input_type}" if result.input_type else ""
    return f"{len(result.lines)} texts{read_as}" + (f"; lines left out: {skipped}" if skipped else "")


def _told_agreement(result: Comparison) -> Iterator[str]:
    rows = [["", "mean", "5th percentile", "least", "on line"]]
    if result.cosines is not None:
        rows.append(["cosine of A and B", *_spread_as_cells(result.cosines, result.lines, digits=4)])
    name = f"overlap@{result.neighbours}"
    rows.append([name, *_spread_as_cells(result.overlaps, result.lines, digits=3)])
    yield from table(rows)
    if result.cosines is None:
        first, second = (side.model.dim for side in result.sides)
        yield f"cosine: not comparable ({first} and {second} dimensions)"
    yield f"Models that have nothing in common would have {name} {result.chance:.2f}."
    for letter, side in zip("AB", result.sides, strict=True):
        if side.model.card.needs_prompt and result.input_type is None:
            yield f"{letter} wants to know what texts are: with --input-type query or document its vectors are better."


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


def _told_gains(first: Side, second: Side) -> str:
    told = f"{second.cpu_ms / first.cpu_ms:.2f} times the CPU time of A" if first.cpu_ms else "no measurable CPU time"
    if first.memory_bytes and second.memory_bytes:
        told += f" and {second.memory_bytes / first.memory_bytes:.2f} times its memory"
    return told


def _side_as_json(side: Side) -> dict[str, Any]:
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
