"""Compares two models on the same texts: by cosine, and by nearest neighbours (overlap@k). Pure numpy.

The cosine shows whether one index could contain vectors of both models. The overlap shows what a search would notice.
Neighbours are found among each model's own vectors, so the two models may have different dimensions.
"""

import numpy as np
from numpy.typing import NDArray

from engine.vectors import Matrix, normalize

NEIGHBOURS = 10
COSINE_STEPS = 1_000_000
"""Steps per unit in which cosines are compared. Summation order changes float32 cosines by a tenth of a step."""
BLOCK_NUMBERS = 4_000_000
"""Cosines in memory at once: 48 MB together with their integer ranks, whatever the number of texts."""


def cosines(first: Matrix, second: Matrix) -> NDArray[np.float64]:
    """Return the cosine between the two vectors of each row.

    Args:
        first: float32, shape ``(texts, dim)``.
        second: float32, the same shape.

    Returns:
        Float64, shape ``(texts,)``.
    """
    products = normalize(first).astype(np.float64) * normalize(second)
    return np.asarray(products.sum(axis=1))


def neighbours(vectors: Matrix, count: int, *, block_numbers: int = BLOCK_NUMBERS) -> NDArray[np.int64]:
    """Find the *count* nearest other rows of each row, by cosine; among equally near rows the first ones.

    Args:
        vectors: float32, shape ``(texts, dim)``.
        count: less than the number of texts.
        block_numbers: approximate number of cosines in memory at once.

    Returns:
        Row numbers, shape ``(texts, count)``, each row ascending.
    """
    texts, directions = len(vectors), normalize(vectors)
    found = np.empty((texts, count), dtype=np.int64)
    rows_at_once = max(1, block_numbers // max(1, texts))
    for start in range(0, texts, rows_at_once):
        rows = range(start, min(texts, start + rows_at_once))
        ranks = _ranks(directions[rows.start : rows.stop] @ directions.T)
        ranks[np.arange(len(rows)), rows] = np.iinfo(np.int64).min  # a text is not its own neighbour
        nearest = np.argpartition(ranks, texts - count, axis=1)[:, texts - count :]
        found[rows.start : rows.stop] = np.sort(nearest, axis=1)
    return found


def overlaps(first: Matrix, second: Matrix, *, count: int = NEIGHBOURS) -> NDArray[np.float64]:
    """Return per text the share of its nearest neighbours that both models have in common, from 0 to 1.

    Args:
        first: float32, one row per text, at least two rows.
        second: the same number of rows, of any dimension.
        count: neighbours per text. With fewer other texts, all of them count, and the share is always 1.
    """
    count = neighbours_of(len(first), count=count)
    pairs = zip(neighbours(first, count), neighbours(second, count), strict=True)
    return np.asarray([len(np.intersect1d(*pair, assume_unique=True)) / count for pair in pairs])


def neighbours_of(texts: int, *, count: int = NEIGHBOURS) -> int:
    """Return how many neighbours can be compared among *texts* texts.

    Raises:
        ValueError: there are fewer than two texts.
    """
    if texts < 2:  # noqa: PLR2004 - a single text has no neighbours
        message = "a single text has no neighbours"
        raise ValueError(message)
    return min(count, texts - 1)


def _ranks(similarities: Matrix) -> NDArray[np.int64]:
    """Return integers ordered like the cosines. All in a row differ: among equal cosines the first ranks highest."""
    columns = similarities.shape[1]
    steps: NDArray[np.int64] = np.rint(similarities * COSINE_STEPS).astype(np.int64)
    steps *= columns
    steps -= np.arange(columns)
    return steps
