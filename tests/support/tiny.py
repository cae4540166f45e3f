"""Tiny real models, made in the test session and loaded by the real FastEmbed: a `Gather` over a word table.

With mean pooling the vector of a text is the mean of its words' rows, so a test can say what must come out.
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = ("zero", "one", "two", "three", "four", "five", "warm", "poison", "nan", "null")
MAX_TOKENS = 16

Table = NDArray[np.float32]
Reference = Mapping[str, object]


def gather(table: Table, nodes: Sequence[onnx.NodeProto] = (), **weights: NDArray[np.generic]) -> onnx.ModelProto:
    """A model that gives each token its row of *table*; *nodes* may go on from `rows` to `last_hidden_state`."""
    first = helper.make_node("Gather", ["table", "input_ids"], ["rows" if nodes else "last_hidden_state"])
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])]
    if any("task_id" in node.input for node in nodes):
        inputs.append(helper.make_tensor_value_info("task_id", TensorProto.INT64, []))
    out = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "sequence", table.shape[1]])
    constants = [numpy_helper.from_array(values, name) for name, values in {"table": table, **weights}.items()]
    graph = helper.make_graph([first, *nodes], "tiny", inputs, [out], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model


@dataclass(frozen=True, slots=True)
class TinyModel:
    """What to make: the table's row of a word is `row(word)`.

    Attributes:
        graph: makes the ONNX graph of the table.
        canary: what the manifest holds as references.
        tokenizer_config: further keys of tokenizer_config.json.
        is_hashed: the manifest promises every other file of the folder.
    """

    name: str
    dim: int = 4
    stated_dim: int | None = None
    max_tokens: int = MAX_TOKENS
    normalized: bool = False
    words: tuple[str, ...] = WORDS
    graph: Callable[[Table], onnx.ModelProto] = gather
    prompts: Mapping[str, str] | None = None
    needs_prompt: bool | None = None
    matryoshka: tuple[int, ...] = ()
    canary: Sequence[Reference] = field(default_factory=tuple)
    tokenizer_config: Mapping[str, object] = field(default_factory=dict)
    is_hashed: bool = False

    def write(self, parent: Path) -> Path:
        """Make the model's folder below *parent*."""
        folder = parent / self.name.replace("/", "--")
        folder.mkdir(parents=True)
        self.write_files(folder)
        stated = {
            "prompts": self.prompts,
            "needs_prompt": self.needs_prompt,
            "matryoshka": list(self.matryoshka) or None,
            "canary": list(self.canary) or None,
            "files": promises(folder) if self.is_hashed else None,
        }
        manifest = {
            "name": self.name,
            "dim": self.stated_dim or self.dim,
            "max_tokens": self.max_tokens,
            "pooling": "mean",
            "normalized": self.normalized,
            "description": "A tiny model for tests.",
            "license": "apache-2.0",
            **{key: value for key, value in stated.items() if value is not None},
        }
        (folder / "model.json").write_text(json.dumps(manifest))
        return folder

    def write_files(self, folder: Path, model_file: str = "model.onnx") -> None:
        """Write what FastEmbed reads, and no manifest."""
        _write_tokenizer(folder, self)
        path = folder / model_file
        path.parent.mkdir(exist_ok=True)
        onnx.save(self.graph(table_of(self.words, self.dim)), path)


def promises(folder: Path) -> dict[str, object]:
    """The manifest's `files` for all that lies in *folder*."""
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
        for name, content in contents.items()
    }


def row(word: str, dim: int = 4) -> Table:
    """The vector of *word*: `nan` gives NaN, `null` gives zeros, `poison` makes the model fail."""
    if word == "nan":
        return np.full(dim, np.nan, np.float32)
    if word == "null" or word in SPECIAL:
        return np.zeros(dim, np.float32)
    return np.random.default_rng(zlib.crc32(word.encode())).standard_normal(dim).astype(np.float32)


def mean_of(words: Sequence[str], dim: int = 4) -> Table:
    """What the model must give for these words; two special tokens, which are zero, count as words."""
    total: Table = np.sum([row(word, dim) for word in words], axis=0)
    return total / np.float32(len(words) + 2)


def vocabulary_of(words: Sequence[str]) -> dict[str, int]:
    """Ids of the special tokens and *words*; `poison` is the last one, as its row is left out of the table."""
    kept = [word for word in (*SPECIAL, *words) if word != "poison"]
    return {word: number for number, word in enumerate([*kept, "poison"])}


def table_of(words: Sequence[str], dim: int) -> Table:
    """Rows of all words but `poison`, on which Gather therefore fails."""
    return np.stack([row(word, dim) for word in vocabulary_of(words) if word != "poison"])


def tokenizer_of(words: Sequence[str] = WORDS) -> Tokenizer:
    """The tokenizer of a tiny model, without a limit or padding."""
    vocabulary = vocabulary_of(words)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106 - a token of text
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    )
    return tokenizer


def _write_tokenizer(folder: Path, model: TinyModel) -> None:
    tokenizer_of(model.words).save(str(folder / "tokenizer.json"))
    config = {"model_max_length": model.max_tokens, "pad_token": "[PAD]", **model.tokenizer_config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"pad_token_id": 0}))
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "[PAD]", "unk_token": "[UNK]"}))
