"""Results of texts as bytes: what was packed is unpacked again, and anything else is no result."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.text_results import (
    HEADER,
    IS_BLANK,
    IS_TRUNCATED,
    Facts,
    TextResult,
    pack,
    pack_rows,
    read_facts,
    rows_of,
    unpack,
)
from engine.vectors import Matrix

numbers = st.integers(0, 2**32 - 1)
windows = st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=4)
facts = st.tuples(numbers, numbers, st.sampled_from([0, IS_TRUNCATED, IS_BLANK, IS_TRUNCATED | IS_BLANK]))
FACTS: Facts = (7, 6, IS_TRUNCATED)


def vectors_of(rows: int, dim: int) -> Matrix:
    return np.random.default_rng(rows * dim).standard_normal((rows, dim)).astype(np.float32)


def packed_with_windows(vectors: Matrix) -> bytes:
    return pack(TextResult(vectors, FACTS, [(0, 3, 5)] * len(vectors)))


def packed_row(vectors: Matrix) -> bytes:
    return pack_rows(vectors, [FACTS])[0]


def is_result(packed: bytes, dim: int, *, has_windows: bool) -> bool:
    return (unpack(packed, dim) if has_windows else read_facts([packed], dim)[0][0]) is not None


@given(dim=st.integers(1, 40), of_text=facts, places=windows)
def test_unpacked_result_with_windows_equals_the_packed_one_to_the_last_bit(
    dim: int, of_text: Facts, places: list[tuple[int, int, int]]
) -> None:
    vectors = vectors_of(len(places), dim)
    result = unpack(pack(TextResult(vectors, of_text, places)), dim)
    assert result is not None
    assert result.vectors.tobytes() == vectors.tobytes()
    assert result.facts == of_text
    assert list(result.windows) == places


@given(dim=st.integers(1, 40), of_texts=st.lists(facts, min_size=1, max_size=4))
def test_read_rows_equal_the_packed_ones_to_the_last_bit(dim: int, of_texts: list[Facts]) -> None:
    vectors = vectors_of(len(of_texts), dim)
    packed = pack_rows(vectors, of_texts)
    found, rows = read_facts(packed, dim)
    assert found == of_texts
    assert rows is not None
    assert rows.tobytes() == rows_of(packed, dim).tobytes() == vectors.tobytes()
    assert packed == [pack(TextResult(vectors[row : row + 1], some)) for row, some in enumerate(of_texts)]


def test_nobody_can_write_into_a_kept_vector() -> None:
    result = unpack(packed_with_windows(vectors_of(1, 4)), 4)
    assert result is not None
    for vectors in (result.vectors, rows_of([packed_row(vectors_of(1, 4))], 4)):
        with pytest.raises(ValueError, match="read-only"):
            vectors[0, 0] = 1.0


@given(st.binary(max_size=120))
def test_foreign_bytes_are_no_result(packed: bytes) -> None:
    assert not is_result(packed, 4, has_windows=False)
    assert not is_result(packed, 4, has_windows=True)


@pytest.mark.parametrize("has_windows", [False, True])
def test_result_of_which_bytes_are_missing_or_too_many_is_none(*, has_windows: bool) -> None:
    packed = packed_with_windows(vectors_of(2, 4)) if has_windows else packed_row(vectors_of(1, 4))
    assert is_result(packed, 4, has_windows=has_windows)
    for end in range(len(packed)):
        assert not is_result(packed[:end], 4, has_windows=has_windows)
    assert not is_result(packed + b"\0", 4, has_windows=has_windows)


@pytest.mark.parametrize("place", range(7), ids=["magic", "magic-2", "version", "type", "flags", "rows", "dim"])
def test_result_with_another_header_is_none(place: int) -> None:
    packed = bytearray(packed_row(vectors_of(1, 4)))
    packed[[0, 1, 2, 3, 4, 8, 12][place]] ^= 8
    assert not is_result(bytes(packed), 4, has_windows=False)


def test_results_with_and_without_windows_do_not_replace_each_other() -> None:
    assert not is_result(packed_with_windows(vectors_of(1, 4)), 4, has_windows=False)
    assert not is_result(packed_row(vectors_of(1, 4)), 4, has_windows=True)
    assert not is_result(pack(TextResult(vectors_of(2, 4), FACTS)), 4, has_windows=False)
    assert not is_result(pack(TextResult(np.empty((0, 4), np.float32), FACTS)), 4, has_windows=False)


def test_result_of_a_model_with_another_dimension_is_none() -> None:
    assert not is_result(packed_row(vectors_of(1, 4)), 2, has_windows=False)
    assert not is_result(packed_row(vectors_of(1, 4)), 8, has_windows=False)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0])
def test_result_with_an_unusable_vector_is_none(bad: float) -> None:
    vectors = vectors_of(3, 4)
    vectors[1] = bad
    assert not is_result(packed_with_windows(vectors), 4, has_windows=True)
    assert read_facts([b"foreign", *pack_rows(vectors, [FACTS] * 3)], 4) == ([None, FACTS, None, FACTS], None)


@pytest.mark.parametrize("scale", [1e-30, 1e30], ids=["tiny", "huge"])
def test_vector_whose_squares_do_not_fit_into_float32_is_usable(scale: float) -> None:
    assert is_result(packed_row(vectors_of(1, 4) * np.float32(scale)), 4, has_windows=False)


def test_vectors_are_aligned() -> None:
    assert HEADER.size % np.dtype(np.float32).itemsize == 0
