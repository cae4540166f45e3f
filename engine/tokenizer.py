"""Text in, tokens out: counted whole, cut at either end, or cut into windows. A text is tokenised once.

What a model sees is ``before + prompt + body + after``: special tokens around the tokens of prompt and text. Only the
body is ever cut, so a text that is too long keeps its prompt and its special tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from tokenizers import Encoding, Tokenizer

Side = Literal["start", "end"]
Span = tuple[int, int]


@dataclass(slots=True, eq=False)
class TokenizedText:
    """What the model sees of one text, or of one window of it.

    Attributes:
        tokens: of the whole text, prompt and special tokens included, before any cut.
        ids: of the tokens that the model sees.
        weight: how many of *ids* are the text's own, without prompt and special tokens; 0 where it was not asked for.
        span: the characters of the caller's text from the first of these tokens to the last one; None where it was
            not asked for.
    """

    tokens: int
    ids: Sequence[int]
    weight: int = 0
    span: Span | None = None

    @property
    def length(self) -> int:
        """Tokens that the model sees."""
        return len(self.ids)

    @property
    def is_truncated(self) -> bool:
        return len(self.ids) < self.tokens


@dataclass(frozen=True, slots=True)
class Token:
    """One token; its characters are those of the caller's text, None for special tokens and those of a prompt."""

    token: str
    id: int
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True, slots=True)
class _Parts:
    """The tokens of one text by their purpose; *offsets* are those of the body, as far as they were asked for."""

    before: list[int]
    prompt: list[int]
    body: list[int]
    after: list[int]
    offsets: list[Span]

    def around(self, body: Sequence[int]) -> list[int]:
        return [*self.before, *self.prompt, *body, *self.after]

    def room(self, max_tokens: int) -> int:
        """Tokens of the body that fit into an input of *max_tokens*; at least 1."""
        return max(1, max_tokens - len(self.before) - len(self.prompt) - len(self.after))


class TextTokenizer:
    """One model's tokenizer. It may be used by several threads at once."""

    def __init__(self, tokenizer: Tokenizer, *, adds_special_tokens: bool, max_tokens: int | None) -> None:
        """Take over *tokenizer*: its own cutting and padding are switched off.

        Args:
            tokenizer: as FastEmbed has set it up.
            adds_special_tokens: whether the model wants them.
            max_tokens: longest input as the model's manifest has it; the tokenizer may say less. None: not stated.
        """
        cut = tokenizer.truncation or {}
        limits = [limit for limit in (cut.get("max_length"), max_tokens) if limit]
        self.max_tokens: int | None = min(limits, default=None)
        self.default_side: Side = "start" if cut.get("direction") == "left" else "end"
        self._tokenizer = tokenizer
        self._adds_special_tokens = adds_special_tokens
        tokenizer.no_truncation()
        tokenizer.no_padding()

    def cut(self, texts: Sequence[str], *, prompt: str = "", side: Side | None = None) -> list[TokenizedText]:
        """Count the tokens of *texts*, each whole, and cut those that are longer than the model's input.

        Args:
            texts: the callers' texts.
            prompt: what stands before each of them.
            side: where a text that is too long loses tokens; None: as the model's tokenizer is set up.

        Returns:
            One entry per text, in the order given.
        """
        side = side or self.default_side
        # The end can be cut off without knowing which tokens are the prompt's; the start cannot.
        encodings = self._encode(texts, prompt, with_offsets=bool(prompt) and side == "start")
        return [self._cut_one(encoding, prompt, side) for encoding in encodings]

    def windows(self, texts: Sequence[str], *, prompt: str = "", with_spans: bool = False) -> list[list[TokenizedText]]:
        """Cut *texts* into windows of the model's length, along the borders of tokens and without overlap.

        Each window has the prompt and the special tokens of its own. A text that fits is one window.

        Returns:
            Per text its windows, in their order; with *with_spans* each with its characters.
        """
        encodings = self._encode(texts, prompt, with_offsets=bool(prompt) or with_spans)
        return [self._windows_of(encoding, prompt, with_spans=with_spans) for encoding in encodings]

    def tokens_of(self, texts: Sequence[str], *, prompt: str = "") -> list[list[Token]]:
        """Every token of *texts*, special tokens and those of the prompt included, before any cut."""
        return [
            [
                Token(text, number, *(() if is_special or span[1] <= len(prompt) else _moved(span, len(prompt))))
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

    def _cut_one(self, encoding: Encoding, prompt: str, side: Side) -> TokenizedText:
        ids, most = encoding.ids, self.max_tokens
        if most is None or len(ids) <= most:
            return TokenizedText(len(ids), ids)
        parts = _parts(encoding, prompt if side == "start" else "")
        room = parts.room(most)
        return TokenizedText(len(ids), parts.around(parts.body[-room:] if side == "start" else parts.body[:room]))

    def _windows_of(self, encoding: Encoding, prompt: str, *, with_spans: bool) -> list[TokenizedText]:
        parts = _parts(encoding, prompt, with_offsets=with_spans)
        count, tokens = len(parts.body), len(encoding.ids)
        room = count if self.max_tokens is None else parts.room(self.max_tokens)
        return [
            TokenizedText(
                tokens,
                parts.around(parts.body[start : start + room]),
                weight=min(room, count - start),
                span=_span(parts.offsets[start : start + room], len(prompt)) if with_spans else None,
            )
            for start in range(0, max(1, count), max(1, room))
        ]


def _parts(encoding: Encoding, prompt: str, *, with_offsets: bool = False) -> _Parts:
    """Tell the tokens of *encoding* apart; with a prompt or *with_offsets* it must have been made with offsets."""
    ids, mask = encoding.ids, encoding.special_tokens_mask
    before = sum(takewhile(bool, mask))
    end = len(ids) - (sum(takewhile(bool, reversed(mask))) if before < len(ids) else 0)
    offsets = encoding.offsets[before:end] if prompt or with_offsets else []
    # A token on the border of prompt and text belongs to the text.
    head = sum(1 for _ in takewhile(lambda span: span[1] <= len(prompt), offsets)) if prompt else 0
    body = before + head
    return _Parts(ids[:before], ids[before:body], ids[body:end], ids[end:], offsets[head:])


def _span(offsets: Sequence[Span], prompt_characters: int) -> Span:
    """From the first to the last character; some tokens have no character of their own."""
    real = [span for span in offsets if span[1] > span[0]]
    if not real:
        return (0, 0)
    return _moved((min(start for start, _ in real), max(end for _, end in real)), prompt_characters)


def _moved(span: Span, prompt_characters: int) -> Span:
    return (max(0, span[0] - prompt_characters), max(0, span[1] - prompt_characters))
