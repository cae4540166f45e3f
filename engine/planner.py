"""Token lengths in, micro-batches of least modelled cost out. Pure: no clock, no queue, no model.

One run of a model reads all its weights once and then works on every *padded* token, so with lengths in tokens

    cost(batch) = CALL_COST_TOKENS + texts * longest

and the best cut of many texts into runs is found by a dynamic programme over the lengths in descending order: a batch
is always a stretch of that order, because swapping two texts between batches never makes either shorter.
"""

from collections.abc import Sequence

CALL_COST_TOKENS = 12
"""What one run costs besides its padded tokens, in tokens: 11 in ONNX Runtime, which reads all weights (measured by
`benchmarks/calibrate.py`), and about one for the way into the lane and back."""


def cost(texts: int, longest: int) -> int:
    """Modelled cost of one run, in tokens."""
    return CALL_COST_TOKENS + texts * longest


def plan(lengths: Sequence[int], *, budget_tokens: int, most_texts: int | None = None) -> list[range]:
    """Cut *lengths* into runs of least total cost.

    Args:
        lengths: tokens per text as the model will see them, in descending order.
        budget_tokens: padded tokens of one run at most; a text longer than that runs alone.
        most_texts: texts of one run at most; None: any number.

    Returns:
        The runs as stretches of *lengths*, longest texts first. Together they cover each text once.
    """
    count = len(lengths)
    best = [0] * (count + 1)  # best[i]: least cost of lengths[i:]
    end = [0] * count  # end[i]: where the first run of lengths[i:] ends
    for start in range(count - 1, -1, -1):
        best[start], end[start] = _best_first_run(lengths, start, best, budget_tokens, most_texts or count)
    runs = []
    start = 0
    while start < count:
        runs.append(range(start, end[start]))
        start = end[start]
    return runs


def _best_first_run(
    lengths: Sequence[int], start: int, best: Sequence[int], budget_tokens: int, most_texts: int
) -> tuple[int, int]:
    """Least cost of ``lengths[start:]`` and the end of its first run, given *best* for every later start."""
    longest = lengths[start]
    widest = min(len(lengths), start + min(most_texts, max(1, budget_tokens // max(1, longest))))
    # Padding a text by more than a whole call costs never pays, nor does it for the shorter ones behind it.
    shortest = longest - CALL_COST_TOKENS
    chosen, least = start + 1, cost(1, longest) + best[start + 1]
    for end in range(start + 2, widest + 1):
        if lengths[end - 1] < shortest:
            break
        total = cost(end - start, longest) + best[end]
        if total <= least:  # of equals the fuller first run
            chosen, least = end, total
    return least, chosen
