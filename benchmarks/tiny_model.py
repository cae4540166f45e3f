"""A model that costs next to nothing: what is left of a request is the work of the service itself.

Its tokenizer and its dimension are those of the bundled model, so tokenising and JSON cost what they do there.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.tokens import MODEL_FOLDER

NAME = "tiny"
DIM, ROWS = 384, 64
TOKENIZER_FILES = ("config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json")


def write_tiny_model(parent: Path) -> None:
    """Write the folder `tiny` below *parent*. A token's vector is a row of a small table, a text's is their mean."""
    folder = parent / NAME
    folder.mkdir()
    for name in TOKENIZER_FILES:
        shutil.copyfile(MODEL_FOLDER / name, folder / name)
    onnx.save(_graph(), folder / "model.onnx")
    manifest = {
        "name": NAME,
        "dim": DIM,
        "max_tokens": 256,
        "pooling": "mean",
        "normalized": True,
        "description": "Costs next to nothing; for measurements of the service itself.",
        "license": "apache-2.0",
    }
    (folder / "model.json").write_text(json.dumps(manifest))


def _graph() -> onnx.ModelProto:
    table = np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float32)
    nodes = [
        helper.make_node("Mod", ["input_ids", "rows"], ["row"]),
        helper.make_node("Gather", ["table", "row"], ["last_hidden_state"]),
    ]
    graph = helper.make_graph(
        nodes,
        NAME,
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "sequence", DIM])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array(ROWS, np.int64), "rows")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
