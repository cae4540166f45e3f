"""Turns texts into tokens: counts them, truncates at either end, or splits into windows. Tokenises each text once.

A model sees ``before + prompt + body + after``: special tokens around the tokens of prompt and text. Only the body is
truncated, so a text that is too long keeps its prompt and its special tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import Literal

from tokenizers import Encoding, Tokenizer

Side = Literal["start", "end"]
Span = tuple[int, int]

SPACE_TOKENS = ("▁", "Ġ")
"""How tokenizers write a lone space: a text that is nothing else is as blank as a space."""
UNKNOWN_TOKENS = ("[UNK]", "<unk>")
"""Names of the token for what the vocabulary lacks, such as an emoji: input that the model sees."""


@dataclass(slots=True, eq=False)
class TokenizedText:
    """The tokens that the model sees of one text, or of one window of it.

    Attributes:
        tokens: number of tokens of the whole text, prompt and special tokens included, before truncation.
        ids: ids of the tokens that the model sees.
        weight: how many of *ids* are the text's own, without prompt and special tokens; 0 unless requested.
        span: start and end of these tokens in the caller's text, in characters; None unless requested.
        is_clipped: characters of the text were dropped before it was tokenised, so *tokens* are not all.
        is_blank: the model sees only special tokens of the text; set on its first window.
        length: number of tokens that the model sees.
    """

    tokens: int
    ids: Sequence[int]
    weight: int = 0
    span: Span | None = None
    is_clipped: bool = False
    is_blank: bool = False
    length: int = field(init=False)

    def __post_init__(self) -> None:
        self.length = len(self.ids)  # an attribute: it is read a dozen times on the way to the lane

    @property
    def is_truncated(self) -> bool:
        return self.is_clipped or self.length < self.tokens


@dataclass(frozen=True, slots=True)
class Token:
    """One token. *start* and *end* are characters of the caller's text; None for special tokens and prompts."""

    token: str
    id: int
    start: int | None = None
    end: int | None = None
    special: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class _Parts:
    """The token ids of one text by their purpose; *offsets* are those of the body, empty unless requested."""

    before: list[int]
    prompt: list[int]
    body: list[int]
    after: list[int]
    offsets: list[Span]

    def around(self, body: Sequence[int]) -> list[int]:
        return [*self.before, *self.prompt, *body, *self.after]

    def max_body_tokens(self, max_tokens: int) -> int:
        """Return how many tokens of the body fit into an input of *max_tokens*; at least 1."""
        return max(1, max_tokens - len(self.before) - len(self.prompt) - len(self.after))


class TextTokenizer:
    """One model's tokenizer. Several threads may use it at once."""

    def __init__(self, tokenizer: Tokenizer, *, adds_special_tokens: bool, max_tokens: int | None) -> None:
        """Take over *tokenizer* and disable its own truncation and padding.

        Args:
            tokenizer: as FastEmbed has set it up.
            adds_special_tokens: whether the model expects them.
            max_tokens: longest input that the model's manifest states; the tokenizer's limit may be lower. None: not
                stated.
        """
        truncation = tokenizer.truncation or {}
        limits = [limit for limit in (truncation.get("max_length"), max_tokens) if limit]
        self.max_tokens: int | None = min(limits, default=None)
        self.default_side: Side = "start" if truncation.get("direction") == "left" else "end"
        self._tokenizer = tokenizer
        self._adds_special_tokens = adds_special_tokens
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._blank_ids = _blank_ids(tokenizer, adds_special_tokens=adds_special_tokens)

    def tokenize(
        self, texts: Sequence[str], *, prompt: str = "", side: Side | None = None, limit: int | None = None
    ) -> list[TokenizedText]:
        """Count the tokens of *texts*, and truncate texts that are longer than the model's input.

        Args:
            texts: the caller's texts.
            prompt: a prefix for each of them.
            side: the end at which a text that is too long loses tokens; None: as the model's tokenizer is set up.
            limit: a number of tokens below the model's input to which texts are truncated; None: the model's input.

        Returns:
            One entry per text, in the order given.
        """
        side = side or self.default_side
        # Truncating at the end works without knowing which tokens are the prompt's; truncating at the start does not.
        encodings = self._encode(texts, prompt, with_offsets=bool(prompt) and side == "start")
        longest = self.longest(limit)
        return [self._truncate(encoding, prompt, side, longest) for encoding in encodings]

    def longest(self, limit: int | None) -> int | None:
        """Return the longest input if callers allow no more than *limit* tokens; None: any length."""
        if limit is None or self.max_tokens is None:
            return self.max_tokens if limit is None else limit
        return min(self.max_tokens, limit)

    def windows(self, texts: Sequence[str], *, prompt: str = "", with_spans: bool = False) -> list[list[TokenizedText]]:
        """Split *texts* into windows of the model's maximum length, between tokens and without overlap.

        Each window gets the prompt and special tokens. A text that fits is one window.

        Returns:
            Per text, its windows in order; with *with_spans*, each has its `TokenizedText.span`.
        """
        encodings = self._encode(texts, prompt, with_offsets=bool(prompt) or with_spans)
        return [self._windows_of(encoding, prompt, with_spans=with_spans) for encoding in encodings]

    def blank(
        self, texts: Sequence[str], windows: Sequence[Sequence[TokenizedText]], *, prompt: str = ""
    ) -> Iterator[int]:
        """Yield the indexes of the texts of which the model sees only special tokens.

        Args:
            texts: the caller's texts.
            windows: what the model sees of each.
            prompt: the prefix with which they were tokenised; it does not count.
        """
        start = 0
        if prompt:
            parts = _split(self._encode([prompt], "", with_offsets=False)[0], "")
            start = len(parts.before) + len(parts.body)
        for index, items in enumerate(windows):
            if (
                self._is_blank(items[0].ids, start)
                and all(self._is_blank(item.ids, start) for item in items[1:])
                and (
                    # A prompt may share a token with the text, so only the text alone is certain.
                    not prompt or self._is_blank(self._encode([texts[index]], "", with_offsets=False)[0].ids)
                )
            ):
                yield index

    def _is_blank(self, ids: Sequence[int], start: int = 0) -> bool:
        return self._blank_ids.issuperset(islice(ids, start, None))

    def tokens_of(self, texts: Sequence[str], *, prompt: str = "") -> list[list[Token]]:
        """Return every token of *texts*, special tokens and prompt included, before truncation."""
        return [
            [
                _token(text, number, span, prompt_characters=len(prompt), is_special=bool(is_special))
                for text, number, span, is_special in zip(
                    encoding.tokens, encoding.ids, encoding.offsets, encoding.special_tokens_mask, strict=True
                )
            ]
            for encoding in self._encode(texts, prompt, with_offsets=True)
        ]

    def _encode(self, texts: Sequence[str], prompt: str, *, with_offsets: bool) -> list[Encoding]:
        whole = [prompt + text for text in texts] if prompt else list(texts)
        encode = self._tokenizer.encode_batch if with_offsets else self._tokenizer.encode_batch_fast
        return encode(whole, add_special_tokens=self._adds_special_tokens)

    def _truncate(self, encoding: Encoding, prompt: str, side: Side, limit: int | None) -> TokenizedText:
        ids = encoding.ids
        if limit is None or len(ids) <= limit:
            return TokenizedText(len(ids), ids)
        parts = _split(encoding, prompt if side == "start" else "")
        kept = parts.max_body_tokens(limit)
        return TokenizedText(len(ids), parts.around(parts.body[-kept:] if side == "start" else parts.body[:kept]))

    def _windows_of(self, encoding: Encoding, prompt: str, *, with_spans: bool) -> list[TokenizedText]:
        parts = _split(encoding, prompt, with_offsets=with_spans)
        count, tokens = len(parts.body), len(encoding.ids)
        size = count if self.max_tokens is None else parts.max_body_tokens(self.max_tokens)
        return [
            TokenizedText(
                tokens,
                parts.around(parts.body[start : start + size]),
                weight=min(size, count - start),
                span=_span(parts.offsets[start : start + size], len(prompt)) if with_spans else None,
            )
            for start in range(0, max(1, count), max(1, size))
        ]


def _blank_ids(tokenizer: Tokenizer, *, adds_special_tokens: bool) -> frozenset[int]:
    """Return the ids of tokens that are no content: special ones, and a lone space."""
    added = tokenizer.get_added_tokens_decoder().items()
    special = {number for number, token in added if token.special and token.content not in UNKNOWN_TOKENS}
    # Static models, the only ones without special tokens, skip unknown ones.
    named = SPACE_TOKENS if adds_special_tokens else (*SPACE_TOKENS, *UNKNOWN_TOKENS)
    numbers = [number for name in named if (number := tokenizer.token_to_id(name)) is not None]
    return frozenset([*special, *numbers, *tokenizer.encode("", add_special_tokens=adds_special_tokens).ids])


def _split(encoding: Encoding, prompt: str, *, with_offsets: bool = False) -> _Parts:
    """Split the tokens of *encoding* by purpose. With a prompt or *with_offsets*, it must contain offsets."""
    ids, mask = encoding.ids, encoding.special_tokens_mask
    before = sum(takewhile(bool, mask))
    end = len(ids) - (sum(takewhile(bool, reversed(mask))) if before < len(ids) else 0)
    offsets = encoding.offsets[before:end] if prompt or with_offsets else []
    # A token that spans prompt and text belongs to the text.
    prompt_tokens = sum(1 for _ in takewhile(lambda span: span[1] <= len(prompt), offsets)) if prompt else 0
    body = before + prompt_tokens
    return _Parts(ids[:before], ids[before:body], ids[body:end], ids[end:], offsets[prompt_tokens:])


def _token(text: str, number: int, span: Span, *, prompt_characters: int, is_special: bool) -> Token:
    if is_special or span[1] <= prompt_characters:
        return Token(text, number, special=is_special)
    return Token(text, number, *_shift(span, prompt_characters))


def _span(offsets: Sequence[Span], prompt_characters: int) -> Span:
    """Return start and end of some tokens in the text; tokens without characters of their own do not count."""
    real = [span for span in offsets if span[1] > span[0]]
    if not real:
        return (0, 0)
    return _shift((min(start for start, _ in real), max(end for _, end in real)), prompt_characters)


def _shift(span: Span, prompt_characters: int) -> Span:
    return (max(0, span[0] - prompt_characters), max(0, span[1] - prompt_characters))
