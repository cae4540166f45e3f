"""Checks a model when it loads: finite vectors, its reference vectors, and the same vector whatever shares its run.

A text must get the same vector whatever else is in its run. Models that were quantised dynamically to int8 break this
rule: the scale of their activations is taken over the whole run. The check runs the same texts alone and together to
find such a model. It is then run in a way that keeps its vectors the same, and the check measures what that costs.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import structlog
from numpy.typing import NDArray

from engine.catalog import Model
from engine.errors import ModelUnavailableError
from engine.planner import Batching, cost
from engine.tokenizer import TextTokenizer, TokenizedText
from engine.vectors import Matrix, normalize

PROBES = (
    "How do I reset my password?",
    "One, two, three, four, five: a quick fox rests in the warm sun for 42 minutes.",
    "Zwölf Äpfel, 3,50 €. 今日。",
)
"""The texts of the check. Their lengths, words, digits, signs and scripts differ, so that their activations do, too."""
MAX_DRIFT = 1e-5
"""The largest accepted difference between a number of a vector and the same number of the text run alone.

Both vectors have length 1. A float32 model stays below it; one quantised dynamically to int8 is far above it.
"""
MIN_COSINE = 0.999
"""The least accepted cosine between a vector and the manifest's reference. Float16 weights cost 1e-6 of it."""
UNIT_TOLERANCE = 1e-3
"""How far a vector's length may be from 1 and still count as 1. Float16 outputs are off by up to 5e-4."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SelfCheckResult:
    """What the check has measured.

    Attributes:
        batch_drift: the largest difference of a number between vectors of the same text run alone and together with
            others, both at length 1. None: texts cannot be run together, for example if the graph takes one at a time.
        batching: which texts may share a run: any (`mixed`), only those of `equal` length, or none (`single`).
        batching_cost: seconds that the probes take if they are run as *batching* says, relative to a single run for
            all; 1 if that is how they are run.
        canary_cosine: the least cosine to the model's reference vectors; None: it has no references.
        is_unit: whether FastEmbed returns its vectors at length 1.
        seconds_per_token: speed of the model, in seconds of one lane per token of modelled cost.
    """

    batch_drift: float | None
    batching: Batching
    batching_cost: float
    canary_cosine: float | None
    is_unit: bool
    seconds_per_token: float

    @property
    def is_batch_invariant(self) -> bool:
        return self.batch_drift is not None and self.batch_drift <= MAX_DRIFT


Encode = Callable[[Sequence[TokenizedText]], Matrix]


def run_self_check(model: Model, tokenizer: TextTokenizer, encode: Encode) -> SelfCheckResult:
    """Check a model's vectors. Blocks for a handful of runs, which also warm the model up.

    Raises:
        ModelUnavailableError: the vectors contain NaN or infinity, have another dimension than stated or differ from
            the references, or one of the model's prompts leaves no space for a text.
    """
    _check_prompts(model, tokenizer)
    first, *others = items = tokenizer.tokenize(PROBES)
    vector = encode([first])  # not timed: the first run is slow
    _check_shape(model, vector)
    started = time.perf_counter()
    alone = np.concatenate([vector, _run_each(encode, others)])
    seconds_per_token = (time.perf_counter() - started) / sum(cost(1, item.length) for item in others)
    if not np.isfinite(alone).all():
        raise ModelUnavailableError(model.name, "its vectors contain NaN or infinity")
    cosine = _check_references(model, tokenizer, encode, dict(zip(PROBES, alone, strict=True)))
    started = time.perf_counter()
    drift = _drift_together(encode, items, alone)
    together_s = time.perf_counter() - started
    is_invariant = drift is not None and drift <= MAX_DRIFT
    single_s = seconds_per_token * sum(cost(1, item.length) for item in items)
    result = SelfCheckResult(
        batch_drift=drift,
        batching="mixed" if is_invariant else _choose_batching(encode, items),
        batching_cost=1.0 if is_invariant or drift is None else round(single_s / together_s, 2),
        canary_cosine=cosine,
        is_unit=_is_unit(alone),
        seconds_per_token=seconds_per_token,
    )
    if not result.is_batch_invariant:
        log.warning(
            "model_not_batch_invariant",
            model=model.name,
            drift=drift,
            batching=result.batching,
            cost=result.batching_cost,
        )
    return result


def drift_of(vectors: Matrix, expected: Matrix) -> float:
    """Return the largest difference of a number, with all vectors at length 1; infinity if the shapes differ."""
    if vectors.shape != expected.shape:
        return float("inf")
    return float(np.abs(normalize(vectors) - normalize(expected)).max())


def _run_each(encode: Encode, items: Sequence[TokenizedText]) -> Matrix:
    return np.concatenate([encode([item]) for item in items])


def _choose_batching(encode: Encode, items: Sequence[TokenizedText]) -> Batching:
    """Try texts of equal length together: if these do not drift, it was padding that made the others drift."""
    shortest = min(item.length for item in items)
    equal = [TokenizedText(shortest, item.ids[:shortest]) for item in items]
    drift = _drift_together(encode, equal, _run_each(encode, equal))
    return "equal" if drift is not None and drift <= MAX_DRIFT else "single"


def _drift_together(encode: Encode, items: Sequence[TokenizedText], alone: Matrix) -> float | None:
    """Return how far the vectors of *items* in one run are from those *alone*; None if they cannot share a run."""
    try:
        drift = drift_of(encode(items), alone)
    except Exception:  # noqa: BLE001 - each item ran alone before, so the graph does not accept more than one text
        return None
    return drift if np.isfinite(drift) else None


def _check_references(
    model: Model, tokenizer: TextTokenizer, encode: Encode, known: Mapping[str, NDArray[np.float32]]
) -> float | None:
    """Return the least cosine to the model's reference vectors; *known* contains vectors of texts that ran alone."""
    references = model.folder.manifest.canary if model.folder else []
    if not references:
        return None
    new = [reference.text for reference in references if reference.text not in known]
    if new:
        known = {**known, **dict(zip(new, _run_each(encode, tokenizer.tokenize(new)), strict=True))}
    vectors = np.stack([known[reference.text] for reference in references])
    expected = np.asarray([reference.vector for reference in references], dtype=np.float32)
    cosine = float((normalize(vectors) * normalize(expected)).sum(axis=1).min())
    if not cosine >= MIN_COSINE:
        raise ModelUnavailableError(
            model.name,
            f"its vectors differ from its manifest's canary (cosine {cosine:.4f}, expected {MIN_COSINE} or more): "
            "one of its files is wrong",
        )
    return cosine


def _check_prompts(model: Model, tokenizer: TextTokenizer) -> None:
    limit = tokenizer.max_tokens
    for prompt in (model.card.prompts.query, model.card.prompts.document):
        if prompt and limit is not None and (tokens := tokenizer.tokenize([prompt])[0].tokens) >= limit:
            raise ModelUnavailableError(
                model.name, f"one of its prompts has {tokens} tokens, which leaves no space for a text among {limit}"
            )


def _check_shape(model: Model, vectors: Matrix) -> None:
    if vectors.shape != (1, model.dim):
        raise ModelUnavailableError(
            model.name, f"its vectors have {vectors.shape[-1]} dimensions, but its description states {model.dim}"
        )


def _is_unit(vectors: Matrix) -> bool:
    norms = np.linalg.norm(vectors, axis=1)
    nonzero = norms[norms > 0.0]  # some models return zeros for a text in a script that they do not know
    return bool(nonzero.size and (np.abs(nonzero - 1.0) <= UNIT_TOLERANCE).all())
