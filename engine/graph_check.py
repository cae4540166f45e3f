"""Checks that a folder's graph fits its manifest, and explains in plain words why ONNX Runtime rejects a graph."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from engine.folder_files import UnusableModelError
from engine.manifest import Manifest

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
"""The inputs that are fed, in any of NUMBER_TYPES."""
NUMBER_TYPES = ("int64", "int32", "float", "float16", "bool")
OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet")
"""Kinds of models, in config.json, whose positions do not begin at 0."""
EXPORT = "export it with `optimum-cli export onnx --task feature-extraction`"
TOKENS_RANK, TEXTS_RANK = 3, 2
"""Dimensions of an output with a vector per token, and with a vector per text."""
MAX_REASON_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class GraphInput:
    """An input or output of a graph: its name, the type of its numbers, and its shape with names for open sizes."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True)
class Signature:
    """What a graph takes and returns."""

    inputs: tuple[GraphInput, ...]
    outputs: tuple[GraphInput, ...]


def check_inputs(signature: Signature, *, model_type: str) -> None:
    """Check that all inputs of a graph can be fed.

    Args:
        signature: the graph's.
        model_type: as config.json states it; empty: unknown.

    Raises:
        UnusableModelError: one cannot.
    """
    names = [entry.name for entry in signature.inputs]
    if INPUTS[0] not in names:
        raise UnusableModelError(f"its graph has no input {INPUTS[0]!r}, but {_listed(names)}: {EXPORT}")
    for entry in signature.inputs:
        if entry.name not in INPUTS:
            raise UnusableModelError(f"its graph needs the input {entry.name!r}, which texts do not have: {EXPORT}")
        if entry.type not in NUMBER_TYPES:
            raise UnusableModelError(f"its input {entry.name!r} takes {entry.type} instead of numbers: {EXPORT}")
        if len(entry.shape) != TEXTS_RANK:
            raise UnusableModelError(
                f"its input {entry.name!r} has {len(entry.shape)} dimensions instead of texts and tokens: {EXPORT}"
            )
        if isinstance(length := entry.shape[1], int):
            raise UnusableModelError(
                f"its graph takes only texts of exactly {length} tokens: export it with a dynamic sequence axis"
            )
        if isinstance(count := entry.shape[0], int) and count > 1:
            raise UnusableModelError(f"its graph takes only {count} texts at once: export it with a dynamic batch axis")
    if "position_ids" in names and model_type in OFFSET_POSITIONS:
        raise UnusableModelError(
            f"its graph needs the input 'position_ids', which for models of the type {model_type!r} do not begin at 0: "
            f"{EXPORT}, so that the graph computes them"
        )


def check_output(signature: Signature, manifest: Manifest, shape: Sequence[int]) -> None:
    """Check that the output of one run, of this *shape*, fits the pooling and the dimension of the manifest.

    Raises:
        UnusableModelError: it does not.
    """
    name = manifest.output_name or signature.outputs[0].name
    if manifest.pooling == "none" and len(shape) == TOKENS_RANK:
        others = _outputs_of_rank(signature, TEXTS_RANK, name)
        raise UnusableModelError(
            f"its output {name!r} has one vector per token, but pooling is 'none': set pooling to 'mean', 'cls' or "
            f"'last_token' as the model's authors state{others}"
        )
    if manifest.pooling != "none" and len(shape) == TEXTS_RANK:
        others = _outputs_of_rank(signature, TOKENS_RANK, name)
        raise UnusableModelError(
            f"its output {name!r} has one vector per text already, but pooling is {manifest.pooling!r}: "
            f"set pooling to 'none'{others}"
        )
    if len(shape) not in (TOKENS_RANK, TEXTS_RANK):
        raise UnusableModelError(
            f"its output {name!r} has {len(shape)} dimensions instead of 2 or 3{_choose(signature)}"
        )
    if shape[-1] != manifest.dim:
        raise UnusableModelError(
            f"its output {name!r} has vectors of {shape[-1]} numbers, but dim is {manifest.dim}: "
            f"set dim to {shape[-1]}{_choose(signature)}"
        )


def explain(error: Exception) -> str:
    """Return why a model cannot be opened or run, as one line without paths."""
    if isinstance(error, UnusableModelError):
        return str(error)
    reason = _plain(str(error))
    for pattern, explanation in EXPLANATIONS:
        if found := re.search(pattern, reason):
            return found.expand(explanation)
    return f"its files cannot be used ({reason[:MAX_REASON_CHARACTERS] or type(error).__name__})"


NEWER = "export it with an older exporter, or install a newer version of this service"
EXPLANATIONS: Sequence[tuple[str, str]] = (
    (
        r"Unsupported model IR version: (\d+), max supported IR version: (\d+)",
        rf"its graph has the format IR version \1, and this ONNX Runtime reads up to \2: {NEWER}",
    ),
    (
        r"Opset (\d+) is under development.*till opset (\d+)",
        rf"its graph uses opset \1, and this ONNX Runtime supports up to \2: {NEWER}, such as with --opset \2",
    ),
    (
        r"(?:No Op registered for (?P<op>\S+)|(?P<custom>\S+?)\(-?\d+\) is not a registered function)",
        rf"its graph uses the operator '\g<op>\g<custom>', which this ONNX Runtime does not have: {NEWER}",
    ),
    (
        r"Could not find an implementation for (\S+?)\(",
        r"its graph uses the operator '\1' with types that this ONNX Runtime cannot run on a CPU: export it as float32",
    ),
    (
        r"External data path does not exist: \"?([^\"\s]+)",
        r"its file '\1', which contains the weights, is missing: copy it into the same folder as the graph",
    ),
    (
        r"External data path .*?(?:escapes|outside)",
        "its weights are outside the folder of the graph, perhaps by a link: copy the files themselves",
    ),
    (
        r"External initializer: .*(?:out of bounds|cannot be read in full|can not be read in full)",
        "the file with its weights is shorter than the graph says, so its copy is incomplete: copy it again",
    ),
    (
        r"Protobuf parsing failed|No graph was found|ModelProto does not have a graph",
        "its graph is not a complete ONNX file: copy it again",
    ),
    (
        r"Output '([^']*)' not found in the model, available outputs: \[(.*)\]",
        r"its graph has no output '\1': set output_name to one of \2",
    ),
    (
        r"idx=(\d+) must be within the inclusive range \[-?\d+,(\d+)\]",
        r"its tokenizer has the token \1, but the tables of its graph end at \2: take both from the same model",
    ),
)
"""Patterns in messages of ONNX Runtime and FastEmbed, and what they mean."""


def _plain(message: str) -> str:
    """Return a message without its number, source position and folders."""
    message = message.partition("Load model from")[2].partition("failed:")[2] or message
    message = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", message)
    message = re.sub(r"(?:[A-Za-z]:)?[\w.~-]*[/\\](?:[^\s\"':]*[/\\])?([^\s\"':/\\]*)", r"\1", message)
    return " ".join(message.split())


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _outputs_of_rank(signature: Signature, rank: int, used: str) -> str:
    """Return a hint at other outputs with this many dimensions; empty if there are none."""
    names = [entry.name for entry in signature.outputs if len(entry.shape) == rank and entry.name != used]
    return f", or output_name to {' or '.join(map(repr, names[:3]))}" if names else ""


def _choose(signature: Signature) -> str:
    names = [entry.name for entry in signature.outputs]
    return f", or output_name to another of its outputs ({_listed(names[:5])})" if len(names) > 1 else ""
