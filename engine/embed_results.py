"""Results of the embedder: vectors and token counts, and what was done to the texts."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from engine.catalog import Model
from engine.pipeline import Chunk
from engine.tokenizer import Token
from engine.work_estimate import Estimate


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """The vectors of one request, and what was done to its texts.

    Attributes:
        model: the model that computed the vectors.
        vectors: shape ``(texts, dimension)`` in the order of the texts, or one row per chunk; of the requested dtype.
            The two binary types have ``ceil(dimension / 8)`` columns.
        dimension: numbers per vector, before any are packed into bits.
        tokens: per text, the number of its tokens before truncation, with prompt and special tokens.
        truncated: per text, whether the model saw only a part of it.
        chunks: per row of *vectors*, its text and its place there; None: each text has one row.
        fingerprint: of the model; see `engine.fingerprint.ModelFingerprint`.
    """

    model: Model
    vectors: NDArray[Any]
    dimension: int
    tokens: list[int]
    truncated: list[bool]
    chunks: list[Chunk] | None = None
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class EmbedRun:
    """An admitted request whose vectors are computed slice by slice.

    Attributes:
        model: the model that computes the vectors.
        dimension: numbers per vector, before any are packed into bits.
        tokens: per text, the number of its tokens before truncation, with prompt and special tokens.
        used_tokens: tokens of all texts that the model runs, after truncation.
        truncated: per text, whether the model sees only a part of it.
        fingerprint: of the model; see `engine.fingerprint.ModelFingerprint`.
    """

    model: Model
    dimension: int
    tokens: list[int]
    used_tokens: int
    truncated: list[bool]
    fingerprint: str
    results: list[NDArray[Any]]

    async def slices(self) -> AsyncGenerator[NDArray[Any]]:
        """Yield the vectors, consecutive rows in the order of the texts."""
        for rows in self.results:
            yield rows


@dataclass(frozen=True, slots=True)
class TokenCount:
    """The tokens of some texts, and the work to embed them.

    Attributes:
        model: the model whose tokenizer was used.
        max_tokens: the model's longest input; None: any length.
        tokens: per text, the number of its tokens before truncation, with prompt and special tokens.
        truncated: per text, whether the model would see only a part of it.
        pieces: per text, its tokens; None: not requested.
        estimate: the work to embed the texts.
    """

    model: Model
    max_tokens: int | None
    tokens: list[int]
    truncated: list[bool]
    pieces: list[list[Token]] | None
    estimate: Estimate
