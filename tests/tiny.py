"""Tiny real models, made in the test session and loaded by the real FastEmbed: a `Gather` over a word table.

With mean pooling the vector of a text is the mean of its words' rows, so a test can say what must come out.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = ("zero", "one", "two", "three", "four", "five", "warm", "poison", "nan", "null")
MAX_TOKENS = 16


@dataclass(frozen=True, slots=True)
class TinyModel:
    """What to make: the table's row of a word is `row(word)`."""

    name: str
    dim: int = 4
    stated_dim: int | None = None
    max_tokens: int = MAX_TOKENS
    normalized: bool = False

    def write(self, parent: Path) -> Path:
        """Make the model's folder below *parent*."""
        folder = parent / self.name.replace("/", "--")
        folder.mkdir(parents=True)
        _write_tokenizer(folder, self.max_tokens)
        onnx.save(_graph(self.dim), folder / "model.onnx")
        manifest = {
            "name": self.name,
            "dim": self.stated_dim or self.dim,
            "max_tokens": self.max_tokens,
            "pooling": "mean",
            "normalized": self.normalized,
            "description": "A tiny model for tests.",
            "license": "apache-2.0",
        }
        (folder / "model.json").write_text(json.dumps(manifest))
        return folder


def row(word: str, dim: int = 4) -> NDArray[np.float32]:
    """The vector of *word*: `nan` gives NaN, `null` gives zeros, `poison` makes the model fail."""
    if word == "nan":
        return np.full(dim, np.nan, np.float32)
    if word == "null" or word in SPECIAL:
        return np.zeros(dim, np.float32)
    return np.random.default_rng((*SPECIAL, *WORDS).index(word)).standard_normal(dim).astype(np.float32)


def mean_of(words: Sequence[str], dim: int = 4) -> NDArray[np.float32]:
    """What the model must give for these words; two special tokens, which are zero, count as words."""
    total: NDArray[np.float32] = np.sum([row(word, dim) for word in words], axis=0)
    return total / np.float32(len(words) + 2)


def _graph(dim: int) -> onnx.ModelProto:
    """Rows of the table; `poison` is the last word, and its row is left out, so that Gather fails on it."""
    words = [word for word in (*SPECIAL, *WORDS) if word != "poison"]
    table = numpy_helper.from_array(np.stack([row(word, dim) for word in words]), "table")
    node = helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
    out = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "sequence", dim])
    graph = helper.make_graph([node], "tiny", [ids], [out], [table])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def _write_tokenizer(folder: Path, max_tokens: int) -> None:
    words = [word for word in (*SPECIAL, *WORDS) if word != "poison"]
    vocabulary = {word: number for number, word in enumerate([*words, "poison"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106 - a token of text
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"model_max_length": max_tokens, "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"pad_token_id": 0}))
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "[PAD]", "unk_token": "[UNK]"}))
