"""What happens to a request's texts before the model runs (preprocess) and to its vectors afterwards (postprocess)."""

from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain, islice
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


@dataclass(slots=True)
class ModelInputs:
    """The tokenised texts of one request.

    Attributes:
        items: what the model runs: one item per text, or one per window of a text.
        window_counts: per text, its number of windows; None: the texts are not split into windows.
        indexes: per text, its index in the request; None: these are all texts of it.
    """

    items: list[TokenizedText]
    window_counts: list[int] | None = None
    indexes: Sequence[int] | None = None

    @classmethod
    def join(cls, parts: Sequence["ModelInputs"]) -> "ModelInputs":
        """Return the inputs of one request whose texts were tokenised in several *parts*, in their order."""
        counts = [part.window_counts for part in parts if part.window_counts is not None]
        return cls([item for part in parts for item in part.items], list(chain(*counts)) if counts else None)

    @property
    def by_text(self) -> list[list[TokenizedText]]:
        """Per text, its items."""
        if self.window_counts is None:
            return [[item] for item in self.items]
        items = iter(self.items)
        return [list(islice(items, count)) for count in self.window_counts]

    def compact(self) -> None:
        """Store the ids in a tenth of the memory, for texts that wait for long."""
        for item in self.items:
            item.ids = array("I", item.ids)

    @property
    def text_indexes(self) -> Sequence[int] | None:
        """Per item, the index of its text in the request; None: it is the item's own index."""
        if self.window_counts is None:
            return self.indexes
        indexes = self.indexes or range(len(self.window_counts))
        return [index for index, count in zip(indexes, self.window_counts, strict=True) for _ in range(count)]

    @property
    def tokens(self) -> list[int]:
        """Per text, the number of its tokens before truncation."""
        return [item.tokens for item in self._first_items]

    @property
    def truncated(self) -> list[bool]:
        """Per text, whether the model sees only a part of it. Windows together contain all of the text."""
        return [self.window_counts is None and item.is_truncated for item in self._first_items]

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
    tokenizer: TextTokenizer,
    texts: Sequence[str],
    prompt: str,
    options: EmbedOptions,
    *,
    indexes: Sequence[int] | None = None,
) -> ModelInputs:
    """Tokenise *texts* as *options* require, each with *prompt* before it. Blocks while it works.

    Args:
        tokenizer: that of the model.
        texts: a request's texts, or some of them.
        prompt: of the model; may be empty.
        options: the request's options.
        indexes: per text, its index in the request, for errors; None: these are all texts of it.

    Raises:
        InvalidInputError: the model sees nothing of a text, or *options* forbid truncation and a text is too long;
            names the first such text.
    """
    if options.long_text != "truncate":
        windows = tokenizer.windows(texts, prompt=prompt, with_spans=options.long_text == "chunks")
        find_blank(tokenizer, texts, windows, prompt, indexes=indexes, are_allowed=options.allow_blank)
        return ModelInputs([item for parts in windows for item in parts], [len(parts) for parts in windows])
    side = None if options.truncate == "none" else options.truncate
    items = tokenizer.tokenize(texts, prompt=prompt, side=side, limit=options.max_tokens)
    single = [[item] for item in items]
    find_blank(tokenizer, texts, single, prompt, indexes=indexes, are_allowed=options.allow_blank)
    if options.truncate == "none":
        _reject_truncated(items, tokenizer.longest(options.max_tokens), indexes)
    return ModelInputs(items)


def clip(
    tokenizer: TextTokenizer, texts: Sequence[str], options: EmbedOptions, *, indexes: Sequence[int] | None = None
) -> tuple[Sequence[str], Collection[int]]:
    """Drop characters that are far beyond the model's input, so that a huge text costs no more than a long one.

    Args:
        tokenizer: that of the model.
        texts: a request's texts.
        options: the request's options.
        indexes: as `preprocess`.

    Returns:
        The texts, and the places in *texts* of those that were clipped.

    Raises:
        TextTooLongError: a text would be clipped, and *options* forbid truncation.
    """
    limit = clip_limit(tokenizer, options)
    if limit is None:
        return texts, ()
    clipped = {index for index, text in enumerate(texts) if len(text) > limit}
    if not clipped:
        return texts, ()
    if options.truncate == "none":
        first = min(clipped)
        index = indexes[first] if indexes else first
        raise TextTooLongError(
            f"Text {index} has {len(texts[first])} characters, which is too many for the {tokenizer.max_tokens} tokens "
            "that the model accepts.",
            hint="truncate='none' forbids truncation.",
            extensions={"index": index, "limit": tokenizer.max_tokens},
        )
    kept = slice(-limit, None) if (options.truncate or tokenizer.default_side) == "start" else slice(limit)
    return [text[kept] if index in clipped else text for index, text in enumerate(texts)], clipped


def clip_limit(tokenizer: TextTokenizer, options: EmbedOptions) -> int | None:
    """Return the number of characters that `clip` leaves of a text; None: all."""
    if tokenizer.max_tokens is None or options.long_text != "truncate":
        return None
    return tokenizer.max_tokens * CLIP_CHARACTERS_PER_TOKEN


def find_blank(
    tokenizer: TextTokenizer,
    texts: Sequence[str],
    windows: Sequence[Sequence[TokenizedText]],
    prompt: str,
    *,
    indexes: Sequence[int] | None = None,
    are_allowed: bool = False,
) -> None:
    """Reject a text of which the model sees only special tokens: all such texts would have the same vector.

    If they *are_allowed*, set their `TokenizedText.is_blank` instead.

    Raises:
        InvalidInputError: there is one; names the first.
    """
    for place in tokenizer.blank(texts, windows, prompt=prompt):
        if are_allowed:
            windows[place][0].is_blank = True
            continue
        index = indexes[place] if indexes else place
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
    return finish(
        pool(vectors, inputs, options),
        options,
        model,
        text_indexes=inputs.text_indexes if options.long_text == "chunks" else inputs.indexes,
    )


def pool(vectors: Matrix, inputs: ModelInputs, options: EmbedOptions) -> Matrix:
    """Check the model's vectors, and average the windows of each text if *options* require it.

    Returns:
        Float32, one row per text or per chunk. It depends on no other option, so it can be kept for later requests.

    Raises:
        InvalidVectorError: a vector is not finite or has a norm of zero, before or after averaging.
    """
    check_finite_nonzero(vectors, text_indexes=inputs.text_indexes)
    if options.long_text == "mean" and inputs.window_counts is not None:
        vectors = weighted_means(vectors, [item.weight for item in inputs.items], inputs.window_counts)
        check_finite_nonzero(vectors, text_indexes=inputs.indexes)
    return vectors


def finish(
    vectors: Matrix, options: EmbedOptions, model: Model, *, text_indexes: Sequence[int] | None = None
) -> tuple[NDArray[Any], int]:
    """Shorten, normalize and convert vectors as *options* require, each without the others.

    Args:
        vectors: as `pool` returns them. Nothing is written into them, but the result may be the same array.
        options: the request's options.
        model: the model that computed the vectors.
        text_indexes: per row, the index of its text in the request, for errors; None: it is the row's own index.

    Returns:
        As `postprocess`.

    Raises:
        InvalidVectorError: a vector is not finite or has a norm of zero after the changes.
        InvalidInputError: a number is too large for the dtype.
    """
    if options.dimensions is not None:
        trained = model.card.matryoshka
        layer_norm = bool(trained and trained.layer_norm)
        vectors = truncate_dimensions(vectors, options.dimensions, layer_norm=layer_norm)
    if options.needs_unit_length:
        vectors = normalize(vectors)
    if options.dimensions is not None:
        check_finite_nonzero(vectors, text_indexes=text_indexes)
    return convert(vectors, options.dtype), vectors.shape[1]


def _reject_truncated(items: Sequence[TokenizedText], max_tokens: int | None, indexes: Sequence[int] | None) -> None:
    for index, item in zip(indexes or range(len(items)), items, strict=True):
        if item.is_truncated:
            raise TextTooLongError(
                f"Text {index} has {item.tokens} tokens; the model accepts at most {max_tokens}.",
                hint="truncate='none' forbids truncation.",
                extensions={"index": index, "tokens": item.tokens, "limit": max_tokens},
            )
