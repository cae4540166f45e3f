"""A model proves itself when it loads: finite vectors, those it is known for, and the same whatever shares their run.

A text must get the same vector whatever else is in its run. Models that were quantised dynamically to int8 break that:
the scale of their activations is taken over the whole run. Such a model is told apart here, by running the same texts
alone and together, and is then run in a way that keeps its vectors the same, at a cost that is measured, too.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import structlog
from numpy.typing import NDArray

from engine.catalog import Model
from engine.errors import ModelUnavailableError
from engine.jobs import Batching, Matrix
from engine.planner import cost
from engine.tokenizer import TextTokenizer, TokenizedText
from engine.vectors import unit

PROBES = (
    "How do I reset my password?",
    "One, two, three, four, five: a quick fox rests in the warm sun for 42 minutes.",
    "Zwölf Äpfel, 3,50 €. 今日。",
)
"""Texts of unlike lengths, words, digits, signs and scripts, so that their activations differ."""
MAX_DRIFT = 1e-5
"""How far a number of a vector may be from that of the same text run alone, with vectors at length 1."""
MIN_COSINE = 0.999
"""What a reference vector must have in common with the model's own; float16 weights cost 1e-6 of it."""
UNIT_TOLERANCE = 1e-3
"""How far a length may be from 1 and count as 1; float16 outputs are off by as much as 5e-4."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """What a model has proven.

    Attributes:
        batch_drift: the largest difference of a number between vectors of the same text run alone and together with
            others, both at length 1; None: texts cannot be run together, as where the graph takes one at a time.
        batching: which texts may share a run: of any (`mixed`) or of `equal` length, or none (`single`).
        batching_cost: seconds that the probes take when they are run as *batching* says, over those of one run; 1
            where that is one run.
        canary_cosine: the least cosine to the model's reference vectors; None: it has none.
        is_unit: whether FastEmbed gives its vectors at length 1.
        seconds_per_token: the model's pace, in seconds of one lane per token of modelled cost.
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


def check_model(model: Model, tokenizer: TextTokenizer, encode: Encode) -> SelfCheck:
    """Let a model prove itself. Blocks for a handful of runs, which are its warm-up, too.

    Raises:
        ModelUnavailableError: it gives NaN, infinity or other dimensions than stated, its vectors are not those of
            its references, or a prompt of its leaves no room for a text.
    """
    _check_prompts(model, tokenizer)
    first, *others = items = tokenizer.cut(PROBES)
    vector = encode([first])  # the first run is slow, so it is not timed
    _check_shape(model, vector)
    started = time.perf_counter()
    alone = np.concatenate([vector, _one_by_one(encode, others)])
    pace = (time.perf_counter() - started) / sum(cost(1, item.length) for item in others)
    if not np.isfinite(alone).all():
        raise ModelUnavailableError(model.name, "its vectors hold NaN or infinity")
    cosine = _canary(model, tokenizer, encode, dict(zip(PROBES, alone, strict=True)))
    started = time.perf_counter()
    drift = _drift_together(encode, items, alone)
    together_s = time.perf_counter() - started
    is_invariant = drift is not None and drift <= MAX_DRIFT
    single_s = pace * sum(cost(1, item.length) for item in items)
    check = SelfCheck(
        batch_drift=drift,
        batching="mixed" if is_invariant else _batching(encode, items),
        batching_cost=1.0 if is_invariant or drift is None else round(single_s / together_s, 2),
        canary_cosine=cosine,
        is_unit=_is_unit(alone),
        seconds_per_token=pace,
    )
    if not check.is_batch_invariant:
        log.warning(
            "model_not_batch_invariant",
            model=model.name,
            drift=drift,
            batching=check.batching,
            cost=check.batching_cost,
        )
    return check


def drift_of(vectors: Matrix, wanted: Matrix) -> float:
    """The largest difference of a number, with all vectors at length 1; infinite where the shapes differ."""
    if vectors.shape != wanted.shape:
        return float("inf")
    return float(np.abs(unit(vectors) - unit(wanted)).max())


def _one_by_one(encode: Encode, items: Sequence[TokenizedText]) -> Matrix:
    return np.concatenate([encode([item]) for item in items])


def _batching(encode: Encode, items: Sequence[TokenizedText]) -> Batching:
    """Whether texts of equal length may share a run: then padding was what made the vectors drift."""
    shortest = min(item.length for item in items)
    equal = [TokenizedText(shortest, item.ids[:shortest]) for item in items]
    drift = _drift_together(encode, equal, _one_by_one(encode, equal))
    return "equal" if drift is not None and drift <= MAX_DRIFT else "single"


def _drift_together(encode: Encode, items: Sequence[TokenizedText], alone: Matrix) -> float | None:
    """How far the vectors of *items* in one run are from those *alone*; None where they cannot share one."""
    try:
        drift = drift_of(encode(items), alone)
    except Exception:  # noqa: BLE001 - alone they have all been run, so it is the company that the graph does not take
        return None
    return drift if np.isfinite(drift) else None


def _canary(
    model: Model, tokenizer: TextTokenizer, encode: Encode, known: Mapping[str, NDArray[np.float32]]
) -> float | None:
    """The least cosine to the model's reference vectors; *known* are vectors of texts that have been run alone."""
    references = model.folder.manifest.canary if model.folder else []
    if not references:
        return None
    new = [reference.text for reference in references if reference.text not in known]
    if new:
        known = {**known, **dict(zip(new, _one_by_one(encode, tokenizer.cut(new)), strict=True))}
    vectors = np.stack([known[reference.text] for reference in references])
    wanted = np.asarray([reference.vector for reference in references], dtype=np.float32)
    cosine = float((unit(vectors) * unit(wanted)).sum(axis=1).min())
    if not cosine >= MIN_COSINE:
        raise ModelUnavailableError(
            model.name,
            f"its vectors are not those of its canary (cosine {cosine:.4f}, where {MIN_COSINE} is due), "
            "so a file of it is wrong",
        )
    return cosine


def _check_prompts(model: Model, tokenizer: TextTokenizer) -> None:
    most = tokenizer.max_tokens
    for prompt in (model.card.prompts.query, model.card.prompts.document):
        if prompt and most is not None and (tokens := tokenizer.cut([prompt])[0].tokens) >= most:
            raise ModelUnavailableError(
                model.name, f"a prompt of its has {tokens} tokens, which leaves no room for a text among {most}"
            )


def _check_shape(model: Model, vectors: Matrix) -> None:
    if vectors.shape != (1, model.dim):
        raise ModelUnavailableError(
            model.name, f"its vectors have {vectors.shape[-1]} dimensions where {model.dim} are stated"
        )


def _is_unit(vectors: Matrix) -> bool:
    norms = np.linalg.norm(vectors, axis=1)
    known = norms[norms > 0.0]  # some models give zeros for a text in a script that they do not know
    return bool(known.size and (np.abs(known - 1.0) <= UNIT_TOLERANCE).all())
