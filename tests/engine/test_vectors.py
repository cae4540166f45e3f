"""Only honest vectors pass; sizes and kinds of numbers keep within their stated errors."""

import base64

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.errors import InvalidInputError, InvalidVectorError
from engine.jobs import Matrix
from engine.vectors import check_finite_nonzero, convert, cut, little_endian, to_base64, unit, weighted_means

HALF_RELATIVE = 2.0**-11
"""Half a unit in the last of float16's 11 binary digits."""
HALF_ABSOLUTE = 2.0**-25
"""Half of float16's least step, for numbers below 2**-14."""

properties = settings(deadline=None, max_examples=60, derandomize=True)


def matrices(most: float, *, least_rows: int = 1) -> st.SearchStrategy[Matrix]:
    """Float32 matrices of a few rows with finite numbers up to *most*."""
    numbers = st.floats(-most, most, width=32)
    return st.integers(1, 20).flatmap(
        lambda dim: st.lists(st.lists(numbers, min_size=dim, max_size=dim), min_size=least_rows, max_size=4).map(
            lambda rows: np.array(rows, dtype=np.float32)
        )
    )


any_vectors = matrices(float(np.float32(1e30)))
small_vectors = matrices(60_000.0)


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
def test_a_bad_vector_is_named_by_its_index(bad: list[float], reason: str) -> None:
    vectors = np.array([[1.0, 2.0], [3.0, 4.0], bad, bad], dtype=np.float32)
    with pytest.raises(InvalidVectorError, match=reason) as caught:
        check_finite_nonzero(vectors)
    assert caught.value.index == caught.value.extensions["index"] == 2


def test_a_bad_window_is_named_by_the_index_of_its_text() -> None:
    vectors = np.array([[1.0], [1.0], [1.0], [np.nan], [np.nan]], dtype=np.float32)
    with pytest.raises(InvalidVectorError) as caught:
        check_finite_nonzero(vectors, owners=[0, 0, 1, 1, 2])
    assert caught.value.index == caught.value.extensions["index"] == 1


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([3e38, -3e38], id="near-the-largest-float32"),
        pytest.param([1e-30, 0.0], id="tiny"),
        pytest.param([1e-45, 0.0], id="the-least-float32"),
        pytest.param([0.6, 0.8], id="unit"),
    ],
)
def test_a_finite_vector_of_any_length_passes(values: list[float]) -> None:
    check_finite_nonzero(np.array([values], dtype=np.float32))


@properties
@given(vectors=any_vectors)
def test_unit_vectors_have_length_one_and_the_same_direction(vectors: Matrix) -> None:
    result = unit(vectors)
    assert result.dtype == np.float32
    for was, now in zip(vectors, result, strict=True):
        norm = float(np.linalg.norm(was.astype(np.float64)))
        if norm == 0.0:
            assert not now.any()
        else:
            np.testing.assert_allclose(now, was / norm, rtol=1e-6, atol=1e-30)
            assert np.linalg.norm(now.astype(np.float64)) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("number", [3e38, 1e-45, 1e-30], ids=["largest", "least", "tiny"])
def test_neither_large_nor_small_numbers_are_lost_on_the_way_to_length_one(number: float) -> None:
    [vector] = unit(np.array([[number, number, 0.0, -number]], dtype=np.float32))
    np.testing.assert_allclose(vector, np.array([1, 1, 0, -1]) / np.sqrt(3), rtol=1e-6)


@properties
@given(vectors=any_vectors, data=st.data())
def test_cut_keeps_the_first_numbers_unchanged(vectors: Matrix, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, vectors.shape[1]))
    result = cut(vectors, size, layer_norm=False)
    np.testing.assert_array_equal(result, vectors[:, :size])
    assert result.dtype == np.float32
    assert result.flags.c_contiguous


@properties
@given(vectors=matrices(1000.0), data=st.data())
def test_cut_with_layer_norm_follows_its_formula(vectors: Matrix, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, vectors.shape[1]))
    result = cut(vectors, size, layer_norm=True)
    for was, now in zip(vectors.astype(np.float64), result, strict=True):
        mean = sum(was) / len(was)
        variance = sum((number - mean) ** 2 for number in was) / len(was)
        wanted = [(number - mean) / (variance + 1e-5) ** 0.5 for number in was]
        np.testing.assert_allclose(now, wanted[:size], rtol=1e-5, atol=1e-6)


def test_cut_changes_nothing_of_the_vectors_it_was_given() -> None:
    vectors = np.array([[1, 2, 3]], dtype=np.float32)
    cut(vectors, 2, layer_norm=True)
    assert vectors.tolist() == [[1, 2, 3]]


@properties
@given(data=st.data(), counts=st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_weighted_means_are_those_of_a_straightforward_loop(data: st.DataObject, counts: list[int]) -> None:
    windows = sum(counts)
    weights = data.draw(st.lists(st.integers(0, 500), min_size=windows, max_size=windows))
    vectors = np.random.default_rng(windows).standard_normal((windows, 3)).astype(np.float32)
    result = weighted_means(vectors, weights, counts)
    start = 0
    for count, mean in zip(counts, result, strict=True):
        rows = range(start, start + count)
        heavy = [max(1, weights[row]) for row in rows]
        wanted = sum(vectors[row].astype(np.float64) * weight for row, weight in zip(rows, heavy, strict=True))
        np.testing.assert_allclose(mean, wanted / sum(heavy), rtol=1e-5, atol=1e-6)
        start += count
    assert result.dtype == np.float32


@properties
@given(vectors=any_vectors)
def test_numbers_of_int8_and_uint8_are_off_by_one_254th_at_most(vectors: Matrix) -> None:
    whole = unit(vectors)
    signed, unsigned = convert(whole, "int8"), convert(whole, "uint8")
    assert [signed.dtype.name, unsigned.dtype.name] == ["int8", "uint8"]
    exact = whole.astype(np.float64)
    assert np.abs(signed.astype(np.float64) / 127 - exact).max() <= 1 / 254 + 1e-7
    assert np.abs((unsigned.astype(np.float64) - 128) / 127 - exact).max() <= 1 / 254 + 1e-7
    np.testing.assert_array_equal(unsigned.astype(np.int16) - 128, signed)


@pytest.mark.parametrize(
    ("number", "signed"),
    [
        pytest.param(1.0, 127, id="one"),
        pytest.param(-1.0, -127, id="minus-one"),
        pytest.param(1.0000001, 127, id="a-rounding-above-one"),
        pytest.param(0.0, 0, id="zero"),
        pytest.param(0.5, 64, id="a-half-to-the-even"),
        pytest.param(-0.001, 0, id="next-to-nothing"),
    ],
)
def test_known_numbers_of_int8(number: float, signed: int) -> None:
    vectors = np.array([[number]], dtype=np.float32)
    assert convert(vectors, "int8").tolist() == [[signed]]
    assert convert(vectors, "uint8").tolist() == [[signed + 128]]


@properties
@given(vectors=small_vectors)
def test_numbers_of_float16_are_off_by_half_of_their_last_digit_at_most(vectors: Matrix) -> None:
    half = convert(vectors, "float16")
    assert half.dtype == np.float16
    error = np.abs(half.astype(np.float64) - vectors.astype(np.float64))
    assert (error <= np.maximum(HALF_RELATIVE * np.abs(vectors.astype(np.float64)), HALF_ABSOLUTE)).all()


def test_numbers_beyond_float16_are_refused_and_told() -> None:
    convert(np.array([[65504.0, -65504.0]], dtype=np.float32), "float16")
    for number in (65505.0, -1e6):
        with pytest.raises(InvalidInputError, match="65504") as refused:
            convert(np.array([[1.0], [number]], dtype=np.float32), "float16")
        assert refused.value.extensions == {"field": "dtype"}


def bits_by_hand(row: NDArray[np.float32]) -> list[int]:
    """A byte per eight numbers; the first one in the highest bit."""
    octets = [0] * -(-len(row) // 8)
    for position, number in enumerate(row):
        if number > 0:
            octets[position // 8] |= 128 >> (position % 8)
    return octets


@properties
@given(vectors=any_vectors)
def test_bits_are_those_of_a_straightforward_loop(vectors: Matrix) -> None:
    unsigned, signed = convert(vectors, "ubinary"), convert(vectors, "binary")
    assert [unsigned.dtype.name, signed.dtype.name] == ["uint8", "int8"]
    by_hand = [bits_by_hand(row) for row in vectors]
    assert unsigned.tolist() == by_hand
    assert signed.tolist() == [[octet - 128 for octet in row] for row in by_hand]
    bits = np.unpackbits(unsigned, axis=1, count=vectors.shape[1])
    np.testing.assert_array_equal(bits.astype(bool), vectors > 0)


def test_float32_is_handed_on_as_it_is() -> None:
    vectors = np.array([[1.5, -0.0]], dtype=np.float32)
    assert convert(vectors, "float32") is vectors


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("order", ["little", "big"])
def test_base64_comes_back_exactly_whatever_the_machines_byte_order(dtype: str, order: str) -> None:
    whole = unit(np.random.default_rng(1).standard_normal((3, 20)).astype(np.float32))
    rows = convert(whole, dtype)  # type: ignore[arg-type]  # pytest's parameters are plain strings
    stored = rows.astype(rows.dtype.newbyteorder(order))  # type: ignore[arg-type]  # as above
    back = [np.frombuffer(base64.b64decode(text), rows.dtype.newbyteorder("<")) for text in to_base64(stored)]
    np.testing.assert_array_equal(np.stack(back), rows)


@pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])
def test_bytes_are_contiguous_with_the_lowest_first(order: str) -> None:
    stored = np.asfortranarray(np.array([[1.0, 2.0], [3.0, 4.0]], dtype=f"{order}f4"))
    assert little_endian(stored).tobytes() == np.array([1, 2, 3, 4], dtype="<f4").tobytes()
    assert to_base64(np.array([[1.0]], dtype=f"{order}f4")) == ["AACAPw=="]
