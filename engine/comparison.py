"""How far two models agree on the same texts: cosines, and the neighbours that each gives to a text. Pure numpy.

Two models need not have the same dimensions to be compared by neighbours: these are found among each model's own
vectors. So the overlap says what a search would notice, and the cosine whether one index could hold both.
"""

import numpy as np
from numpy.typing import NDArray

from engine.jobs import Matrix
from engine.vectors import unit

NEIGHBOURS = 10
COSINE_STEPS = 1_000_000
"""Cosines are compared in steps of a millionth: float32 sums differ by a tenth of that with the order of summing."""
BLOCK_NUMBERS = 4_000_000
"""Cosines held at once: 48 MB with the numbers by which they are ordered, whatever the number of texts."""


def cosines(first: Matrix, second: Matrix) -> NDArray[np.float64]:
    """The cosine between the two vectors of each row.

    Args:
        first: float32, shape ``(texts, dim)``.
        second: of the same shape.
    """
    products = unit(first).astype(np.float64) * unit(second)
    return np.asarray(products.sum(axis=1))


def neighbours(vectors: Matrix, count: int, *, block_numbers: int = BLOCK_NUMBERS) -> NDArray[np.int64]:
    """The *count* nearest other rows of each row, by cosine; of equally near ones those that come first.

    Args:
        vectors: float32, shape ``(texts, dim)``.
        count: less than the number of texts.
        block_numbers: cosines held at once, about.

    Returns:
        Row numbers, shape ``(texts, count)``, each row ascending.
    """
    texts, directions = len(vectors), unit(vectors)
    found = np.empty((texts, count), dtype=np.int64)
    rows_at_once = max(1, block_numbers // max(1, texts))
    for start in range(0, texts, rows_at_once):
        rows = range(start, min(texts, start + rows_at_once))
        ranks = _ranks(directions[rows.start : rows.stop] @ directions.T)
        ranks[np.arange(len(rows)), rows] = np.iinfo(np.int64).min  # a text is no neighbour of itself
        nearest = np.argpartition(ranks, texts - count, axis=1)[:, texts - count :]
        found[rows.start : rows.stop] = np.sort(nearest, axis=1)
    return found


def overlaps(first: Matrix, second: Matrix, *, count: int = NEIGHBOURS) -> NDArray[np.float64]:
    """Per text, the share of its nearest neighbours that both models agree on, from 0 to 1.

    Args:
        first: float32, one row per text, at least two of them.
        second: as many rows, of any dimension.
        count: neighbours looked at; where there are fewer other texts, all of these, and then the share is always 1.
    """
    count = neighbours_of(len(first), count=count)
    pairs = zip(neighbours(first, count), neighbours(second, count), strict=True)
    return np.asarray([len(np.intersect1d(*pair, assume_unique=True)) / count for pair in pairs])


def neighbours_of(texts: int, *, count: int = NEIGHBOURS) -> int:
    """How many neighbours are looked at among so many texts."""
    if texts < 2:  # noqa: PLR2004 - a lone text has no neighbour
        message = "a lone text has no neighbours"
        raise ValueError(message)
    return min(count, texts - 1)


def _ranks(similarities: Matrix) -> NDArray[np.int64]:
    """Whole numbers in the order of the cosines, no two of a row alike: of equals the first one is the largest."""
    columns = similarities.shape[1]
    steps: NDArray[np.int64] = np.rint(similarities * COSINE_STEPS).astype(np.int64)
    steps *= columns
    steps -= np.arange(columns)
    return steps
