"""Results of texts as bytes: what was packed is unpacked again, and anything else is no result."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.text_results import HEADER, TextResult, pack, unpack
from engine.vectors import Matrix

numbers = st.integers(0, 2**32 - 1)
windows = st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=4)


def vectors_of(rows: int, dim: int) -> Matrix:
    return np.random.default_rng(rows * dim).standard_normal((rows, dim)).astype(np.float32)


def result_of(vectors: Matrix, *, has_windows: bool = False) -> TextResult:
    return TextResult(vectors, 7, 6, is_truncated=True, windows=[(0, 3, 5)] * len(vectors) if has_windows else ())


@given(
    dim=st.integers(1, 40),
    tokens=numbers,
    used=numbers,
    flags=st.tuples(*2 * [st.booleans()]),
    places=st.none() | windows,
)
def test_unpacked_result_equals_the_packed_one_to_the_last_bit(
    *, dim: int, tokens: int, used: int, flags: tuple[bool, bool], places: list[tuple[int, int, int]] | None
) -> None:
    vectors = vectors_of(len(places or [0]), dim)
    packed = pack(TextResult(vectors, tokens, used, is_truncated=flags[0], is_blank=flags[1], windows=places or ()))
    result = unpack(packed, dim, has_windows=places is not None)
    assert result is not None
    assert result.vectors.tobytes() == vectors.tobytes()
    assert (result.tokens, result.used_tokens) == (tokens, used)
    assert (result.is_truncated, result.is_blank) == flags
    assert list(result.windows) == (places or [])


def test_nobody_can_write_into_a_kept_vector() -> None:
    result = unpack(pack(result_of(vectors_of(1, 4))), 4, has_windows=False)
    assert result is not None
    with pytest.raises(ValueError, match="read-only"):
        result.vectors[0, 0] = 1.0


@given(st.binary(max_size=120))
def test_foreign_bytes_are_no_result(packed: bytes) -> None:
    assert unpack(packed, 4, has_windows=False) is None
    assert unpack(packed, 4, has_windows=True) is None


@pytest.mark.parametrize("has_windows", [False, True])
def test_result_of_which_bytes_are_missing_or_too_many_is_none(*, has_windows: bool) -> None:
    packed = pack(result_of(vectors_of(2 if has_windows else 1, 4), has_windows=has_windows))
    for end in range(len(packed)):
        assert unpack(packed[:end], 4, has_windows=has_windows) is None
    assert unpack(packed + b"\0", 4, has_windows=has_windows) is None


@pytest.mark.parametrize("place", range(7), ids=["magic", "magic-2", "version", "type", "flags", "rows", "dim"])
def test_result_with_another_header_is_none(place: int) -> None:
    packed = bytearray(pack(result_of(vectors_of(1, 4))))
    packed[[0, 1, 2, 3, 4, 8, 12][place]] ^= 8
    assert unpack(bytes(packed), 4, has_windows=False) is None


def test_results_with_and_without_windows_do_not_replace_each_other() -> None:
    assert unpack(pack(result_of(vectors_of(1, 4), has_windows=True)), 4, has_windows=False) is None
    assert unpack(pack(result_of(vectors_of(1, 4))), 4, has_windows=True) is None
    assert unpack(pack(result_of(vectors_of(2, 4))), 4, has_windows=False) is None
    assert unpack(pack(result_of(np.empty((0, 4), np.float32))), 4, has_windows=False) is None


def test_result_of_a_model_with_another_dimension_is_none() -> None:
    assert unpack(pack(result_of(vectors_of(1, 4))), 2, has_windows=False) is None
    assert unpack(pack(result_of(vectors_of(1, 4))), 8, has_windows=False) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0])
@pytest.mark.parametrize("rows", [1, 3])
def test_result_with_an_unusable_vector_is_none(bad: float, rows: int) -> None:
    vectors = vectors_of(rows, 4)
    vectors[-1] = bad
    assert unpack(pack(result_of(vectors, has_windows=rows > 1)), 4, has_windows=rows > 1) is None


@pytest.mark.parametrize("scale", [1e-30, 1e30], ids=["tiny", "huge"])
def test_vector_whose_squares_do_not_fit_into_float32_is_usable(scale: float) -> None:
    assert unpack(pack(result_of(vectors_of(1, 4) * np.float32(scale))), 4, has_windows=False) is not None


def test_vectors_are_aligned() -> None:
    assert HEADER.size % np.dtype(np.float32).itemsize == 0
