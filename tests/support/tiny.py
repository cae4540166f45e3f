"""Tiny real models, created in the test session and loaded by the real FastEmbed: a `Gather` over a table of words.

With mean pooling, the vector of a text is the mean of its words' rows, so a test can state the expected vector.
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
    """Return a model that maps each token to its row of *table*; *nodes* may turn `rows` into `last_hidden_state`."""
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
    """Describes a model folder to write. The table's row of a word is `row(word)`.

    Attributes:
        stated_dim: `dim` in the manifest, if it differs.
        graph: creates the ONNX graph from the table.
        canary: the manifest's references.
        tokenizer_config: further keys of tokenizer_config.json.
        is_hashed: the manifest states size and hash of every other file.
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
        """Create the model's folder below *parent* and return it."""
        folder = parent / self.name.replace("/", "--")
        folder.mkdir(parents=True)
        self.write_files(folder)
        stated = {
            "prompts": self.prompts,
            "needs_prompt": self.needs_prompt,
            "matryoshka": list(self.matryoshka) or None,
            "canary": list(self.canary) or None,
            "files": stated_files(folder) if self.is_hashed else None,
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
        """Write the files that FastEmbed reads, without a manifest."""
        _write_tokenizer(folder, self)
        path = folder / model_file
        path.parent.mkdir(exist_ok=True)
        onnx.save(self.graph(table_of(self.words, self.dim)), path)


def stated_files(folder: Path) -> dict[str, object]:
    """Return the manifest's `files` for all files in *folder*."""
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
        for name, content in contents.items()
    }


def row(word: str, dim: int = 4) -> Table:
    """Return the vector of *word*. The word `nan` has NaN, `null` has zeros; `poison` makes the model fail."""
    if word == "nan":
        return np.full(dim, np.nan, np.float32)
    if word == "null" or word in SPECIAL:
        return np.zeros(dim, np.float32)
    return np.random.default_rng(zlib.crc32(word.encode())).standard_normal(dim).astype(np.float32)


def mean_of(words: Sequence[str], dim: int = 4) -> Table:
    """Return the expected vector of these words; two special tokens, which are zero, count as words."""
    total: Table = np.sum([row(word, dim) for word in words], axis=0)
    return total / np.float32(len(words) + 2)


def vocabulary_of(words: Sequence[str]) -> dict[str, int]:
    """Return ids of the special tokens and *words*; `poison` is the last, because the table lacks its row."""
    kept = [word for word in (*SPECIAL, *words) if word != "poison"]
    return {word: number for number, word in enumerate([*kept, "poison"])}


def table_of(words: Sequence[str], dim: int) -> Table:
    """Return the rows of all words except `poison`, on which Gather therefore fails."""
    return np.stack([row(word, dim) for word in vocabulary_of(words) if word != "poison"])


def tokenizer_of(words: Sequence[str] = WORDS) -> Tokenizer:
    """Return the tokenizer of a tiny model, without truncation and padding."""
    vocabulary = vocabulary_of(words)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106 - not a password
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
