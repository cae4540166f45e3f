"""Markdown tables and percentiles."""


def markdown(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows)


def percentile(values: list[float], share: float) -> float:
    """Return the value at *share* (0 to 1) of the sorted *values*, interpolated linearly between its two neighbours."""
    ordered = sorted(values)
    if len(ordered) == 1:
        return ordered[0]
    place = share * (len(ordered) - 1)
    low = min(int(place), len(ordered) - 2)
    below, above = ordered[low : low + 2]
    return below + (above - below) * (place - low)
