"""Tiny models of other kinds: quantised, sensitive to padding, with tasks, static; and hub caches with such models."""

import json
import re
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from tokenizers import Tokenizer

from engine.self_check import PROBES
from tests.support.tiny import SPECIAL, WORDS, Table, TinyModel, gather, row, table_of, tokenizer_of, vocabulary_of

PROBE_WORDS = tuple(dict.fromkeys([*WORDS, *(word for probe in PROBES for word in re.findall(r"\w+|[^\w\s]+", probe))]))
"""Words of the self-check's texts, so that they are not all unknown to the model."""
TROUBLE_WORDS = (*PROBE_WORDS, "slow", "hang", "hungry")
SLOW_ROUNDS, ENDLESS_ROUNDS = 1_000_000, 1 << 40
"""A round takes 1 to 10 microseconds, so these take some seconds and some weeks."""
IMPOSSIBLE_SIZE = 1 << 46
"""Number of float32 values: 256 TiB, twice what a process can address, so that every system refuses to allocate it."""
COMMIT = "0123456789abcdef0123456789abcdef01234567"

TASKED, TASKED_DIM = "jinaai/jina-embeddings-v3", 1024
STATIC, STATIC_DIM = "minishlab/potion-base-8M", 256


def nan_for_unknown(table: Table) -> onnx.ModelProto:
    """Return a model with NaN for unknown words."""
    changed = table.copy()
    changed[SPECIAL.index("[UNK]")] = np.nan
    return gather(changed)


def matmul(table: Table) -> onnx.ModelProto:
    """Return a model that multiplies each token's row by a matrix, which dynamic quantisation can quantise."""
    weights = np.stack([row(f"weights {number}", table.shape[1]) for number in range(table.shape[1])])
    return gather(table, [helper.make_node("MatMul", ["rows", "weights"], ["last_hidden_state"])], weights=weights)


def one_at_a_time(table: Table) -> onnx.ModelProto:
    """Return a model exported for a batch of one text."""
    model = gather(table)
    for end in (*model.graph.input, *model.graph.output):
        end.type.tensor_type.shape.dim[0].dim_value = 1
    return model


def padding_sensitive(table: Table) -> onnx.ModelProto:
    """Return a model that adds to each token's row a vector proportional to the padded length of the run."""
    step = row("a step", table.shape[1])
    nodes = [
        helper.make_node("Shape", ["input_ids"], ["length"], start=1, end=2),
        helper.make_node("Cast", ["length"], ["number"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["number", "step"], ["shift"]),
        helper.make_node("Add", ["rows", "shift"], ["last_hidden_state"]),
    ]
    return gather(table, nodes, step=step)


def noisy(table: Table) -> onnx.ModelProto:
    """Return a model whose vectors differ in each run."""
    nodes = [
        helper.make_node("RandomNormalLike", ["rows"], ["noise"]),
        helper.make_node("Add", ["rows", "noise"], ["last_hidden_state"]),
    ]
    return gather(table, nodes)


def troubled(table: Table) -> onnx.ModelProto:
    """Return a model that the last three of TROUBLE_WORDS make slow, endless or too large for memory.

    Each `slow` or `hang` in a text adds rounds of a loop; `hungry` allocates an array that no machine can address.
    """
    vocabulary = vocabulary_of(TROUBLE_WORDS)
    numbers: dict[str, NDArray[Any]] = {
        "costs": np.array([SLOW_ROUNDS, ENDLESS_ROUNDS, 0], np.int64),
        "sizes": np.array([0, 0, IMPOSSIBLE_SIZE], np.int64),
        "troubles": np.array([vocabulary[word] for word in ("slow", "hang", "hungry")], np.int64),
        "one": np.array([1], np.int64),
        "start": np.zeros((), np.float32),
        "last": np.array([-1], np.int64),
        "texts": np.array([0, 1], np.int64),
        "nothing": np.zeros((), np.float32),
    }
    scalar = partial(helper.make_tensor_value_info, shape=[])
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["goes_on"]), helper.make_node("Sin", ["number"], ["next"])],
        "round",
        [scalar("round", TensorProto.INT64), scalar("go_on", TensorProto.BOOL), scalar("number", TensorProto.FLOAT)],
        [scalar("goes_on", TensorProto.BOOL), scalar("next", TensorProto.FLOAT)],
    )
    nodes = [
        helper.make_node("Unsqueeze", ["input_ids", "last"], ["each_id"]),
        helper.make_node("Equal", ["each_id", "troubles"], ["is_trouble"]),
        helper.make_node("Cast", ["is_trouble"], ["trouble"], to=TensorProto.INT64),
        helper.make_node("ReduceSum", ["trouble", "texts"], ["found"], keepdims=0),
        helper.make_node("Mul", ["found", "costs"], ["each_cost"]),
        helper.make_node("ReduceSum", ["each_cost"], ["rounds"], keepdims=0),
        helper.make_node("Loop", ["rounds", "", "start"], ["looped"], body=body),
        helper.make_node("Mul", ["found", "sizes"], ["each_size"]),
        helper.make_node("ReduceSum", ["each_size"], ["size"], keepdims=0),
        helper.make_node("Add", ["size", "one"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["filled"]),
        helper.make_node("ReduceMean", ["filled"], ["mean"], keepdims=0),
        helper.make_node("Add", ["looped", "mean"], ["sum"]),
        helper.make_node("Mul", ["sum", "nothing"], ["zero"]),
        helper.make_node("Add", ["rows", "zero"], ["last_hidden_state"]),
    ]
    return gather(table, nodes, **numbers)


def too_large(table: Table) -> onnx.ModelProto:
    """Return a model that needs more memory than any machine has, whatever the text."""
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["filled"]),
        helper.make_node("ReduceMean", ["filled"], ["mean"], keepdims=0),
        helper.make_node("Add", ["rows", "mean"], ["last_hidden_state"]),
    ]
    return gather(table, nodes, shape=np.array([IMPOSSIBLE_SIZE], np.int64))


def with_tasks(table: Table) -> onnx.ModelProto:
    """Return a model that adds `task_shift` times the task's id to each token's row."""
    nodes = [
        helper.make_node("Cast", ["task_id"], ["number"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["number", "step"], ["shift"]),
        helper.make_node("Add", ["rows", "shift"], ["last_hidden_state"]),
    ]
    return gather(table, nodes, step=task_shift())


def task_shift() -> Table:
    return row("a task", TASKED_DIM)


def write_quantised(parent: Path, name: str) -> Path:
    """Write a model with a matrix product quantised dynamically to int8: its scale is taken over the whole run."""
    folder = TinyModel(name, dim=16, max_tokens=64, words=PROBE_WORDS, graph=matmul).write(parent)
    whole = folder / "whole.onnx"
    (folder / "model.onnx").rename(whole)
    quantize_dynamic(
        whole,
        folder / "model.onnx",
        op_types_to_quantize=["MatMul"],
        weight_type=QuantType.QInt8,
    )
    whole.unlink()
    return folder


def write_padding_sensitive(parent: Path, name: str) -> Path:
    return TinyModel(name, dim=16, max_tokens=64, words=PROBE_WORDS, graph=padding_sensitive).write(parent)


def cache_tasked(cache_dir: Path) -> None:
    """Write a model with tasks into a hub cache, as the registry's TASKED."""
    folder = snapshot_of(TASKED, cache_dir)
    TinyModel(TASKED, dim=TASKED_DIM, graph=with_tasks).write_files(folder, "onnx/model.onnx")
    (folder / "onnx" / "model.onnx_data").touch()


def cache_static(cache_dir: Path) -> None:
    """Write a static model into a hub cache, as the registry's STATIC."""
    folder = snapshot_of(STATIC, cache_dir)
    static_tokenizer().save(str(folder / "tokenizer.json"))
    table = np.vstack([table_of(PROBE_WORDS, STATIC_DIM), row("poison", STATIC_DIM)])
    write_safetensors(folder / "model.safetensors", "embeddings", table)


def snapshot_of(repository: str, cache_dir: Path) -> Path:
    """Create an empty snapshot in a hub cache, as the latest of *repository*, and return its folder."""
    folder = cache_dir / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    return snapshot


@cache
def static_tokenizer() -> Tokenizer:
    """Return a tokenizer that can add special tokens; static models do not use them."""
    return tokenizer_of(PROBE_WORDS)


def write_safetensors(path: Path, name: str, values: Table) -> None:
    """Write one tensor: eight bytes with the header's length, the header in JSON, the numbers."""
    tensors = {name: {"dtype": "F32", "shape": list(values.shape), "data_offsets": [0, values.nbytes]}}
    header = json.dumps(tensors).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + values.astype("<f4").tobytes())
