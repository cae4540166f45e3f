"""Runs `python main.py COMMAND` in a process, and writes what commands work on: model folders, a hub's repository."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engine.fastembed_adapter import registry_model
from tests.support.hubs import hub_environment
from tests.support.servers import ROOT
from tests.support.tiny import SPECIAL, WORDS, TinyModel, row

NO_HUB = "http://127.0.0.1:9"
"""A hub that refuses every connection at once: nothing listens on the port `discard`."""
HUB_MODEL = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"
HUB_MODEL_DIM = 384


@dataclass(frozen=True, slots=True)
class Outcome:
    """The exit code of a command, and what it printed to standard output and standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


RunCommand = Callable[..., Outcome]
"""The fixture `run_command` of tests/cli/conftest.py: arguments of the command, and settings as keywords."""


def command(*arguments: str, variables: Mapping[str, str], stdin: bytes = b"") -> Outcome:
    """Run `python main.py` with *arguments* in a process; *variables* are added to the environment."""
    done = subprocess.run(
        [sys.executable, "main.py", *arguments],
        cwd=ROOT,
        env=hub_environment(**{"HF_ENDPOINT": NO_HUB, **variables}),
        input=stdin,
        capture_output=True,
        check=False,
    )
    return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())


def repository_of(name: str) -> str:
    """Return the hub's repository for a model of FastEmbed's registry."""
    return registry_model(name).repository


def repository_files(parent: Path) -> dict[str, bytes]:
    """Return the files of a tiny model, with the names of HUB_MODEL's files on the hub."""
    folder = TinyModel("tiny", dim=HUB_MODEL_DIM).write(parent)
    names = ["config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
    contents = {name: (folder / name).read_bytes() for name in names}
    return {**contents, "model_optimized.onnx": (folder / "model.onnx").read_bytes()}


def change(folder: Path, **keys: object) -> None:
    """Set keys of the `model.json` in *folder*."""
    path = folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def write_matmul_model(parent: Path, name: str, *, dim: int = 32) -> Path:
    """Write a tiny model with a matrix product, which can be quantised.

    Unknown words and special tokens have small vectors, so the scale of a quantised run depends on its texts.
    """
    folder = TinyModel(name, dim=dim).write(parent)
    words = [word for word in (*SPECIAL, *WORDS) if word != "poison"]
    small = np.random.default_rng(1).standard_normal((len(SPECIAL), dim)).astype(np.float32) / 8
    table = np.concatenate([small, [row(word, dim) for word in words[len(SPECIAL) :]]])
    matrix = np.random.default_rng(0).standard_normal((dim, dim)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"]),
        helper.make_node("MatMul", ["words", "matrix"], ["last_hidden_state"]),
    ]
    graph = helper.make_graph(
        nodes,
        "matmul",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "sequence", dim])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(matrix, "matrix"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    return folder
