"""What the model computed of one text, and its form as bytes, which the result cache keeps.

The bytes are a header, the place of each window (`long_text=chunks` only), and the vectors, all little-endian.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.vectors import Matrix

MAGIC = b"TR"
VERSION = 1
"""Changes with the format. What has another version was kept by another version of the service, and is not used."""
FLOAT32 = ord("f")
"""The type of the numbers; the only one so far."""
IS_TRUNCATED, HAS_WINDOWS, IS_BLANK = 1, 2, 4
HEADER = struct.Struct("<2sBBB3xIIII")
"""Magic, version, type of the numbers, flags; vectors, their dimension, tokens, used tokens. A multiple of 4 bytes, so
that the vectors behind it are aligned."""
WINDOW = struct.Struct("<III")
NUMBERS = np.dtype("<f4")

Window = tuple[int, int, int]
"""First character of a window in its text, the character after its last one, and the tokens of the window."""


@dataclass(slots=True, eq=False)
class TextResult:
    """What the model computed of one text, before dimensions, normalisation and number type are applied.

    Attributes:
        vectors: float32, shape ``(1, dim)``, or one row per window for ``chunks``. Read-only.
        tokens: number of tokens of the text before truncation, with prompt and special tokens.
        used_tokens: number of tokens that the model ran.
        is_truncated: whether the model saw only a part of the text.
        is_blank: whether the model saw only special tokens of it.
        windows: for ``chunks``, the place of each window; else empty.
    """

    vectors: Matrix
    tokens: int
    used_tokens: int
    is_truncated: bool
    is_blank: bool = False
    windows: Sequence[Window] = ()


def pack(result: TextResult) -> bytes:
    """Return *result* as bytes."""
    rows, dim = result.vectors.shape
    flags = result.is_truncated * IS_TRUNCATED | bool(result.windows) * HAS_WINDOWS | result.is_blank * IS_BLANK
    header = HEADER.pack(MAGIC, VERSION, FLOAT32, flags, rows, dim, result.tokens, result.used_tokens)
    numbers = result.vectors.astype(NUMBERS, copy=False).tobytes()
    return header + b"".join([WINDOW.pack(*window) for window in result.windows]) + numbers


def unpack(packed: bytes, dim: int, *, has_windows: bool) -> TextResult | None:
    """Return the result that *packed* contains, or None if these are not the bytes of a usable one.

    The vectors are those bytes, so they are read-only and take no further memory.

    Args:
        packed: whatever was kept under the key of the result.
        dim: numbers per vector of the model.
        has_windows: whether the result is one for ``chunks``.
    """
    if len(packed) < HEADER.size:
        return None
    magic, version, number_type, flags, rows, found_dim, tokens, used_tokens = HEADER.unpack_from(packed)
    if (magic, version, number_type, found_dim) != (MAGIC, VERSION, FLOAT32, dim):
        return None
    if flags & ~(IS_TRUNCATED | IS_BLANK) != (HAS_WINDOWS if has_windows else 0) or not (
        rows if has_windows else rows == 1
    ):
        return None
    start = HEADER.size + rows * WINDOW.size * has_windows
    if len(packed) != start + rows * dim * NUMBERS.itemsize:
        return None
    vectors = np.frombuffer(packed, NUMBERS, offset=start).reshape(rows, dim)
    if not all(are_usable(vectors)):
        return None
    windows = tuple(WINDOW.iter_unpack(packed[HEADER.size : start])) if has_windows else ()
    return TextResult(vectors, tokens, used_tokens, bool(flags & IS_TRUNCATED), bool(flags & IS_BLANK), windows)


def are_usable(vectors: Matrix) -> list[bool]:
    """Return of each vector whether it is finite and not zero."""
    peaks: list[float] = np.abs(vectors).max(axis=1).tolist()
    return [0.0 < peak < math.inf for peak in peaks]
