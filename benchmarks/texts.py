"""Seeded, distinct, realistic English texts, and the streams of requests made of them."""

import itertools
import math
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Literal

Kind = Literal["short", "mixed", "cut", "full"]
"""*cut*: mixed texts, none above the model's limit. *full*: each exactly at the limit."""

SHORT_WORDS = (4, 9)
MIXED_WORDS = (4, 300)
MIXED_MEDIAN_WORDS = 45
MIXED_SIGMA = 0.8
FULL_WORDS = 300
"""Enough for the 256 tokens of the bundled model; the rest is cut."""
STRATA = 32
NUMBERS = ("{0:.0f}", "{0:.0f}", "{0:,.0f}", "{0:,.2f}", "{0:.0f}%", "${0:,.2f}")

# Words by part of speech, the most frequent first; openings of sentences; and templates, whose slots name such parts.
SECTIONS: dict[str, str] = dict(
    re.findall(r"^\[(\w+)\]\n([^\[]+)", Path(__file__).with_name("words.txt").read_text("utf-8"), re.MULTILINE)
)
OPENINGS, TEMPLATES = (
    [line.split() for line in SECTIONS.pop(name).splitlines() if line] for name in ("opening", "template")
)


@dataclass(frozen=True, slots=True)
class Stream:
    """A number of clients that send the same kind of request, each the next one when the last is answered."""

    kind: Kind
    texts_per_request: int
    clients: int

    def requests(self, seed: str) -> Iterator[list[str]]:
        """Yield the texts of requests without end: the same for the same *seed*, and no text twice."""
        texts = distinct_texts(self.kind, seed)
        while True:
            yield list(itertools.islice(texts, self.texts_per_request))


def distinct_texts(kind: Kind, seed: str) -> Iterator[str]:
    """Yield texts without end: the same for the same *seed*, and none twice."""
    finish = _finish(kind)
    rng = random.Random(f"{kind}/{seed}")
    lengths = _lengths(kind, rng)
    writer = Writer(rng)
    seen: set[str] = set()
    for words in lengths:
        text = finish(writer.text(words, is_prose=kind != "short"))
        while text in seen:
            text = finish(writer.text(words, is_prose=kind != "short"))
        seen.add(text)
        yield text


def _finish(kind: Kind) -> Callable[[str], str]:
    if kind not in {"cut", "full"}:
        return str
    from benchmarks.tokens import bundled_tokens  # noqa: PLC0415 - only these texts need a tokenizer

    return bundled_tokens().cut if kind == "cut" else bundled_tokens().fill


def _lengths(kind: Kind, rng: random.Random) -> Iterator[int]:
    """Return lengths in words without end."""
    if kind == "full":
        return itertools.repeat(FULL_WORDS)
    return _short_lengths(rng) if kind == "short" else _mixed_lengths(rng)


def _short_lengths(rng: random.Random) -> Iterator[int]:
    while True:
        yield rng.randint(*SHORT_WORDS)


def _mixed_lengths(rng: random.Random) -> Iterator[int]:
    """Yield log-normal lengths in words.

    Every 32 of them cover the distribution evenly, in random order, so that the mean of a few seconds is not left to
    chance.
    """
    normal = NormalDist(math.log(MIXED_MEDIAN_WORDS), MIXED_SIGMA)
    low, high = MIXED_WORDS
    while True:
        for stratum in rng.sample(range(STRATA), STRATA):
            share = min(max((stratum + rng.random()) / STRATA, 1e-9), 1 - 1e-9)
            yield min(max(round(math.exp(normal.inv_cdf(share))), low), high)


class Writer:
    """Fills sentence templates with common words. As in English, their frequency follows Zipf's law."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._words = {name: words.split() for name, words in SECTIONS.items()}
        self._weights = {  # cumulated
            name: list(itertools.accumulate(1 / (rank + 20) for rank in range(len(words))))
            for name, words in self._words.items()
        }

    def text(self, words: int, *, is_prose: bool) -> str:
        """Return exactly *words* words: sentences when *is_prose*, else a line like those typed into a search box."""
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
        return [*self._rng.choice(OPENINGS), *words]

    def _word(self, slot: str) -> str:
        """Return a random word for a part of speech, or *slot* itself; a comma at its end is kept."""
        name = slot.rstrip(",")
        comma = slot[len(name) :]
        if name == "number":
            return self._rng.choice(NUMBERS).format(10 ** self._rng.uniform(0.3, 4)) + comma
        if name not in self._words:
            return slot
        return self._rng.choices(self._words[name], cum_weights=self._weights[name])[0] + comma
