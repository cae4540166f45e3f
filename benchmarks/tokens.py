"""Counts tokens as the bundled model gets them, and writes texts of a given number of tokens.

A text's tokens are those that the model receives: with special tokens such as `[CLS]` and `[SEP]`, cut at the model's
limit, without padding.
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer

from benchmarks.machine import ROOT

MODEL_FOLDER = ROOT / "models/all-MiniLM-L6-v2"
FILLER = " the"
"""One token of the bundled model."""


class TokenCounter:
    """The tokenizer of a model folder."""

    def __init__(self, folder: Path) -> None:
        self.max_tokens: int = json.loads((folder / "model.json").read_text("utf-8"))["max_tokens"]
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def count(self, texts: Sequence[str]) -> list[int]:
        return [min(len(encoded.ids), self.max_tokens) for encoded in self._tokenizer.encode_batch_fast(list(texts))]

    def cut(self, text: str) -> str:
        """Return *text*, or its longest beginning of whole words that is not above the model's limit."""
        encoded = self._tokenizer.encode(text)
        if len(encoded.ids) <= self.max_tokens:
            return text
        first_cut, _ = encoded.offsets[self.max_tokens - 1]  # one place is the last special token's
        return text[:first_cut].rpartition(" ")[0]

    def fill(self, text: str) -> str:
        """Return *text* cut or continued so that it has exactly as many tokens as the model accepts."""
        text = self.cut(text)
        return text + FILLER * (self.max_tokens - self.count([text])[0])


@cache
def bundled_tokens() -> TokenCounter:
    return TokenCounter(MODEL_FOLDER)
