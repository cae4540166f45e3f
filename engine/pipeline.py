"""What a request's options make of its texts before the model, and of its vectors after it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from engine.catalog import Model
from engine.errors import InvalidInputError
from engine.jobs import Matrix
from engine.options import EmbedOptions
from engine.tokenizer import TextTokenizer, TokenizedText
from engine.vectors import check_finite_nonzero, convert, cut, unit, weighted_means


@dataclass(frozen=True, slots=True)
class Chunk:
    """One window of a text: the text's index, its characters from *start* up to *end*, the tokens of the window."""

    index: int
    start: int
    end: int
    tokens: int


@dataclass(frozen=True, slots=True)
class PreparedTexts:
    """The texts of one request, ready for the model.

    Attributes:
        items: what the model runs: the texts, or all their windows.
        counts: per text, how many windows it has; None where each text is one item.
    """

    items: list[TokenizedText]
    counts: list[int] | None = None

    @property
    def owners(self) -> list[int] | None:
        """Per item, the index of its text; None where that is its own."""
        if self.counts is None:
            return None
        return [index for index, count in enumerate(self.counts) for _ in range(count)]

    @property
    def tokens(self) -> list[int]:
        """Per text, the tokens of all of it."""
        return [item.tokens for item in self._firsts]

    @property
    def truncated(self) -> list[bool]:
        """Per text, whether the model saw less than that; windows together see all."""
        return [self.counts is None and item.is_truncated for item in self._firsts]

    @property
    def chunks(self) -> list[Chunk]:
        """Per item, what it holds."""
        owners = self.owners or range(len(self.items))
        return [
            Chunk(owner, *(item.span or (0, 0)), item.length) for owner, item in zip(owners, self.items, strict=True)
        ]

    @property
    def _firsts(self) -> list[TokenizedText]:
        if self.counts is None:
            return self.items
        starts = [0]
        for count in self.counts[:-1]:
            starts.append(starts[-1] + count)
        return [self.items[start] for start in starts]


def prepare_texts(tokenizer: TextTokenizer, texts: Sequence[str], prompt: str, options: EmbedOptions) -> PreparedTexts:
    """Tokenise *texts* as *options* say, each with *prompt* before it. Blocks for as long as that takes.

    Raises:
        InvalidInputError: with ``truncate="none"``, a text is too long; it names the first one.
    """
    if options.long_text != "truncate":
        windows = tokenizer.windows(texts, prompt=prompt, with_spans=options.long_text == "chunks")
        return PreparedTexts([item for parts in windows for item in parts], [len(parts) for parts in windows])
    items = tokenizer.tokenize(texts, prompt=prompt, side=None if options.truncate == "none" else options.truncate)
    if options.truncate == "none":
        _refuse_long(items, tokenizer.max_tokens)
    return PreparedTexts(items)


def postprocess(vectors: Matrix, read: PreparedTexts, options: EmbedOptions, model: Model) -> tuple[NDArray[Any], int]:
    """Make of the model's vectors what was asked for.

    Args:
        vectors: float32, one row per item of *read*.
        read: what they are the vectors of.
        options: what was asked for.
        model: whose vectors they are.

    Returns:
        The vectors, one row per text or per chunk, and how many numbers each has (before they are packed into bits).

    Raises:
        InvalidVectorError: one is not finite or has a norm of zero, before or after it was cut.
        InvalidInputError: the dtype cannot hold them.
    """
    check_finite_nonzero(vectors, owners=read.owners)
    owners = read.owners
    if options.long_text == "mean" and read.counts is not None:
        vectors = weighted_means(vectors, [item.weight for item in read.items], read.counts)
        owners = None
    if options.dimensions is not None:
        trained = model.card.matryoshka
        vectors = cut(vectors, options.dimensions, layer_norm=bool(trained and trained.layer_norm))
    if options.needs_unit_length:
        vectors = unit(vectors)
    if options.long_text == "mean" or options.dimensions is not None:
        check_finite_nonzero(vectors, owners=owners)
    return convert(vectors, options.dtype), vectors.shape[1]


def _refuse_long(items: Sequence[TokenizedText], max_tokens: int | None) -> None:
    for index, item in enumerate(items):
        if item.is_truncated:
            raise InvalidInputError(
                f"Text {index}: {item.tokens} tokens are more than the {max_tokens} that the model takes, "
                "and with truncate='none' nothing is cut off.",
                extensions={"index": index, "tokens": item.tokens, "limit": max_tokens},
            )
