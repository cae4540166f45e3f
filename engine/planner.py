"""Plans micro-batches: token lengths in, the cheapest split into model runs out. No clock, no queue, no model.

A model run reads all weights once, then computes every *padded* token. With lengths in tokens, its modelled cost is

    cost(batch) = RUN_COST_TOKENS + texts * longest

With the texts sorted by length, some cheapest split always cuts that order into contiguous parts: swapping texts
between two batches so that the longer ones are together never makes either batch longer. So a dynamic programme over
the sorted lengths finds it.
"""

from collections import Counter
from collections.abc import Sequence
from operator import add
from typing import Literal

RUN_COST_TOKENS = 12
"""Fixed cost of one model run, in tokens. 11 are spent in ONNX Runtime, which reads all weights (measured by
`benchmarks/calibrate.py`); about 1 is spent on handing the batch to a lane and the vectors back."""

MAX_PLANNED_TEXTS = 64
"""Texts that are considered for one micro-batch, and so the most that it contains. The cheapest batches usually have
fewer than 10 texts, and planning 64 takes well under a millisecond of the event loop."""

MAX_SMALL_TOKENS = 64
"""A request is small up to this modelled cost, in tokens; the express lane's micro-batches have at most this many
padded tokens. A search query of 10 words costs about 25. The express lane shares the cores with the other lanes, and
64 tokens need one only for a moment."""
Batching = Literal["mixed", "equal", "single"]
"""Which texts may share a run of a model: texts of any length, texts of equal length, or none."""


def cost(texts: int, longest: int) -> int:
    """Return the modelled cost, in tokens, of a run of this many texts that are padded to the longest one's tokens."""
    return RUN_COST_TOKENS + texts * longest


def separate_cost(texts: int, tokens: int) -> int:
    """Return the modelled cost, in tokens, of this many texts with *tokens* in all if each has a run of its own."""
    return RUN_COST_TOKENS * texts + tokens


def plan_micro_batches(lengths: Sequence[int], batching: Batching, *, budget_tokens: int) -> list[list[int]]:
    """Split texts into micro-batches that a model with this *batching* may run.

    Args:
        lengths: tokens per text as the model sees them, in any order.
        batching: which texts may share a micro-batch.
        budget_tokens: maximum padded tokens of a micro-batch; a longer text runs alone.

    Returns:
        The micro-batches, each as the indexes of its texts, longest texts first. Each text is in exactly one.
    """
    longest_first = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    ordered = [lengths[index] for index in longest_first]
    match batching:
        case "single":
            parts = [range(position, position + 1) for position in range(len(ordered))]
        case "equal":
            parts = _split_by_length(ordered, budget_tokens)
        case "mixed":
            parts = cheapest_split(ordered, budget_tokens=budget_tokens, max_texts=MAX_PLANNED_TEXTS)
    return [[longest_first[position] for position in part] for part in parts]


def cheapest_split(lengths: Sequence[int], *, budget_tokens: int, max_texts: int | None = None) -> list[range]:
    """Split texts of any length into micro-batches of minimum total cost.

    Args:
        lengths: tokens per text as the model sees them, in descending order.
        budget_tokens: maximum padded tokens of a micro-batch; a longer text runs alone.
        max_texts: maximum texts of a micro-batch; None: no limit.

    Returns:
        The micro-batches as ranges of indexes into *lengths*, longest texts first. Each text is in exactly one.
    """
    count = len(lengths)
    if _fits_one_run(lengths, budget_tokens, max_texts or count):
        return [range(count)]
    best = [0] * (count + 1)  # best[i]: minimum cost of lengths[i:]
    end = [0] * count  # end[i]: where the first batch of lengths[i:] ends
    rest = 0  # tokens of lengths[start:]
    similar = count  # where the texts end that are not so short that runs of their own are cheaper than padding
    for start in range(count - 1, -1, -1):
        longest = lengths[start]
        rest += longest
        while lengths[similar - 1] < longest - RUN_COST_TOKENS:
            similar -= 1
        max_end = min(start + max(1, budget_tokens // max(1, longest)), start + (max_texts or count), similar)
        if max_end == count and (count - start) * longest - rest <= RUN_COST_TOKENS:
            best[start], end[start] = cost(count - start, longest), count  # another run would cost more than padding
            continue
        costs = range(cost(max_end - start, longest), cost(0, longest), -longest)
        totals = list(map(add, costs, best[max_end:start:-1]))
        least = best[start] = min(totals)
        end[start] = max_end - totals.index(least)  # among equal costs, prefer the fuller first batch
    batches = []
    start = 0
    while start < count:
        batches.append(range(start, end[start]))
        start = end[start]
    return batches


def _fits_one_run(lengths: Sequence[int], budget_tokens: int, max_texts: int) -> bool:
    """Return whether one run is allowed, and its padding costs no more than a second run, as in most small ones."""
    if not lengths:
        return False
    count, longest = len(lengths), lengths[0]
    is_allowed = count <= min(max_texts, max(1, budget_tokens // max(1, longest)))
    return is_allowed and count * longest - sum(lengths) <= RUN_COST_TOKENS


def _split_by_length(ordered: Sequence[int], budget_tokens: int) -> list[range]:
    """Split texts in order of length so that a batch contains texts of one length only."""
    parts, start = [], 0
    for length, count in Counter(ordered).items():
        size = min(MAX_PLANNED_TEXTS, max(1, budget_tokens // max(1, length)))
        end = start + count
        parts += [range(first, min(first + size, end)) for first in range(start, end, size)]
        start = end
    return parts
