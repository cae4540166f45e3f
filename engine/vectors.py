"""Pure numpy functions on vectors: check, normalize, shorten, average, convert and serialize."""

import base64
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engine.errors import InvalidInputError, InvalidVectorError

Matrix = NDArray[np.float32]
"""Vectors as the rows of a matrix of shape ``(rows, dim)``."""
Dtype = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]

INT8_SCALE = 127
"""Factor for int8. The numbers of a unit vector are between -1 and 1; times 127, the largest int8, they always fit."""
LAYER_NORM_EPSILON = 1e-5
"""Added to the variance in layer norm. It is the default of PyTorch's `layer_norm`, which the model cards use."""


def check_finite_nonzero(vectors: Matrix, *, text_indexes: Sequence[int] | None = None) -> None:
    """Reject vectors that would silently corrupt a search index.

    Args:
        vectors: float32, shape ``(rows, dim)``.
        text_indexes: per row, the index of its text, for the error. None: each text has one row.

    Raises:
        InvalidVectorError: a vector contains NaN or infinity, or has a norm of zero; names the first such text.
    """
    for row, peak in enumerate(peaks(vectors)):
        if not 0.0 < peak < math.inf:
            reason = "has a norm of zero" if peak == 0.0 else "contains NaN or infinity"
            raise InvalidVectorError(text_indexes[row] if text_indexes else row, reason)


def are_usable(vectors: Matrix) -> bool:
    """Return whether all vectors are finite and not zero."""
    for peak in peaks(vectors):  # noqa: SIM110 - most calls are for one row, for which all() takes twice as long
        if not 0.0 < peak < math.inf:
            return False
    return True


def peaks(vectors: Matrix) -> list[float]:
    """Return the largest absolute number of each vector; NaN if it contains one.

    A sum of squares would overflow much earlier.
    """
    of_rows: list[float] = np.maximum.reduce(np.abs(vectors), axis=1).tolist()
    return of_rows


def normalize(vectors: Matrix) -> Matrix:
    """Scale each vector to length 1 (L2 norm), in float64 so that large and small numbers keep their precision.

    Args:
        vectors: float32, shape ``(rows, dim)``; a row of zeros stays as it is.

    Returns:
        Float32 of the same shape.
    """
    exact = vectors.astype(np.float64)
    # As `np.linalg.norm`, whose checks take as long.
    norms: NDArray[np.float64] = np.sqrt((exact * exact).sum(axis=1, keepdims=True))
    norms[norms == 0.0] = 1.0
    return (exact / norms).astype(np.float32)


def truncate_dimensions(vectors: Matrix, dimensions: int, *, layer_norm: bool) -> Matrix:
    """Keep the first *dimensions* numbers of each vector, for Matryoshka models. The result is not normalized.

    Args:
        vectors: float32, shape ``(rows, dim)``.
        dimensions: at most ``dim``.
        layer_norm: first scale each whole vector to mean 0 and variance 1; the model's card states whether to.

    Returns:
        Float32, shape ``(rows, dimensions)``.

    Source:
        Kusupati et al., Matryoshka Representation Learning, 2022. Layer norm: model card of nomic-embed-text-v1.5.
    """
    if layer_norm:
        exact = vectors.astype(np.float64)
        centred = exact - exact.mean(axis=1, keepdims=True)
        vectors = (centred / np.sqrt(exact.var(axis=1, keepdims=True) + LAYER_NORM_EPSILON)).astype(np.float32)
    return np.ascontiguousarray(vectors[:, :dimensions])


def weighted_means(vectors: Matrix, weights: Sequence[int], counts: Sequence[int]) -> Matrix:
    """Return one vector per text: the weighted mean over its windows.

    Args:
        vectors: float32, shape ``(windows, dim)``, the windows of each text next to each other.
        weights: per window, the number of the text's tokens in it; 0 counts as 1.
        counts: per text, its number of windows, at least 1.

    Returns:
        Float32, shape ``(texts, dim)``.
    """
    exact = np.maximum(np.asarray(weights, dtype=np.float64), 1.0)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    sums = np.add.reduceat(vectors * exact[:, None], starts, axis=0)
    return (sums / np.add.reduceat(exact, starts)[:, None]).astype(np.float32)


def convert(vectors: Matrix, dtype: Dtype) -> NDArray[Any]:
    """Convert vectors to another number type. The scales are fixed, so no calibration data is needed.

    ============  =====================================================================================
    ``float16``   rounded to the nearest
    ``int8``      ``clip(round(127 x), -127, 127)``: off by at most 1/254
    ``uint8``     the same plus 128
    ``ubinary``   1 bit per number, set if it is positive; the first number is the highest bit of the
                  first byte, and the last byte is padded with zeros
    ``binary``    the bytes of ``ubinary`` minus 128, as int8
    ============  =====================================================================================

    Args:
        vectors: float32, shape ``(rows, dim)``; for ``int8`` and ``uint8`` with length 1.
        dtype: the type to convert to.

    Returns:
        Shape ``(rows, dim)``; for the two binary types ``(rows, ceil(dim / 8))``.

    Raises:
        InvalidInputError: a number is too large for float16.
    """
    match dtype:
        case "float32":
            return vectors
        case "float16":
            return _to_float16(vectors)
        case "int8":
            return _scale_to_int8(vectors).astype(np.int8)
        case "uint8":
            return (_scale_to_int8(vectors) + 128).astype(np.uint8)
        case "ubinary":
            return np.packbits(vectors > 0.0, axis=1)
        case "binary":
            return (np.packbits(vectors > 0.0, axis=1).astype(np.int16) - 128).astype(np.int8)


def to_base64(rows: NDArray[Any]) -> list[str]:
    """Encode the little-endian bytes of each row in base64."""
    return [base64.b64encode(row).decode("ascii") for row in little_endian(rows)]


def little_endian(values: NDArray[Any]) -> NDArray[Any]:
    """Return the same numbers as a contiguous little-endian array, on any machine."""
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))


def _scale_to_int8(vectors: Matrix) -> NDArray[np.float32]:
    return np.clip(np.rint(vectors * INT8_SCALE), -INT8_SCALE, INT8_SCALE)


def _to_float16(vectors: Matrix) -> NDArray[np.float16]:
    largest = float(np.abs(vectors).max())
    if largest > float(np.finfo(np.float16).max):
        raise InvalidInputError(
            f"dtype: float16 holds numbers up to 65504, but a vector contains {largest:.6g}. "
            "Use float32, or set normalize=true.",
            extensions={"field": "dtype"},
        )
    return vectors.astype(np.float16)
