"""Results of the embedder: vectors and token counts, and what was done to the texts."""

from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from engine.catalog import Model
from engine.pipeline import Chunk
from engine.result_store import CacheCounts
from engine.single_hit import SingleHit
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
        cache: where the results of the texts come from.
        single_hit: as `EmbedRun.single_hit`.
    """

    model: Model
    vectors: NDArray[Any]
    dimension: int
    tokens: list[int]
    truncated: list[bool]
    chunks: list[Chunk] | None = None
    fingerprint: str = ""
    cache: CacheCounts = field(default_factory=CacheCounts)
    single_hit: SingleHit | None = None


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
        fingerprint: of the model; see `engine.fingerprint.ModelFingerprint`.
    """

    model: Model
    max_tokens: int | None
    tokens: list[int]
    truncated: list[bool]
    pieces: list[list[Token]] | None
    estimate: Estimate
    fingerprint: str = ""
