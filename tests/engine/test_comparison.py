"""Cosines and neighbours of two models, against a plain implementation."""

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.comparison import cosines, neighbours, neighbours_of, overlaps

Matrix = NDArray[np.float32]


def vectors(seed: int, texts: int = 60, dim: int = 8) -> Matrix:
    return np.random.default_rng(seed).standard_normal((texts, dim)).astype(np.float32)


def cosine(first: Matrix, second: Matrix) -> float:
    return float(np.dot(first, second) / np.linalg.norm(first) / np.linalg.norm(second))


def plain_neighbours(of: Matrix, count: int) -> list[list[int]]:
    """Find neighbours without regard to memory or speed."""
    found = []
    for index, vector in enumerate(of):
        others = [other for other in range(len(of)) if other != index]
        others.sort(key=lambda other: (-round(cosine(vector, of[other]), 6), other))
        found.append(sorted(others[:count]))
    return found


def test_cosines_are_those_of_each_pair() -> None:
    first, second = vectors(1), vectors(2)
    expected = [cosine(*pair) for pair in zip(first, second, strict=True)]
    np.testing.assert_allclose(cosines(first, second), expected, atol=1e-6)


def test_neighbours_are_the_nearest_other_texts() -> None:
    assert neighbours(vectors(1), 10).tolist() == plain_neighbours(vectors(1), 10)


@pytest.mark.parametrize("block_numbers", [1, 61, 1_000, 1_000_000])
def test_neighbours_do_not_depend_on_the_block_size(block_numbers: int) -> None:
    found = neighbours(vectors(3), 7, block_numbers=block_numbers)
    np.testing.assert_array_equal(found, neighbours(vectors(3), 7))


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
def test_neighbours_do_not_depend_on_the_length_of_vectors(scale: float) -> None:
    np.testing.assert_array_equal(neighbours(vectors(4) * np.float32(scale), 5), neighbours(vectors(4), 5))


def test_among_equally_near_texts_the_first_ones_are_neighbours() -> None:
    same = np.tile(vectors(5, texts=1), (8, 1))
    assert neighbours(same, 3).tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], *[[0, 1, 2]] * 5]


def test_overlap_is_the_share_of_common_neighbours() -> None:
    first = vectors(6)
    second = first + np.float32(0.5) * vectors(7)
    pairs = zip(plain_neighbours(first, 10), plain_neighbours(second, 10), strict=True)
    expected = [len(set(ours) & set(theirs)) / 10 for ours, theirs in pairs]
    assert 0.2 < np.mean(expected) < 0.95
    np.testing.assert_allclose(overlaps(first, second), expected)


def test_overlap_of_models_with_different_dimensions() -> None:
    first = vectors(8)
    padded = np.concatenate([first, np.zeros_like(first)], axis=1)
    assert overlaps(first, padded).tolist() == [1.0] * len(first)


def test_unrelated_models_overlap_by_chance() -> None:
    assert overlaps(vectors(9, texts=400), vectors(10, texts=400)).mean() == pytest.approx(10 / 399, abs=0.02)


def test_with_fewer_than_ten_other_texts_all_of_them_are_neighbours() -> None:
    assert [neighbours_of(texts) for texts in (2, 10, 11, 12, 1000)] == [1, 9, 10, 10, 10]
    assert overlaps(vectors(11, texts=2), vectors(12, texts=2)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("texts", [0, 1])
def test_single_text_has_no_neighbours(texts: int) -> None:
    with pytest.raises(ValueError, match="single text"):
        overlaps(vectors(1, texts=texts), vectors(2, texts=texts))
