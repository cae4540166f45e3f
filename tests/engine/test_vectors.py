"""Checks, sizes and number types of vectors, compared with plain computations and with their stated errors."""

import base64

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.errors import InvalidInputError, InvalidVectorError
from engine.vectors import (
    Matrix,
    check_finite_nonzero,
    convert,
    little_endian,
    normalize,
    to_base64,
    truncate_dimensions,
    weighted_means,
)

FLOAT16_RELATIVE_ERROR = 2.0**-11
"""Half of the last of float16's 11 binary digits."""
FLOAT16_ABSOLUTE_ERROR = 2.0**-25
"""Half of float16's smallest step, for numbers below 2**-14."""

properties = settings(deadline=None, max_examples=60, derandomize=True)


def matrices(largest: float) -> st.SearchStrategy[Matrix]:
    """Return float32 matrices of a few rows with finite numbers up to *largest*."""
    numbers = st.floats(-largest, largest, width=32)
    return st.integers(1, 20).flatmap(
        lambda dim: st.lists(st.lists(numbers, min_size=dim, max_size=dim), min_size=1, max_size=4).map(
            lambda rows: np.array(rows, dtype=np.float32)
        )
    )


any_vectors = matrices(float(np.float32(1e30)))
float16_vectors = matrices(60_000.0)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        pytest.param([1.0, np.nan], "NaN", id="nan"),
        pytest.param([np.inf, 1.0], "infinity", id="infinity"),
        pytest.param([-np.inf, np.inf], "infinity", id="both-infinities"),
        pytest.param([np.nan, np.inf], "NaN", id="nan-and-infinity"),
        pytest.param([0.0, -0.0], "zero", id="zero-norm"),
    ],
)
def test_error_names_the_text_of_the_first_bad_vector(bad: list[float], reason: str) -> None:
    vectors = np.array([[1.0, 2.0], [3.0, 4.0], bad, bad], dtype=np.float32)
    for text_indexes, expected in ((None, 2), ([0, 0, 1, 2], 1)):
        with pytest.raises(InvalidVectorError, match=reason) as error:
            check_finite_nonzero(vectors, text_indexes=text_indexes)
        assert error.value.index == error.value.extensions["index"] == expected


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([3e38, -3e38], id="near-the-largest-float32"),
        pytest.param([1e-30, 0.0], id="tiny"),
        pytest.param([1e-45, 0.0], id="smallest-float32"),
        pytest.param([0.6, 0.8], id="unit"),
    ],
)
def test_finite_vector_of_any_length_is_accepted(values: list[float]) -> None:
    check_finite_nonzero(np.array([values], dtype=np.float32))


@properties
@given(vectors=any_vectors)
def test_normalized_vectors_have_length_1_and_the_same_direction(vectors: Matrix) -> None:
    result = normalize(vectors)
    assert result.dtype == np.float32
    for before, after in zip(vectors, result, strict=True):
        norm = float(np.linalg.norm(before.astype(np.float64)))
        if norm == 0.0:
            assert not after.any()
        else:
            np.testing.assert_allclose(after, before / norm, rtol=1e-6, atol=1e-30)
            assert np.linalg.norm(after.astype(np.float64)) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("number", [3e38, 1e-45, 1e-30], ids=["largest", "smallest", "tiny"])
def test_normalization_keeps_the_precision_of_large_and_small_numbers(number: float) -> None:
    [vector] = normalize(np.array([[number, number, 0.0, -number]], dtype=np.float32))
    np.testing.assert_allclose(vector, np.array([1, 1, 0, -1]) / np.sqrt(3), rtol=1e-6)


@properties
@given(vectors=matrices(1000.0), data=st.data())
def test_truncation_keeps_the_first_numbers(vectors: Matrix, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, vectors.shape[1]))
    result = truncate_dimensions(vectors, size, layer_norm=False)
    np.testing.assert_array_equal(result, vectors[:, :size])
    assert result.dtype == np.float32
    assert result.flags.c_contiguous


@properties
@given(vectors=matrices(1000.0), data=st.data())
def test_layer_norm_before_truncation_follows_its_formula(vectors: Matrix, data: st.DataObject) -> None:
    size, original = data.draw(st.integers(1, vectors.shape[1])), vectors.copy()
    result = truncate_dimensions(vectors, size, layer_norm=True)
    np.testing.assert_array_equal(vectors, original)
    for before, after in zip(vectors.astype(np.float64), result, strict=True):
        mean = sum(before) / len(before)
        variance = sum((number - mean) ** 2 for number in before) / len(before)
        expected = [(number - mean) / (variance + 1e-5) ** 0.5 for number in before]
        np.testing.assert_allclose(after, expected[:size], rtol=1e-5, atol=1e-6)


@properties
@given(data=st.data(), counts=st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_weighted_means_equal_those_of_a_plain_loop(data: st.DataObject, counts: list[int]) -> None:
    windows = sum(counts)
    weights = data.draw(st.lists(st.integers(0, 500), min_size=windows, max_size=windows))
    vectors = np.random.default_rng(windows).standard_normal((windows, 3)).astype(np.float32)
    result = weighted_means(vectors, weights, counts)
    start = 0
    for count, mean in zip(counts, result, strict=True):
        rows = range(start, start + count)
        positive = [max(1, weights[row]) for row in rows]
        expected = sum(vectors[row].astype(np.float64) * weight for row, weight in zip(rows, positive, strict=True))
        np.testing.assert_allclose(mean, expected / sum(positive), rtol=1e-5, atol=1e-6)
        start += count
    assert result.dtype == np.float32


def test_float32_is_returned_unchanged() -> None:
    vectors = np.array([[1.5, -0.0]], dtype=np.float32)
    assert convert(vectors, "float32") is vectors


@properties
@given(vectors=any_vectors)
def test_int8_and_uint8_are_off_by_at_most_one_254th(vectors: Matrix) -> None:
    exact = normalize(vectors)
    signed, unsigned = convert(exact, "int8"), convert(exact, "uint8")
    assert [signed.dtype.name, unsigned.dtype.name] == ["int8", "uint8"]
    assert np.abs(signed / 127 - exact.astype(np.float64)).max() <= 1 / 254 + 1e-7
    np.testing.assert_array_equal(unsigned.astype(np.int16) - 128, signed)


@pytest.mark.parametrize(
    ("number", "signed"),
    [
        pytest.param(1.0, 127, id="one"),
        pytest.param(-1.0, -127, id="minus-one"),
        pytest.param(1.0000001, 127, id="rounding-error-above-one"),
        pytest.param(0.0, 0, id="zero"),
        pytest.param(0.5, 64, id="half-rounds-to-even"),
        pytest.param(-0.001, 0, id="almost-zero"),
    ],
)
def test_int8_of_known_numbers(number: float, signed: int) -> None:
    vectors = np.array([[number]], dtype=np.float32)
    assert convert(vectors, "int8").tolist() == [[signed]]
    assert convert(vectors, "uint8").tolist() == [[signed + 128]]


@properties
@given(vectors=float16_vectors)
def test_float16_is_off_by_at_most_half_of_its_last_digit(vectors: Matrix) -> None:
    result = convert(vectors, "float16")
    assert result.dtype == np.float16
    exact = vectors.astype(np.float64)
    error = np.abs(result.astype(np.float64) - exact)
    assert (error <= np.maximum(FLOAT16_RELATIVE_ERROR * np.abs(exact), FLOAT16_ABSOLUTE_ERROR)).all()


def test_numbers_too_large_for_float16_are_rejected() -> None:
    convert(np.array([[65504.0, -65504.0]], dtype=np.float32), "float16")
    for number in (65505.0, -1e6):
        with pytest.raises(InvalidInputError, match="65504") as error:
            convert(np.array([[1.0], [number]], dtype=np.float32), "float16")
        assert error.value.extensions == {"field": "dtype"}


def plain_bits(row: NDArray[np.float32]) -> list[int]:
    """Return a byte per eight numbers, the first number in the highest bit."""
    octets = [0] * -(-len(row) // 8)
    for position, number in enumerate(row):
        if number > 0:
            octets[position // 8] |= 128 >> (position % 8)
    return octets


@properties
@given(vectors=any_vectors)
def test_bits_equal_those_of_a_plain_loop(vectors: Matrix) -> None:
    unsigned, signed = convert(vectors, "ubinary"), convert(vectors, "binary")
    assert [unsigned.dtype.name, signed.dtype.name] == ["uint8", "int8"]
    expected = [plain_bits(row) for row in vectors]
    assert unsigned.tolist() == expected
    assert signed.tolist() == [[octet - 128 for octet in row] for row in expected]


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("order", ["little", "big"])
def test_base64_decodes_to_the_same_numbers_on_any_machine(dtype: str, order: str) -> None:
    vectors = normalize(np.random.default_rng(1).standard_normal((3, 20)).astype(np.float32))
    rows = convert(vectors, dtype)  # type: ignore[arg-type]  # pytest's parameters are plain strings
    stored = rows.astype(rows.dtype.newbyteorder(order))  # type: ignore[arg-type]  # as above
    decoded = [np.frombuffer(base64.b64decode(text), rows.dtype.newbyteorder("<")) for text in to_base64(stored)]
    np.testing.assert_array_equal(np.stack(decoded), rows)


@pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])
def test_bytes_are_contiguous_with_the_lowest_first(order: str) -> None:
    stored = np.asfortranarray(np.array([[1.0, 2.0], [3.0, 4.0]], dtype=f"{order}f4"))
    assert little_endian(stored).tobytes() == np.array([1, 2, 3, 4], dtype="<f4").tobytes()
    assert to_base64(np.array([[1.0]], dtype=f"{order}f4")) == ["AACAPw=="]
