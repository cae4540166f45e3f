"""What the model computed of one text, and its form as bytes, which the result cache keeps.

The bytes are a header, the place of each window (`long_text=chunks` only), and the vectors, all little-endian.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from engine.vectors import Matrix, are_usable

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


Facts = tuple[int, int, int]
"""Of a text: its tokens before truncation, with prompt and special tokens; those that the model ran; and flags:
`IS_TRUNCATED` (the model saw only a part of it) and `IS_BLANK` (the model saw only special tokens of it)."""


@dataclass(slots=True, eq=False)
class TextResult:
    """What the model computed of one text, before dimensions, normalisation and number type are applied.

    Attributes:
        vectors: float32, shape ``(1, dim)``, or one row per window for ``chunks``. Read-only.
        facts: of its tokens.
        windows: for ``chunks``, the place of each window; else empty.
    """

    vectors: Matrix
    facts: Facts
    windows: Sequence[Window] = ()


def pack(result: TextResult) -> bytes:
    """Return *result* as bytes."""
    rows, dim = result.vectors.shape
    tokens, used_tokens, flags = result.facts
    flags |= bool(result.windows) * HAS_WINDOWS
    header = HEADER.pack(MAGIC, VERSION, FLOAT32, flags, rows, dim, tokens, used_tokens)
    numbers = result.vectors.astype(NUMBERS, copy=False).tobytes()
    return header + b"".join([WINDOW.pack(*window) for window in result.windows]) + numbers


def pack_rows(vectors: Matrix, facts: Iterable[Facts]) -> list[bytes]:
    """Return results of texts as `pack` does: each has a row of *vectors*, and no windows."""
    dim = vectors.shape[1]
    numbers, size = vectors.astype(NUMBERS, copy=False).tobytes(), dim * NUMBERS.itemsize
    return [
        HEADER.pack(MAGIC, VERSION, FLOAT32, flags, 1, dim, tokens, used_tokens) + numbers[start : start + size]
        for start, (tokens, used_tokens, flags) in zip(count(0, size), facts, strict=False)
    ]


def unpack(packed: bytes, dim: int) -> TextResult | None:
    """Return the result with windows that *packed* contains, or None if these are not the bytes of a usable one.

    The vectors are those bytes, so they are read-only and take no further memory.

    Args:
        packed: whatever was kept under the key of the result.
        dim: numbers per vector of the model.
    """
    if (header := _read_header(packed, dim, has_windows=True)) is None:
        return None
    rows, facts = header
    start = HEADER.size + rows * WINDOW.size
    vectors = np.frombuffer(packed, NUMBERS, offset=start).reshape(rows, dim)
    if not are_usable(vectors):
        return None
    return TextResult(vectors, facts, tuple(WINDOW.iter_unpack(packed[HEADER.size : start])))


def read_facts(packed: Sequence[bytes], dim: int) -> tuple[list[Facts | None], Matrix | None]:
    """Return the facts of each result without windows; None for bytes that are not those of a usable one.

    Returns:
        The facts; and if all results are usable, their vectors as `rows_of` returns them.
    """
    headers = [_read_header(some, dim, has_windows=False) for some in packed]
    facts = [header and header[1] for header in headers]
    if all(facts) and are_usable(vectors := rows_of(packed, dim)):
        return facts, vectors
    usable = [facts and are_usable(rows_of([some], dim)) for some, facts in zip(packed, facts, strict=True)]
    return [some if is_usable else None for some, is_usable in zip(facts, usable, strict=True)], None


def rows_of(packed: Sequence[bytes], dim: int) -> Matrix:
    """Return the vectors of results without windows, one row per result; read-only."""
    return np.frombuffer(b"".join([some[HEADER.size :] for some in packed]), NUMBERS).reshape(len(packed), dim)


def _read_header(packed: bytes, dim: int, *, has_windows: bool) -> tuple[int, Facts] | None:
    """Return the number of vectors and the facts; None: these are not the bytes of a result."""
    if len(packed) < HEADER.size:
        return None
    magic, version, number_type, flags, rows, found_dim, tokens, used_tokens = HEADER.unpack_from(packed)
    if (magic, version, number_type, found_dim) != (MAGIC, VERSION, FLOAT32, dim):
        return None
    if flags & ~(IS_TRUNCATED | IS_BLANK) != has_windows * HAS_WINDOWS or not (rows if has_windows else rows == 1):
        return None
    if len(packed) != HEADER.size + rows * (WINDOW.size * has_windows + dim * NUMBERS.itemsize):
        return None
    return rows, (tokens, used_tokens, flags & ~HAS_WINDOWS)
