"""Streams in which texts come again: the stated share of repeats, by the stated law, the same for everybody."""

import random
from collections import Counter
from itertools import islice
from statistics import mean

import pytest

from benchmarks.repeats import expected_repeats, stream_with_repeats, texts_to_draw_from, with_changes
from benchmarks.texts import Kind, distinct_texts


@pytest.mark.parametrize(
    ("draws", "texts", "exponent", "expected"),
    [
        pytest.param(10, 1, 0.83, 0.9, id="one-text-comes-again-each-time"),
        pytest.param(3, 2, 0.0, 1 - (2 * (1 - 0.5**3)) / 3, id="without-an-exponent-all-texts-are-alike"),
        pytest.param(2, 2, 1.0, ((2 / 3) ** 2 + (1 / 3) ** 2) / 2, id="two-draws-repeat-if-they-are-equal"),
        pytest.param(1, 1000, 0.83, 0.0, id="one-draw-repeats-nothing"),
    ],
)
def test_expected_share_of_repeats(draws: int, texts: int, exponent: float, expected: float) -> None:
    assert expected_repeats(draws, texts, exponent) == pytest.approx(expected)


def test_expected_share_is_the_mean_of_drawn_streams() -> None:
    rng = random.Random(1)  # noqa: S311 - not for secrets
    weights = [rank**-0.83 for rank in range(1, 101)]
    shares = [1 - len(set(rng.choices(range(100), weights, k=200))) / 200 for _ in range(500)]
    assert mean(shares) == pytest.approx(expected_repeats(200, 100, 0.83), abs=0.005)


@pytest.mark.parametrize("repeats", [0.1, 0.5, 0.95])
def test_number_of_texts_is_the_one_that_comes_closest(repeats: float) -> None:
    texts = texts_to_draw_from(500, repeats, 0.83)
    errors = [abs(expected_repeats(500, count, 0.83) - repeats) for count in (texts - 1, texts, texts + 1)]
    assert min(errors) == errors[1]


@pytest.mark.parametrize(("kind", "draws", "repeats"), [("short", 2000, 0.5), ("mixed", 300, 0.1), ("short", 64, 0.5)])
def test_stream_has_exactly_the_share_of_repeats_and_is_the_same_for_everybody(
    kind: Kind, draws: int, repeats: float
) -> None:
    stream = stream_with_repeats(kind, "a", draws, repeats=repeats)
    assert len(stream) == draws
    assert len(set(stream)) == draws - round(draws * repeats)
    assert stream == stream_with_repeats(kind, "a", draws, repeats=repeats)
    assert not set(stream) & set(stream_with_repeats(kind, "b", draws, repeats=repeats))


def test_texts_of_a_stream_are_as_frequent_as_zipfs_law_says() -> None:
    draws = 4_000
    counts = [count for _, count in Counter(stream_with_repeats("short", "a", draws, repeats=0.5)).most_common()]
    texts = texts_to_draw_from(draws, 0.5, 0.83)
    total = sum(rank**-0.83 for rank in range(1, texts + 1))
    first_ten = draws * sum(rank**-0.83 for rank in range(1, 11)) / total
    assert sum(counts[:10]) == pytest.approx(first_ten, rel=0.2)
    assert counts[0] < sum(counts) / 20, "not only one text comes again"


def test_changed_documents_keep_their_places() -> None:
    documents = list(islice(distinct_texts("mixed", "a"), 320))
    again = with_changes(documents, "mixed", "a", changed=0.05)
    changed = [place for place, (old, new) in enumerate(zip(documents, again, strict=True)) if old != new]
    assert len(changed) == 16
    assert len(set(again)) == 320
    assert not {again[place] for place in changed} & set(documents)
    assert max(changed) - min(changed) > 160, "all over the documents"
    assert again == with_changes(documents, "mixed", "a", changed=0.05)
