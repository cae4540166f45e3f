"""Seeded, distinct, realistic English texts, and the streams of requests the rows of the benchmark send."""

import bisect
import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from benchmarks.words import OPENINGS, TEMPLATES, WORDS

Kind = Literal["short", "mixed"]

SHORT_WORDS = (4, 9)
MIXED_WORDS = (4, 300)
MIXED_MEDIAN_WORDS = 45
MIXED_SIGMA = 0.8
STRATA = 32
NUMBERS = ("{0:.0f}", "{0:.0f}", "{0:,.0f}", "{0:,.2f}", "{0:.0f}%", "${0:,.2f}")

Pool = tuple[tuple[str, ...], list[float]]


@dataclass(frozen=True, slots=True)
class Stream:
    """Some clients that send the same kind of request, each the next one when the last is answered."""

    kind: Kind
    texts_per_request: int
    clients: int

    def requests(self, seed: str) -> Iterator[list[str]]:
        """Give requests for ever; the same *seed* gives the same ones, and no text comes twice."""
        texts = distinct_texts(self.kind, seed)
        while True:
            yield list(itertools.islice(texts, self.texts_per_request))


def distinct_texts(kind: Kind, seed: str) -> Iterator[str]:
    rng = random.Random(f"{kind}/{seed}")
    lengths = short_lengths(rng) if kind == "short" else mixed_lengths(rng)
    writer = Writer(rng)
    seen: set[str] = set()
    for words in lengths:
        text = writer.text(words, is_prose=kind == "mixed")
        while text in seen:
            text = writer.text(words, is_prose=kind == "mixed")
        seen.add(text)
        yield text


def short_lengths(rng: random.Random) -> Iterator[int]:
    while True:
        yield rng.randint(*SHORT_WORDS)


def mixed_lengths(rng: random.Random) -> Iterator[int]:
    """Give log-normal lengths in words.

    Every 32 of them cover the distribution evenly, in random order: a few seconds then measure the mean and not luck.
    """
    normal = NormalDist(math.log(MIXED_MEDIAN_WORDS), MIXED_SIGMA)
    low, high = MIXED_WORDS
    while True:
        for stratum in rng.sample(range(STRATA), STRATA):
            share = min(max((stratum + rng.random()) / STRATA, 1e-9), 1 - 1e-9)
            yield min(max(round(math.exp(normal.inv_cdf(share))), low), high)


class Writer:
    """Fills sentence templates with common words, the frequent ones more often, as English does."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._pools = {name: zipf_pool(words) for name, words in WORDS.items()}

    def text(self, words: int, *, is_prose: bool) -> str:
        """Write exactly *words* words: sentences when *is_prose*, else one line as people type it in a search box."""
        written: list[str] = []
        while len(written) < words:
            written += self._sentence(with_opening=is_prose and self._rng.random() < 0.3)
        text = " ".join(written[:words])
        return text.rstrip(".,;") + "." if is_prose else text.rstrip(".,;").lower()

    def _sentence(self, *, with_opening: bool) -> list[str]:
        template = self._rng.choice(TEMPLATES)
        words = [self._word(slot) for slot in template]
        words[-1] += "."
        words[0] = words[0][:1].upper() + words[0][1:]
        if not with_opening:
            return words
        words[0] = words[0] if template[0] in {"name", "place"} else words[0].lower()
        return [*self._rng.choice(OPENINGS).split(), *words]

    def _word(self, slot: str) -> str:
        """Choose a word for *slot*; what is no name of a list is the word itself, a comma after either is kept."""
        name = slot.rstrip(",")
        comma = slot[len(name) :]
        if name == "number":
            return self._rng.choice(NUMBERS).format(10 ** self._rng.uniform(0.3, 4)) + comma
        if name not in self._pools:
            return slot
        words, cumulated = self._pools[name]
        return words[bisect.bisect_left(cumulated, self._rng.random() * cumulated[-1])] + comma


def zipf_pool(words: tuple[str, ...]) -> Pool:
    """Pair *words*, most frequent first, with their cumulated weights."""
    return words, list(itertools.accumulate(1 / (rank + 20) for rank in range(len(words))))
