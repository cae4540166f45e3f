"""The least modelled cost of a request: a measure of its work that does not depend on the implementation."""

# Not imported from engine/planner.py: a revision that changes its planner is measured by the same numbers.
RUN_COST = 8
"""Fixed cost of a model run, in tokens."""
MAX_PADDED_TOKENS = 1024
"""Largest run of more than one text, in tokens."""


def least_cost(lengths: list[int]) -> int:
    """Return the cost in tokens of the cheapest cut of texts of *lengths* (tokens) into runs.

    A run costs `RUN_COST + texts x longest`. The best cut of sorted lengths is found by dynamic programming.
    """
    ordered = sorted(lengths)
    best = [0]
    for end, longest in enumerate(ordered, 1):
        begins = (begin for begin in range(end) if begin == end - 1 or (end - begin) * longest <= MAX_PADDED_TOKENS)
        best.append(min(best[begin] + RUN_COST + (end - begin) * longest for begin in begins))
    return best[-1]
