"""The cache hit of a request whose answer contains nothing else, so that the answer can be sent again."""

from dataclasses import dataclass

from engine.catalog import Model


@dataclass(frozen=True, slots=True, eq=False)
class SingleHit:
    """The only result in an answer, found in the cache. While it stays there, an equal request has an equal answer.

    Attributes:
        model: the model; another one may have its name after a reload.
        fingerprint: of the model, as `EmbedResult.fingerprint`.
        key: of the result.
        digest: the hash of the result's bytes: a result that was computed anew may differ in its last bits.
        tokens: as the caller's quota is charged, and usage counts them.
        truncated: 1 if the model saw only a part of the text, else 0.
        dimension: numbers per vector.
    """

    model: Model
    fingerprint: str
    key: bytes
    digest: int
    tokens: int
    truncated: int
    dimension: int
