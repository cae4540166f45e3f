"""What happens to a request's texts before the model runs (preprocess) and to its vectors afterwards (postprocess)."""

from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from numpy.typing import NDArray

from engine.catalog import Model
from engine.errors import InvalidInputError, TextTooLongError
from engine.options import EmbedOptions
from engine.tokenizer import TextTokenizer, TokenizedText
from engine.vectors import Matrix, check_finite_nonzero, convert, normalize, truncate_dimensions, weighted_means

CLIP_CHARACTERS_PER_TOKEN = 32
"""With `EmbedOptions.clip`, a text keeps this many characters per token of the model's input. Words have 3 to 6 per
token in most languages; only runs of white space, or words that the tokenizer does not know, have more than 32."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One window of a text.

    Attributes:
        index: the text's index in the request.
        start: first character of the window in the text.
        end: the character after its last one.
        tokens: tokens of the window, prompt and special tokens included.
    """

    index: int
    start: int
    end: int
    tokens: int


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """The tokenised texts of one request.

    Attributes:
        items: what the model runs: one item per text, or one per window of a text.
        window_counts: per text, its number of windows; None: the texts are not split into windows.
        first_index: the place of the first text in the request, if these are a slice of it.
    """

    items: list[TokenizedText]
    window_counts: list[int] | None = None
    first_index: int = 0

    @classmethod
    def join(cls, parts: Sequence["ModelInputs"]) -> "ModelInputs":
        """Return the inputs of one request whose texts were tokenised in several *parts*, in their order."""
        counts = [part.window_counts for part in parts if part.window_counts is not None]
        return cls([item for part in parts for item in part.items], list(chain(*counts)) if counts else None)

    def slices(self, texts: int) -> list["ModelInputs"]:
        """Split into the inputs of at most this many *texts* each, in their order."""
        if self.window_counts is None:
            starts = range(0, len(self.items), texts)
            return [ModelInputs(self.items[start : start + texts], first_index=start) for start in starts]
        slices, item = [], 0
        for start in range(0, len(self.window_counts), texts):
            counts = self.window_counts[start : start + texts]
            slices.append(ModelInputs(self.items[item : item + sum(counts)], counts, start))
            item += sum(counts)
        return slices

    def compact(self) -> None:
        """Store the ids in a tenth of the memory, for texts that wait for long."""
        for item in self.items:
            item.ids = array("I", item.ids)

    @property
    def text_indexes(self) -> Sequence[int] | None:
        """Per item, the index of its text; None: it is the item's own index."""
        if self.window_counts is not None:
            return [index for index, count in enumerate(self.window_counts, self.first_index) for _ in range(count)]
        return range(self.first_index, self.first_index + len(self.items)) if self.first_index else None

    @property
    def tokens(self) -> list[int]:
        """Per text, the number of its tokens before truncation."""
        return [item.tokens for item in self._first_items]

    @property
    def used_tokens(self) -> int:
        """The number of tokens that the model runs."""
        return sum(item.length for item in self.items)

    @property
    def truncated(self) -> list[bool]:
        """Per text, whether the model sees only a part of it. Windows together contain all of the text."""
        return [self.window_counts is None and item.is_truncated for item in self._first_items]

    @property
    def chunks(self) -> list[Chunk]:
        """Per item, its text and its place there."""
        text_indexes = self.text_indexes or range(len(self.items))
        return [
            Chunk(index, *(item.span or (0, 0)), item.length)
            for index, item in zip(text_indexes, self.items, strict=True)
        ]

    @property
    def _first_items(self) -> list[TokenizedText]:
        """The first item of each text."""
        if self.window_counts is None:
            return self.items
        starts = [0]
        for count in self.window_counts[:-1]:
            starts.append(starts[-1] + count)
        return [self.items[start] for start in starts]


def preprocess(
    tokenizer: TextTokenizer, texts: Sequence[str], prompt: str, options: EmbedOptions, *, first_index: int = 0
) -> ModelInputs:
    """Tokenise *texts* as *options* require, each with *prompt* before it. Blocks while it works.

    Args:
        tokenizer: that of the model.
        texts: a request's texts, or some of them.
        prompt: of the model; may be empty.
        options: the request's options.
        first_index: the place of the first of *texts* in the request, for errors.

    Raises:
        InvalidInputError: the model sees nothing of a text, or *options* forbid truncation and a text is too long;
            names the first such text.
    """
    if options.long_text != "truncate":
        windows = tokenizer.windows(texts, prompt=prompt, with_spans=options.long_text == "chunks")
        if not options.allow_blank:
            reject_blank(tokenizer, texts, windows, prompt, first_index=first_index)
        return ModelInputs([item for parts in windows for item in parts], [len(parts) for parts in windows])
    side = None if options.truncate == "none" else options.truncate
    items = tokenizer.tokenize(texts, prompt=prompt, side=side, limit=options.max_tokens)
    if not options.allow_blank:
        reject_blank(tokenizer, texts, [[item] for item in items], prompt, first_index=first_index)
    if options.truncate == "none":
        _reject_truncated(items, tokenizer.longest(options.max_tokens), first_index)
    return ModelInputs(items)


def clip(
    tokenizer: TextTokenizer, texts: Sequence[str], options: EmbedOptions
) -> tuple[Sequence[str], Collection[int]]:
    """Drop characters that are far beyond the model's input, so that a huge text costs no more than a long one.

    Args:
        tokenizer: that of the model.
        texts: a request's texts.
        options: the request's options.

    Returns:
        The texts, and the indexes of those that were clipped.

    Raises:
        TextTooLongError: a text would be clipped, and *options* forbid truncation.
    """
    if tokenizer.max_tokens is None or options.long_text != "truncate":
        return texts, ()
    limit = tokenizer.max_tokens * CLIP_CHARACTERS_PER_TOKEN
    clipped = {index for index, text in enumerate(texts) if len(text) > limit}
    if not clipped:
        return texts, ()
    if options.truncate == "none":
        index = min(clipped)
        raise TextTooLongError(
            f"Text {index} has {len(texts[index])} characters, which is too many for the {tokenizer.max_tokens} tokens "
            "that the model accepts.",
            hint="truncate='none' forbids truncation.",
            extensions={"index": index, "limit": tokenizer.max_tokens},
        )
    kept = slice(-limit, None) if (options.truncate or tokenizer.default_side) == "start" else slice(limit)
    return [text[kept] if index in clipped else text for index, text in enumerate(texts)], clipped


def reject_blank(
    tokenizer: TextTokenizer,
    texts: Sequence[str],
    windows: Sequence[Sequence[TokenizedText]],
    prompt: str,
    *,
    first_index: int = 0,
) -> None:
    """Reject a text of which the model sees only special tokens: all such texts would have the same vector.

    Raises:
        InvalidInputError: there is one; names the first.
    """
    if (index := tokenizer.first_blank(texts, windows, prompt=prompt)) is not None:
        index += first_index
        raise InvalidInputError(
            f"Text {index} is blank for this model: its tokenizer drops every character, as it does with invisible "
            "and control characters, or leaves only special tokens.",
            extensions={"index": index},
        )


def postprocess(vectors: Matrix, inputs: ModelInputs, options: EmbedOptions, model: Model) -> tuple[NDArray[Any], int]:
    """Check the model's vectors, then average, shorten, normalize and convert them as *options* require.

    Args:
        vectors: float32, one row per item of *inputs*.
        inputs: what the model has run.
        options: the request's options.
        model: the model that computed the vectors.

    Returns:
        The vectors, one row per text or per chunk, and the dimension of a vector. For the two binary types, which pack
        8 numbers into a byte, the dimension is larger than the number of columns.

    Raises:
        InvalidVectorError: a vector is not finite or has a norm of zero, before or after the changes.
        InvalidInputError: a number is too large for the dtype.
    """
    text_indexes = inputs.text_indexes
    check_finite_nonzero(vectors, text_indexes=text_indexes)
    if options.long_text == "mean" and inputs.window_counts is not None:
        vectors = weighted_means(vectors, [item.weight for item in inputs.items], inputs.window_counts)
        text_indexes = None
    if options.dimensions is not None:
        trained = model.card.matryoshka
        layer_norm = bool(trained and trained.layer_norm)
        vectors = truncate_dimensions(vectors, options.dimensions, layer_norm=layer_norm)
    if options.needs_unit_length:
        vectors = normalize(vectors)
    if options.long_text == "mean" or options.dimensions is not None:
        check_finite_nonzero(vectors, text_indexes=text_indexes)
    return convert(vectors, options.dtype), vectors.shape[1]


def _reject_truncated(items: Sequence[TokenizedText], max_tokens: int | None, first_index: int) -> None:
    for index, item in enumerate(items, first_index):
        if item.is_truncated:
            raise TextTooLongError(
                f"Text {index} has {item.tokens} tokens; the model accepts at most {max_tokens}.",
                hint="truncate='none' forbids truncation.",
                extensions={"index": index, "tokens": item.tokens, "limit": max_tokens},
            )
