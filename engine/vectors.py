"""What is done to vectors after the model. Pure numpy."""

import base64
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engine.errors import InvalidInputError, InvalidVectorError
from engine.jobs import Matrix

Dtype = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]

INT8_SCALE = 127
"""The largest int8; a unit vector's numbers lie between -1 and 1, so that times 127 each has its place."""
LAYER_NORM_EPSILON = 1e-5
"""Of PyTorch's `layer_norm`, with which model cards apply it."""


def check_finite_nonzero(vectors: Matrix, *, owners: Sequence[int] | None = None) -> None:
    """Let no vector pass that would spoil an index in silence.

    Args:
        vectors: float32, shape ``(rows, dim)``.
        owners: per row, the index of the text that it belongs to; None: each text has one row.

    Raises:
        InvalidVectorError: a vector with NaN or infinity, or with a norm of zero; it names the first such text.
    """
    peaks = np.abs(vectors).max(axis=1)  # NaN where a row holds one; squares would overflow long before
    bad = ~((peaks > 0.0) & (peaks < np.inf))
    if bad.any():
        row = int(bad.argmax())
        reason = "has a norm of zero" if peaks[row] == 0.0 else "holds NaN or infinity"
        raise InvalidVectorError(owners[row] if owners else row, reason)


def unit(vectors: Matrix) -> Matrix:
    """The vectors at length 1, computed in float64 so that neither large nor small numbers are lost.

    Args:
        vectors: float32, shape ``(rows, dim)``; a row of zeros stays one.

    Returns:
        Float32 of the same shape.
    """
    exact = vectors.astype(np.float64)
    norms = np.linalg.norm(exact, axis=1, keepdims=True)
    return (exact / np.where(norms > 0.0, norms, 1.0)).astype(np.float32)


def cut(vectors: Matrix, dimensions: int, *, layer_norm: bool) -> Matrix:
    """The first *dimensions* numbers of each vector, as Matryoshka models want it; not yet at length 1 again.

    Args:
        vectors: float32, shape ``(rows, dim)``.
        dimensions: at most ``dim``.
        layer_norm: bring each whole vector to mean 0 and variance 1 first, where the model's card says so.

    Source:
        Kusupati et al., Matryoshka Representation Learning, 2022; the layer norm: card of nomic-embed-text-v1.5.
    """
    if layer_norm:
        exact = vectors.astype(np.float64)
        centred = exact - exact.mean(axis=1, keepdims=True)
        vectors = (centred / np.sqrt(exact.var(axis=1, keepdims=True) + LAYER_NORM_EPSILON)).astype(np.float32)
    return np.ascontiguousarray(vectors[:, :dimensions])


def weighted_means(vectors: Matrix, weights: Sequence[int], counts: Sequence[int]) -> Matrix:
    """One mean per text over the vectors of its windows.

    Args:
        vectors: float32, shape ``(windows, dim)``, the windows of a text beside each other.
        weights: per window, its tokens of the text; a window without any counts as 1.
        counts: per text, how many windows it has, at least 1.

    Returns:
        Float32, shape ``(texts, dim)``.
    """
    exact = np.maximum(np.asarray(weights, dtype=np.float64), 1.0)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    sums = np.add.reduceat(vectors * exact[:, None], starts, axis=0)
    return (sums / np.add.reduceat(exact, starts)[:, None]).astype(np.float32)


def convert(vectors: Matrix, dtype: Dtype) -> NDArray[Any]:
    """The vectors as numbers of another kind. No calibration data is needed.

    Args:
        vectors: float32, shape ``(rows, dim)``; for ``int8`` and ``uint8`` at length 1.
        dtype: ``float16`` rounds to the nearest; ``int8`` is ``clip(round(127 x), -127, 127)``, ``uint8`` the same
            plus 128, so that each number is off by 1/254 at most; ``ubinary`` is one bit per number, 1 where it is
            above zero, the first one in the highest bit of the first byte, and the last byte filled up with zeros;
            ``binary`` has the same bytes less 128, as int8.

    Returns:
        Shape ``(rows, dim)``, or ``(rows, ceil(dim / 8))`` for the two binary kinds.

    Raises:
        InvalidInputError: float16 cannot hold a number of these vectors.
    """
    match dtype:
        case "float32":
            return vectors
        case "float16":
            return _half(vectors)
        case "int8":
            return _scaled(vectors).astype(np.int8)
        case "uint8":
            return (_scaled(vectors) + 128).astype(np.uint8)
        case "ubinary":
            return np.packbits(vectors > 0.0, axis=1)
        case "binary":
            return (np.packbits(vectors > 0.0, axis=1).astype(np.int16) - 128).astype(np.int8)


def to_base64(rows: NDArray[Any]) -> list[str]:
    """Each row's numbers in base64, little-endian."""
    return [base64.b64encode(row).decode("ascii") for row in little_endian(rows)]


def little_endian(values: NDArray[Any]) -> NDArray[Any]:
    """The same numbers, contiguous and with the lowest byte first whatever the machine."""
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))


def _scaled(vectors: Matrix) -> NDArray[np.float32]:
    return np.clip(np.rint(vectors * INT8_SCALE), -INT8_SCALE, INT8_SCALE)


def _half(vectors: Matrix) -> NDArray[np.float16]:
    largest = float(np.abs(vectors).max())
    if largest > float(np.finfo(np.float16).max):
        raise InvalidInputError(
            f"dtype: float16 holds numbers up to 65504, and these vectors have one of {largest:.6g}; "
            "ask for float32, or for normalize: true.",
            extensions={"field": "dtype"},
        )
    return vectors.astype(np.float16)
