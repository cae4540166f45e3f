"""Compare the bundled model with its dynamically quantised int8 version, using `python main.py compare`.

Run `python benchmarks/quantised.py`. It makes the int8 version in a temporary folder with ONNX Runtime's own tool
(which needs `onnx`), writes seeded English texts to a file, and compares the two. docs/COMMANDS.md shows the result.
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

if not __package__:  # run as a script: let `benchmarks` be found
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.machine import ROOT
from benchmarks.texts import distinct_texts
from benchmarks.workloads import MODEL

QUANTISED = "me/minilm-int8"
TEXTS = 500


def main() -> int:
    """Run the comparison, and return its exit code."""
    with tempfile.TemporaryDirectory() as temporary:
        models = Path(temporary) / "models"
        _write_quantised(models / "minilm-int8")
        texts = Path(temporary) / "texts.txt"
        texts.write_text("\n".join(itertools.islice(distinct_texts("mixed", "quantised"), TEXTS)), encoding="utf-8")
        command = [sys.executable, "main.py", "compare", MODEL, QUANTISED, "--texts", str(texts)]
        environment = {**os.environ, "MODELS_DIR": str(models)}
        return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def _write_quantised(folder: Path) -> None:
    """Copy the bundled model to *folder* with an int8 graph, under another name."""
    from onnx import TensorProto  # noqa: PLC0415 - installed for tests only
    from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415

    shutil.copytree(ROOT / "models" / "all-MiniLM-L6-v2", folder)
    whole = folder / "whole.onnx"
    _write_float32(folder / "model.onnx", whole)
    quantize_dynamic(
        whole,
        folder / "model.onnx",
        op_types_to_quantize=["MatMul"],
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,  # without VNNI, sums of full 8-bit products overflow 16 bits
        extra_options={"DefaultTensorType": TensorProto.FLOAT},  # it cannot infer types of ONNX Runtime's own operators
    )
    whole.unlink()
    manifest = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in manifest.items() if key not in {"files", "canary", "memory_bytes"}}
    (folder / "model.json").write_text(json.dumps({**kept, "name": QUANTISED}), encoding="utf-8")


def _write_float32(source: Path, target: Path) -> None:
    """Let ONNX Runtime fold the casts of float16 weights, because its quantiser finds plain weights only."""
    import onnxruntime  # noqa: PLC0415

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    sys.exit(main())
