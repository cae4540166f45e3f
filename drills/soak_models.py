"""Tiny models for the soak drill, which load and run in milliseconds."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

DIM, MAX_TOKENS = 16, 16
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "one", "two", "three", "nan", "poison")
"""`nan` has NaN as its vector. `poison` has no vector, so that a run with it fails."""


def write_tiny_model(parent: Path, name: str) -> None:
    """Write a model folder: an ONNX graph that looks up the vectors of words, a tokenizer, and `model.json`."""
    folder = parent / name.replace("/", "--")
    folder.mkdir(parents=True)
    onnx.save(_graph(), folder / "model.onnx")
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106 - not a password
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    files: dict[str, dict[str, object]] = {
        "tokenizer_config.json": {"model_max_length": MAX_TOKENS, "pad_token": "[PAD]"},
        "config.json": {"pad_token_id": 0},
        "special_tokens_map.json": {"pad_token": "[PAD]", "unk_token": "[UNK]"},
        "model.json": {
            "name": name,
            "dim": DIM,
            "max_tokens": MAX_TOKENS,
            "pooling": "mean",
            "normalized": False,
            "description": "A tiny model for the soak drill.",
            "license": "apache-2.0",
        },
    }
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content), encoding="utf-8")


def _graph() -> onnx.ModelProto:
    table = np.random.default_rng(0).standard_normal((len(WORDS) - 1, DIM)).astype(np.float32)
    table[WORDS.index("nan")] = np.nan
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])],
        "tiny",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "sequence", DIM])],
        [numpy_helper.from_array(table, "table")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
