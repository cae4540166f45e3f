"""Weights in other files: found wherever the ONNX file names them, part of the fingerprint, and inside the folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.catalog import read_catalog
from engine.encoder import load_encoder
from engine.errors import ModelUnavailableError
from engine.file_hashes import CorruptFileError
from engine.fingerprint import ModelFiles, files_of_folder
from engine.manifest import read_folder
from tests.support.tiny import Table, TinyModel, gather

TABLE = np.arange(12, dtype=np.float32).reshape(3, 4)
GRAPH: bytes = gather(TABLE).SerializeToString()


def folder_files(folder: Path) -> ModelFiles:
    return files_of_folder(read_folder(folder))


def digest_of(folder: Path) -> str:
    return folder_files(folder).fingerprint.digest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return TinyModel("acme/tiny").write(tmp_path)


def external(name: str, location: str) -> TensorProto:
    """Return a tensor of four numbers that are in the file *location*."""
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": "16"}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def constant(location: str) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [f"constant {location}"], value=external("", location))


def branch(name: str, nodes: list[onnx.NodeProto]) -> onnx.GraphProto:
    result = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, [4])
    return helper.make_graph(nodes, name, [], [result])


def in_initializer(model: onnx.ModelProto, location: str) -> None:
    model.graph.initializer.append(external("more", location))


def in_sparse_initializer(model: onnx.ModelProto, location: str) -> None:
    sparse = model.graph.sparse_initializer.add(values=external("sparse", location), dims=[9])
    sparse.indices.CopyFrom(numpy_helper.from_array(np.arange(4), ""))


def in_sparse_indices(model: onnx.ModelProto, location: str) -> None:
    sparse = model.graph.sparse_initializer.add(indices=external("", location), dims=[9])
    sparse.values.CopyFrom(numpy_helper.from_array(np.zeros(4, np.float32), "sparse"))


def in_constant(model: onnx.ModelProto, location: str) -> None:
    model.graph.node.append(constant(location))


def in_list_of_tensors(model: onnx.ModelProto, location: str) -> None:
    model.graph.node.append(helper.make_node("Custom", [], ["made"], parts=[external("", location)]))


def in_sparse_constant(model: onnx.ModelProto, location: str) -> None:
    node = model.graph.node.add(op_type="Constant", output=["made"])
    attribute = node.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.values.CopyFrom(external("", location))


def in_subgraph(model: onnx.ModelProto, location: str) -> None:
    then = branch("then", [helper.make_node("Identity", ["hidden"], ["kept"])])
    then.initializer.append(external("hidden", location))
    otherwise = branch("else", [helper.make_node("Constant", [], ["other"], value_floats=[0.0] * 4)])
    node = helper.make_node("If", ["condition"], ["chosen"], then_branch=then, else_branch=otherwise)
    model.graph.node.append(node)


def in_deep_subgraph(model: onnx.ModelProto, location: str) -> None:
    inner = branch("innermost", [constant(location)])
    for depth in range(20):
        node = helper.make_node(
            "If",
            ["condition"],
            ["chosen"],
            then_branch=inner,
            else_branch=inner
            if not depth
            else branch("else", [helper.make_node("Constant", [], ["other"], value_floats=[0.0] * 4)]),
        )
        inner = branch(f"level {depth}", [node])
    model.graph.node.append(inner.node[0])


def in_list_of_graphs(model: onnx.ModelProto, location: str) -> None:
    model.graph.node.append(helper.make_node("Custom", [], ["made"], bodies=[branch("body", [constant(location)])]))


def in_function(model: onnx.ModelProto, location: str) -> None:
    made = [constant(location)]
    made[0].output[0] = "made"
    model.functions.append(helper.make_function("own", "Made", [], ["made"], made, [helper.make_opsetid("", 17)]))


def in_default_of_a_function(model: onnx.ModelProto, location: str) -> None:
    function = helper.make_function("own", "Made", [], ["made"], [], [helper.make_opsetid("", 17)])
    function.attribute_proto.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(external("", location))
    model.functions.append(function)


PLACES: tuple[Callable[[onnx.ModelProto, str], None], ...] = (
    in_initializer,
    in_sparse_initializer,
    in_sparse_indices,
    in_constant,
    in_list_of_tensors,
    in_sparse_constant,
    in_subgraph,
    in_deep_subgraph,
    in_list_of_graphs,
    in_function,
    in_default_of_a_function,
)


def write_with_weights(folder: Path, place: Callable[[onnx.ModelProto, str], None], location: str) -> None:
    model = gather(TABLE)
    place(model, location)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


@pytest.mark.parametrize("place", PLACES)
def test_fingerprint_changes_with_weights_wherever_the_graph_names_them(
    place: Callable[[onnx.ModelProto, str], None], folder: Path
) -> None:
    """The manifest does not list the file, and its name does not resemble that of the ONNX file."""
    write_with_weights(folder, place, "deep/numbers.bin")
    (folder / "deep").mkdir()
    digests = []
    for number in (1, 2):
        (folder / "deep" / "numbers.bin").write_bytes(bytes([number]) * 16)
        digests.append(digest_of(folder))
        assert "deep/numbers.bin" in folder_files(folder).names
    assert digests[0] != digests[1]


def test_weights_are_found_beside_an_onnx_file_in_a_subfolder(folder: Path) -> None:
    (folder / "onnx").mkdir()
    write_with_weights(folder, in_initializer, "./weights.data")
    (folder / "model.onnx").rename(folder / "onnx" / "model.onnx")
    manifest = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**manifest, "model_file": "onnx/model.onnx"}))
    (folder / "onnx" / "weights.data").write_bytes(bytes(16))
    assert "onnx/weights.data" in folder_files(folder).names
    before = digest_of(folder)
    (folder / "onnx" / "weights.data").write_bytes(b"x" * 16)
    assert digest_of(folder) != before


@pytest.mark.parametrize("location", ["../weights.bin", "a/../../weights.bin", "/etc/hostname", "", ".", "..", "a\0b"])
def test_weights_outside_of_the_folder_are_rejected(location: str, folder: Path) -> None:
    (folder.parent / "weights.bin").write_bytes(bytes(16))
    write_with_weights(folder, in_initializer, location)
    with pytest.raises(CorruptFileError, match=r"takes weights from .*, which is not a file in its own folder"):
        digest_of(folder)


def test_missing_weights_and_git_lfs_pointers_are_named(folder: Path) -> None:
    write_with_weights(folder, in_subgraph, "numbers.bin")
    with pytest.raises(CorruptFileError, match=r"its file 'numbers.bin' is missing"):
        digest_of(folder)
    (folder / "numbers.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 16\n")
    with pytest.raises(CorruptFileError, match=r"its file 'numbers.bin' is a git-lfs pointer"):
        digest_of(folder)


def test_data_in_the_file_itself_is_not_looked_for_elsewhere(folder: Path) -> None:
    model = gather(TABLE)
    model.graph.initializer[0].external_data.add(key="location", value="old.bin")  # without data_location EXTERNAL
    training = model.training_info.add()
    training.initialization.initializer.append(external("step", "training.bin"))  # nothing here trains
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    assert set(folder_files(folder).names) >= {"model.onnx", "tokenizer.json"}
    assert not [name for name in folder_files(folder).names if name.endswith(".bin")]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", "it ends too early|it contains no graph", id="empty"),
        pytest.param(GRAPH[: len(GRAPH) // 2], "it ends too early", id="cut"),
        pytest.param(b"<!DOCTYPE html><html>", "it is not in the ONNX format|it ends too early", id="HTML"),
        pytest.param(b"\xff" * 64, "it is not in the ONNX format", id="endless number"),
        pytest.param(b"\x08\x09", "it contains no graph", id="no graph"),
        pytest.param(b"\x3a\x04\x62\x02\x0a\x80", "it ends too early", id="cut inside"),
        pytest.param(b"\x3a\x05\x62\x03\x0a\x01\xff", "a name in it is not UTF-8", id="not UTF-8"),
    ],
)
def test_file_that_is_not_a_complete_onnx_file_is_rejected(content: bytes, reason: str, folder: Path) -> None:
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(CorruptFileError, match=rf"'model.onnx' is not a complete ONNX file: ({reason})"):
        digest_of(folder)


def test_every_cut_of_an_onnx_file_is_read_without_another_error(folder: Path) -> None:
    write_with_weights(folder, in_deep_subgraph, "numbers.bin")
    whole = (folder / "model.onnx").read_bytes()
    for end in range(0, len(whole), 7):
        (folder / "model.onnx").write_bytes(whole[:end])
        with pytest.raises(CorruptFileError):
            digest_of(folder)


def test_file_in_the_format_of_onnx_runtime_is_hashed_as_a_whole(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"\x18\0\0\0ORTM rest")
    before = digest_of(folder)
    (folder / "model.onnx").write_bytes(b"\x18\0\0\0ORTM best")
    assert digest_of(folder) != before


def with_external_table(table: Table) -> onnx.ModelProto:
    """Return a tiny model whose table is in `words.bin`, in an order of bytes that the test writes."""
    model = gather(table)
    onnx.external_data_helper.convert_model_to_external_data(model, location="words.bin", size_threshold=0)
    return model


def test_loaded_model_with_swapped_weights_has_another_fingerprint_and_other_vectors(tmp_path: Path) -> None:
    folder = TinyModel("acme/tiny", graph=with_external_table).write(tmp_path)
    assert (folder / "words.bin").is_file()
    model = read_catalog([tmp_path], bundled="").get("acme/tiny")

    def load() -> tuple[str, Any]:
        encoder = load_encoder(model, hub_cache_dir=tmp_path)
        assert encoder.fingerprint
        return encoder.fingerprint.digest, encoder.encode(encoder.tokenizer.tokenize(["one two"]))

    digest, vectors = load()
    numbers = np.frombuffer((folder / "words.bin").read_bytes(), np.float32)
    (folder / "words.bin").write_bytes((numbers * 2).tobytes())
    other_digest, other_vectors = load()
    assert other_digest != digest
    assert np.allclose(other_vectors, vectors * 2)
    (folder / "words.bin").unlink()
    with pytest.raises(ModelUnavailableError, match=r"its file 'words.bin' is missing"):
        load()
