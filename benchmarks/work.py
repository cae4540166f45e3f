"""How much work a request is, whoever does it: the least modelled cost of its texts, in tokens."""

CALL_COST = 8
MAX_PADDED_TOKENS = 1024


def least_cost(lengths: list[int]) -> int:
    """Cut texts of *lengths* (tokens) into runs of ``CALL_COST + texts x longest`` and add up the cheapest cut."""
    ordered = sorted(lengths)
    best = [0]
    for end, longest in enumerate(ordered, 1):
        begins = (begin for begin in range(end) if begin == end - 1 or (end - begin) * longest <= MAX_PADDED_TOKENS)
        best.append(min(best[begin] + CALL_COST + (end - begin) * longest for begin in begins))
    return best[-1]


def percentile(values: list[float], share: float) -> float:
    """Interpolate between the two values nearest to *share* (0 to 1) of the way through the sorted *values*."""
    ordered = sorted(values)
    if len(ordered) == 1:
        return ordered[0]
    place = share * (len(ordered) - 1)
    low = min(int(place), len(ordered) - 2)
    below, above = ordered[low : low + 2]
    return below + (above - below) * (place - low)
