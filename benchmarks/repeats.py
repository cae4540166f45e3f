"""Streams in which texts repeat, as in real traffic: seeded, so that every run gets the same ones.

A stream of N texts is drawn from K texts: the one of rank k has the probability `p(k) = k**-s / (1 + 2**-s + ... +
K**-s)`, whatever came before (Zipf's law with exponent s). A text is missing from all draws with the probability
`(1 - p(k))**N`, so a stream has `D = sum over k of 1 - (1 - p(k))**N` distinct texts on average, and its share of
repeats is `1 - D / N`. K is the number of texts with which that is closest to the wanted share. Of the streams that are
drawn so, the first one that has exactly the wanted number of repeats is taken.

Queries of search engines follow Zipf's law: Xie and O'Hallaron, "Locality in Search Engine Queries and Its Implications
for Caching", IEEE INFOCOM 2002, doi:10.1109/INFCOM.2002.1019374.
"""

import itertools
import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.texts import Kind, distinct_texts

QUERY_EXPONENT = 0.83


def expected_repeats(draws: int, texts: int, exponent: float) -> float:
    """Return the mean share of repeats in *draws* texts drawn from *texts*: 1 - D / N."""
    distinct = np.sum(-np.expm1(draws * np.log1p(-np.minimum(_probabilities(texts, exponent), 1 - 1e-12))))
    return float(1 - distinct / draws)


def texts_to_draw_from(draws: int, repeats: float, exponent: float) -> int:
    """Return K: the number of texts of which *draws* draws have a share of *repeats*, as closely as possible."""
    low, high = 1, 2
    while expected_repeats(draws, high, exponent) > repeats:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if expected_repeats(draws, middle, exponent) > repeats else (low, middle)
    return min(low, high, key=lambda texts: abs(expected_repeats(draws, texts, exponent) - repeats))


def cumulative_weights(draws: int, repeats: float, exponent: float = QUERY_EXPONENT) -> list[float]:
    """Return, per text to draw from, the probability of this text or one of a lower rank: for `Random.choices`."""
    weights: list[float] = np.cumsum(_probabilities(texts_to_draw_from(draws, repeats, exponent), exponent)).tolist()
    return weights


def stream_with_repeats(
    kind: Kind, seed: str, draws: int, *, repeats: float, exponent: float = QUERY_EXPONENT
) -> list[str]:
    """Return *draws* texts, of which a share of *repeats* came before: the same for the same *seed*."""
    wanted = draws - round(draws * repeats)
    weights = cumulative_weights(draws, repeats, exponent)
    rng = random.Random(f"repeats/{seed}")
    while len(set(ranks := rng.choices(range(len(weights)), cum_weights=weights, k=draws))) != wanted:
        pass
    texts = distinct_texts(kind, seed)
    text_of: dict[int, str] = {}
    for rank in ranks:
        if rank not in text_of:
            text_of[rank] = next(texts)
    return [text_of[rank] for rank in ranks]


def with_changes(documents: Sequence[str], kind: Kind, seed: str, *, changed: float) -> list[str]:
    """Return *documents* with a share of *changed* replaced by new ones, as an index finds them the next time."""
    places = random.Random(f"changes/{seed}").sample(range(len(documents)), round(len(documents) * changed))
    known = set(documents)
    new = (text for text in distinct_texts(kind, f"changes/{seed}") if text not in known)
    found = list(documents)
    for place, text in zip(places, itertools.islice(new, len(places)), strict=True):
        found[place] = text
    return found


def _probabilities(texts: int, exponent: float) -> NDArray[np.float64]:
    weights: NDArray[np.float64] = np.arange(1, texts + 1, dtype=np.float64) ** -exponent
    probabilities: NDArray[np.float64] = weights / weights.sum()
    return probabilities
