"""Opens sessions of ONNX Runtime that FastEmbed has no options for, and writes optimised copies of models.

It imports little, because the process that writes a copy needs nothing else.
"""

from pathlib import Path

import onnxruntime
from onnxruntime import InferenceSession, SessionOptions

COPY_GRAPH, COPY_WEIGHTS = "model.onnx", "weights.bin"
"""The files of an optimised copy: the graph, and the weights that are mapped into memory."""
MIN_WEIGHT_BYTES = 1024
"""Smaller weights stay in the graph's file: aligned to pages, they would take more space in the other one."""
SPIN_US = 50
"""How long a thread of the lone-text session waits for the next operator before it sleeps, in microseconds.

Spinning makes a lone text 1.5 times as fast. ONNX Runtime's default is far longer than one operator takes, so its
threads would go on spinning after the run and compete with the lanes for cores.
"""
PROVIDERS = ("CPUExecutionProvider",)
OPTIMISATION = "ORT_ENABLE_ALL"
"""The level at which FastEmbed opens a model, and so the one at which a copy is written."""
COPY_OPTIONS = {"level": OPTIMISATION, "min_weight_bytes": str(MIN_WEIGHT_BYTES), "prepacked": "1"}
"""What the content of a copy depends on, besides the model, ONNX Runtime and the CPU."""

onnxruntime.set_default_logger_severity(4)  # fatal only: a failed run raises, and the service logs that


def runtime_build() -> str:
    """Return the version of ONNX Runtime and what it was built from: builds of one version may pack differently."""
    return f"{onnxruntime.__version__}, {onnxruntime.get_build_info()}"


def open_session(path: Path, *, threads: int, is_copy: bool, spins: bool = True) -> InferenceSession:
    """Open an ONNX file.

    Args:
        path: the file.
        threads: that share a run.
        is_copy: the file is an optimised copy; it is run as it is.
        spins: whether idle threads spin as long as ONNX Runtime has them do by default.

    Raises:
        Exception: whatever ONNX Runtime raises.
    """
    options = SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_DISABLE_ALL if is_copy else level.ORT_ENABLE_ALL
    if not spins:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
    return InferenceSession(str(path), options, providers=list(PROVIDERS))


def write_copy(source: Path, folder: Path) -> InferenceSession:
    """Write an optimised copy of the ONNX file *source* into *folder*, and return the session it was taken from.

    The weights are stored as the kernels of this CPU pack them, so a session maps them instead of packing its own.

    Raises:
        Exception: whatever ONNX Runtime raises. A full disk may go unnoticed, so the copy must be verified.
    """
    options = SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, OPTIMISATION)
    options.optimized_model_filepath = str(folder / COPY_GRAPH)
    entry = options.add_session_config_entry
    entry("session.optimized_model_external_initializers_file_name", COPY_WEIGHTS)
    entry("session.optimized_model_external_initializers_min_size_in_bytes", str(MIN_WEIGHT_BYTES))
    entry("session.save_external_prepacked_constant_initializers", "1")
    return InferenceSession(str(source), options, providers=list(PROVIDERS))
