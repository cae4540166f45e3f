"""Model folders as exporters, editors and git really leave them: which load, and what the others are told to change."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from structlog.testing import capture_logs
from tokenizers import AddedToken, Tokenizer

from engine.catalog import read_catalog
from engine.encoder import Encoder, load_encoder
from engine.errors import ModelUnavailableError
from engine.model_folders import IgnoredFolder, find_folders
from tests.support.tiny import MAX_TOKENS, WORDS, TinyModel, mean_of, row, table_of

NAME = "acme/tiny"
TEXTS = ["one two three", "four", "one one five", "two"]
EXPECTED = [mean_of(text.split()) for text in TEXTS]
NO_LIMIT = 1000000000000000019884624838656
"""`VERY_LARGE_INTEGER` of transformers, as its JSON files contain it."""
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 90405214\n"

Change = Callable[[Path], object]


def load(parent: Path) -> Encoder:
    return load_encoder(read_catalog([parent], bundled="").get(NAME), hub_cache_dir=parent / "cache")


def vectors_of(encoder: Encoder, texts: list[str]) -> Any:
    return encoder.encode(encoder.tokenizer.tokenize(texts))


def change(name: str, **keys: object) -> Change:
    """Return a function that sets keys of a JSON file; None removes one, and `null` writes null."""

    def apply(folder: Path) -> None:
        values = {**json.loads((folder / name).read_text()), **keys}
        kept = {key: None if value == "null" else value for key, value in values.items() if value is not None}
        (folder / name).write_text(json.dumps(kept))

    return apply


def config(**keys: object) -> Change:
    return change("tokenizer_config.json", **keys)


def manifest(**keys: object) -> Change:
    return change("model.json", **keys)


def remove(*names: str) -> Change:
    def apply(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return apply


def write(name: str, content: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content)


def encoded(encoding: str, *, newline: str = "\n") -> Change:
    """Return a function that saves all JSON files as another editor would."""

    def apply(folder: Path) -> None:
        for path in folder.glob("*.json"):
            pretty = json.dumps(json.loads(path.read_text()), indent=1)
            path.write_bytes(pretty.replace("\n", newline).encode(encoding))

    return apply


def both(*changes: Change) -> Change:
    return lambda folder: [apply(folder) for apply in changes]


def tokenizer(edit: Callable[[Tokenizer], object]) -> Change:
    def apply(folder: Path) -> None:
        path = str(folder / "tokenizer.json")
        loaded = Tokenizer.from_file(path)
        edit(loaded)
        loaded.save(path)

    return apply


def move_to_subfolder(folder: Path) -> None:
    (folder / "onnx").mkdir()
    (folder / "model.onnx").rename(folder / "onnx" / "model.onnx")


def graph(
    *,
    inputs: dict[str, int] | None = None,
    shape: tuple[int | str, ...] = ("batch", "sequence"),
    output: str = "tokens",
    opset: int = 17,
    ir_version: int = 9,
    operator: str = "Identity",
) -> Change:
    """Return a function that replaces the graph by one that adds the rows of `position_ids` 0, 1, ... if it has them.

    Args:
        inputs: types by name; each further input is used, so that it is required.
        shape: of each input.
        output: `tokens`: a vector per token; `texts`: their mean; `both`; `four`: one dimension more.
        opset: of the graph.
        ir_version: of the file.
        operator: name of the last operator.
    """
    types = inputs or {"input_ids": TensorProto.INT64}

    def apply(folder: Path) -> None:
        nodes, previous = [helper.make_node("Gather", ["table", next(iter(types))], ["rows"])], "rows"
        for name in list(types)[1:]:
            nodes += [
                helper.make_node("Cast", [name], [f"{name} cast"], to=TensorProto.FLOAT),
                helper.make_node("Mul", [f"{name} cast", "one" if name == "position_ids" else "zero"], [f"{name} mul"]),
                helper.make_node("Unsqueeze", [f"{name} mul", "last"], [f"{name} row"]),
                helper.make_node("Add", [previous, f"{name} row"], [f"with {name}"]),
            ]
            previous = f"with {name}"
        nodes.append(helper.make_node(operator, [previous], ["last_hidden_state"]))
        nodes.append(
            helper.make_node("ReduceMean", ["last_hidden_state"], ["sentence_embedding"], axes=[1], keepdims=0)
        )
        nodes.append(helper.make_node("Unsqueeze", ["last_hidden_state", "last"], ["four"]))
        all_ends: dict[str, list[tuple[str, list[str | int]]]] = {
            "tokens": [("last_hidden_state", ["batch", "sequence", 4])],
            "texts": [("sentence_embedding", ["batch", 4])],
            "both": [("last_hidden_state", ["batch", "sequence", 4]), ("sentence_embedding", ["batch", 4])],
            "four": [("four", ["batch", "sequence", 4, 1])],
        }
        constants: dict[str, NDArray[Any]] = {
            "table": table_of(WORDS, 4),
            "one": np.ones(1, np.float32),
            "zero": np.zeros(1, np.float32),
            "last": np.array([-1], np.int64),
        }
        model = helper.make_model(
            helper.make_graph(
                nodes,
                "tiny",
                [helper.make_tensor_value_info(name, type_, shape) for name, type_ in types.items()],
                [helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in all_ends[output]],
                [numpy_helper.from_array(values, name) for name, values in constants.items()],
            ),
            opset_imports=[helper.make_opsetid("", opset)],
            ir_version=ir_version,
        )
        onnx.save(model, folder / "model.onnx")

    return apply


def external(keep_bytes: int | None = None) -> Change:
    """Return a function that moves the weights into `model.onnx_data`, and cuts it; 0: removes it."""

    def apply(folder: Path) -> None:
        path, data = folder / "model.onnx", folder / "model.onnx_data"
        onnx.save(onnx.load(path), path, save_as_external_data=True, location=data.name, size_threshold=0)
        if keep_bytes == 0:
            data.unlink()
        elif keep_bytes:
            data.write_bytes(data.read_bytes()[:keep_bytes])

    return apply


def pooling_of_authors(**keys: object) -> Change:
    """Return a function that writes what sentence-transformers writes about the pooling."""

    def apply(folder: Path) -> None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(keys))

    return apply


def move_weights_away(folder: Path) -> None:
    data, other = folder / "model.onnx_data", folder.parent / "elsewhere"
    other.mkdir()
    data.rename(other / data.name)
    data.symlink_to(other / data.name)


IDS, MASK, TYPES, POSITIONS = "input_ids", "attention_mask", "token_type_ids", "position_ids"
INT32, INT64, FLOAT = TensorProto.INT32, TensorProto.INT64, TensorProto.FLOAT
PAD = {"content": "[PAD]", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}

USABLE: dict[str, Change] = {
    "no model_max_length": config(model_max_length=None),
    "model_max_length 1e30": config(model_max_length=NO_LIMIT),
    "model_max_length 1e30 as a float": config(model_max_length=1e30),
    "model_max_length 0": config(model_max_length=0),
    "model_max_length null": config(model_max_length="null"),
    "model_max_length in words": config(model_max_length="512 tokens"),
    "pad_token as an object": config(pad_token={**PAD, "__type": "AddedToken"}),
    "pad_token null, but in the vocabulary": config(pad_token="null"),  # noqa: S106 - not a password
    "no pad_token anywhere": both(
        config(pad_token=None), remove("special_tokens_map.json"), change("config.json", pad_token_id=None)
    ),
    "pad_token that the vocabulary lacks": both(
        config(pad_token="<nothing>"),  # noqa: S106 - not a password
        remove("special_tokens_map.json", "config.json"),
    ),
    "pad_token_id -1": change("config.json", pad_token_id=-1),
    "pad_token_id null": change("config.json", pad_token_id="null"),  # noqa: S106 - not a password
    "added_tokens_decoder": config(
        added_tokens_decoder={"0": {**PAD, "special": True}}, cls_token={**PAD, "content": "[CLS]"}
    ),
    "special tokens as objects": change(
        "special_tokens_map.json",
        pad_token={**PAD, "id": 0, "__type": "AddedToken"},
        unk_token="null",  # noqa: S106 - not a password
        additional_special_tokens=[PAD, "[CLS]", None],
    ),
    "no special_tokens_map.json": remove("special_tokens_map.json"),
    "no config.json": remove("config.json"),
    "no tokenizer_config.json": remove("tokenizer_config.json"),
    "only tokenizer.json": remove("tokenizer_config.json", "config.json", "special_tokens_map.json"),
    "byte order mark": encoded("utf-8-sig"),
    "UTF-16 from a Windows shell": encoded("utf-16"),
    "line ends of Windows": encoded("utf-8", newline="\r\n"),
    "own truncation": tokenizer(lambda loaded: loaded.enable_truncation(4, stride=1, direction="left")),
    "own padding to a fixed length": tokenizer(lambda loaded: loaded.enable_padding(length=12, pad_token="[PAD]")),  # noqa: S106
    "added tokens": tokenizer(lambda loaded: loaded.add_special_tokens([AddedToken("[PAD]", normalized=False)])),
    "graph in onnx/": move_to_subfolder,
    "graph in onnx/, stated": both(move_to_subfolder, manifest(model_file="onnx/model.onnx")),
    "external weights": external(),
    "further files": both(write(".DS_Store", b"\0"), write("ort_config.json", b"{}"), write("README.md", LFS)),
    "int32 inputs": graph(inputs={IDS: INT32, MASK: INT32, TYPES: INT32}),
    "int32 mask": graph(inputs={IDS: INT64, MASK: INT32}),
    "float mask": graph(inputs={IDS: INT64, MASK: FLOAT}),
    "batch of one": graph(shape=(1, "sequence")),
    "unnamed sizes": graph(shape=(None, None)),  # type: ignore[arg-type]  # the exporter left them out
    "one vector per text": both(graph(output="texts", shape=(1, "sequence")), manifest(pooling="none")),
    "output by name": both(
        graph(output="both", shape=(1, "sequence")), manifest(pooling="none", output_name="sentence_embedding")
    ),
}
UNUSABLE: dict[str, tuple[Change, str]] = {
    "git-lfs pointer in place of the graph": (
        write("model.onnx", LFS),
        "'model.onnx' is a git-lfs pointer instead of the file itself; run 'git lfs pull'",
    ),
    "git-lfs pointer in place of the tokenizer": (
        write("tokenizer.json", LFS),
        "its file 'tokenizer.json' is a git-lfs pointer instead of the file itself; run 'git lfs pull'",
    ),
    "git-lfs pointer with a stated hash": (
        both(
            write("model.onnx", LFS),
            manifest(files={"model.onnx": {"sha256": "0" * 64, "size_bytes": 90405214}}),
        ),
        "git-lfs pointer",
    ),
    "git-lfs pointer in place of the weights": (
        both(external(), write("model.onnx_data", LFS), manifest(additional_files=["model.onnx_data"])),
        "'model.onnx_data' is a git-lfs pointer",
    ),
    "git-lfs pointer in place of weights that are not listed": (
        both(external(), write("model.onnx_data", LFS)),
        "'model.onnx_data' is a git-lfs pointer",
    ),
    "web page": (write("model.onnx", b"\n<!DOCTYPE html>\n<html>"), "'model.onnx' is a web page"),
    "empty graph": (write("model.onnx", b""), "'model.onnx' is empty"),
    "graph cut short": (
        lambda folder: write("model.onnx", (folder / "model.onnx").read_bytes()[:200])(folder),
        "is not a complete ONNX file",
    ),
    "not a graph": (write("model.onnx", b"PK\3\4 zipped"), "is not a complete ONNX file"),
    "missing weights": (external(0), "its file 'model.onnx_data'"),
    "weights cut short": (external(100), "the file with its weights is shorter than the graph says"),
    "weights behind a link": (
        both(external(), move_weights_away),
        "its weights are outside the folder of the graph, perhaps by a link: copy the files themselves",
    ),
    "newer format": (graph(ir_version=99), "has the format IR version 99, and this ONNX Runtime reads up to"),
    "newer opset": (graph(opset=99), "its graph uses opset 99, and this ONNX Runtime supports up to"),
    "unknown operator": (graph(operator="Foo"), "its graph uses the operator 'Foo', which this ONNX Runtime"),
    "input of an image": (
        graph(inputs={IDS: INT64, "pixel_values": FLOAT}),
        "its graph needs the input 'pixel_values', which texts do not have: export it with",
    ),
    "no input_ids": (graph(inputs={"tokens": INT64}), "its graph has no input 'input_ids', but 'tokens'"),
    "fixed number of tokens": (graph(shape=("batch", 128)), "takes only texts of exactly 128 tokens"),
    "fixed number of texts": (graph(shape=(8, "sequence")), "takes only 8 texts at once"),
    "positions of RoBERTa": (
        both(graph(inputs={IDS: INT64, POSITIONS: INT64}), change("config.json", model_type="roberta")),
        "needs the input 'position_ids', which for models of the type 'roberta'",
    ),
    "pooling of pooled vectors": (
        graph(output="texts"),
        "its output 'sentence_embedding' has one vector per text already, but pooling is 'mean': set pooling to 'none'",
    ),
    "no pooling of tokens": (
        both(graph(output="both"), manifest(pooling="none")),
        "set pooling to 'mean', 'cls' or 'last_token' as the model's authors state, or output_name to 'sentence_emb",
    ),
    "four dimensions": (graph(output="four"), "its output 'four' has 4 dimensions instead of 2 or 3"),
    "other dim": (manifest(dim=8), "has vectors of 4 numbers, but dim is 8: set dim to 4"),
    "unknown output": (
        manifest(output_name="pooled"),
        "its graph has no output 'pooled': set output_name to one of 'last_hidden_state'",
    ),
    "tokens that the graph lacks": (
        tokenizer(lambda loaded: loaded.add_tokens(["reset", "password"])),
        "its tokenizer has the token 14, but the tables of its graph end at 12",
    ),
    "no tokenizer.json": (
        both(remove("tokenizer.json"), write("vocab.txt", b"one\n")),
        "its file 'tokenizer.json' is missing (the folder has 'vocab.txt'): save it with `AutoTokenizer",
    ),
    "broken tokenizer.json": (write("tokenizer.json", b"{ no"), "its file 'tokenizer.json' is not valid JSON"),
    "newer tokenizer.json": (
        change("tokenizer.json", model={"type": "Newest"}),
        "its file 'tokenizer.json' cannot be read by tokenizers 0.",
    ),
    "broken tokenizer_config.json": (
        write("tokenizer_config.json", b'{"pad_token": }'),
        "its file 'tokenizer_config.json' is not valid JSON (Expecting value: line 1 column 15",
    ),
    "folder in place of a file": (
        both(remove("tokenizer.json"), lambda folder: (folder / "tokenizer.json").mkdir()),
        "its file 'tokenizer.json' is a folder",
    ),
    "list in place of an object": (write("config.json", b"[]"), "its file 'config.json' contains no JSON object"),
    "not text": (write("config.json", b'{"a": "\xff"}'), "its file 'config.json' is not text (byte 7)"),
    "not exported": (
        both(remove("model.onnx"), write("model.safetensors", b"\0")),
        "its file 'model.onnx' is missing; the folder has 'model.safetensors', which must be exported to ONNX with",
    ),
    "another name": (
        lambda folder: (folder / "model.onnx").rename(folder / "model_quantized.onnx"),
        "its file 'model.onnx' is missing; the folder has 'model_quantized.onnx': set model_file in model.json",
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return TinyModel(NAME).write(tmp_path)


@pytest.mark.parametrize("kind", USABLE)
def test_usable_folder_has_the_vectors_and_the_limit_of_its_model(kind: str, folder: Path) -> None:
    USABLE[kind](folder)
    with capture_logs():
        encoder = load(folder.parent)
    np.testing.assert_allclose([vectors_of(encoder, [text])[0] for text in TEXTS], EXPECTED, rtol=1e-5)
    if encoder.batching == "mixed":
        np.testing.assert_allclose(vectors_of(encoder, TEXTS), EXPECTED, rtol=1e-5)
    assert encoder.max_tokens == MAX_TOKENS
    [item] = encoder.tokenizer.tokenize(["one " * 30])
    assert (item.tokens, item.length) == (32, MAX_TOKENS)


@pytest.mark.parametrize("kind", UNUSABLE)
def test_unusable_folder_is_rejected_with_the_reason_and_what_to_change(kind: str, folder: Path) -> None:
    """Never with only the name of an exception, and without paths."""
    apply, reason = UNUSABLE[kind]
    apply(folder)
    with capture_logs(), pytest.raises(ModelUnavailableError) as unavailable:
        load(folder.parent)
    assert reason in unavailable.value.cause
    assert str(folder.parent) not in unavailable.value.detail
    assert "Error)" not in unavailable.value.detail


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_count_the_tokens_of_a_text_from_0_on_either_side_of_the_padding(side: str, folder: Path) -> None:
    both(graph(inputs={IDS: INT64, MASK: INT64, POSITIONS: INT64}), config(padding_side=side))(folder)
    encoder = load(folder.parent)
    lengths = np.array([[len(text.split()) + 2] for text in TEXTS])
    np.testing.assert_allclose(vectors_of(encoder, TEXTS), EXPECTED + (lengths - 1) / 2, rtol=1e-5)
    encoder.open_lone_text_session(2)
    items = encoder.tokenizer.tokenize(["one two three"])
    np.testing.assert_allclose(encoder.encode(items, is_lone=True), [EXPECTED[0] + 2], rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "apply", "note"),
    [
        pytest.param("none", config(), None, id="nothing to note"),
        pytest.param("config", USABLE["no tokenizer_config.json"], "tokenizer_config.json is missing", id="config"),
        pytest.param(
            "limit", config(model_max_length=8), "max_tokens is 16, but tokenizer_config.json limits", id="lower limit"
        ),
        pytest.param(
            "positions",
            both(change("config.json", max_position_embeddings=8), config(model_max_length=None)),
            "max_tokens is 16, but config.json states 8 positions",
            id="fewer positions",
        ),
        pytest.param(
            "length",
            write("sentence_bert_config.json", b'{"max_seq_length": 8}'),
            "max_tokens is 16, but sentence_bert_config.json states 8",
            id="lower length",
        ),
        pytest.param(
            "pooling",
            pooling_of_authors(pooling_mode_cls_token=True, pooling_mode_mean_tokens=False),
            "pooling is 'mean', but 1_Pooling/config.json states 'cls'",
            id="other pooling",
        ),
        pytest.param(
            "same pooling",
            pooling_of_authors(pooling_mode_cls_token=False, pooling_mode_mean_tokens=True),
            None,
            id="same pooling",
        ),
        pytest.param(
            "dim",
            pooling_of_authors(word_embedding_dimension=384),
            "dim is 4, but 1_Pooling/config.json states 384",
            id="other dimension",
        ),
        pytest.param("broken", write("sentence_bert_config.json", b"{"), None, id="broken file that nothing needs"),
        pytest.param(
            "pad",
            both(
                USABLE["no pad_token anywhere"],
                lambda folder: (folder / "tokenizer.json").write_text(
                    (folder / "tokenizer.json").read_text().replace("[PAD]", "[NONE]")
                ),
            ),
            "no padding token is named, so id 0 pads",
            id="no padding token",
        ),
    ],
)
def test_what_the_operator_should_know_is_logged_at_each_load(
    kind: str, apply: Change, note: str | None, folder: Path
) -> None:
    apply(folder)
    with capture_logs() as events:
        encoder = load(folder.parent)
    notes = [event["note"] for event in events if event["event"] == "model_folder_noted"]
    assert notes == list(encoder.notes)
    assert len(notes) == (note is not None), kind
    assert note is None or notes[0].startswith(note)


def test_lower_limit_of_the_tokenizer_applies(folder: Path) -> None:
    config(model_max_length=8)(folder)
    with capture_logs():
        assert load(folder.parent).max_tokens == 8


def test_truncation_and_padding_sides_are_read_from_tokenizer_json_if_there_is_no_config(folder: Path) -> None:
    both(tokenizer(lambda loaded: loaded.enable_truncation(4, direction="left")), remove("tokenizer_config.json"))(
        folder
    )
    with capture_logs():
        encoder = load(folder.parent)
    assert encoder.tokenizer.default_side == "start"
    np.testing.assert_allclose(vectors_of(encoder, ["one " * 20 + "five " * 14]), [mean_of(["five"] * 14)], rtol=1e-5)
    assert row("five").shape == (4,)


def test_folder_whose_name_is_too_long_for_the_system_is_reported_as_unreadable(tmp_path: Path) -> None:
    [ignored] = find_folders(tmp_path / ("x" * 300))
    assert isinstance(ignored, IgnoredFolder)
    assert "cannot be read" in ignored.reason
