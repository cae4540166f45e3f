"""The rules of a model folder's `model.json`."""

import json
from pathlib import Path

import msgspec
import pytest

from config import BUNDLED_MODELS_DIR
from engine.manifest import Prompts, read_folder
from tests.support.tiny import TinyModel

VECTOR = [1.0, 0.0, 0.0, 0.0]
SHA256 = "0" * 64

BROKEN_RULES: dict[str, tuple[dict[str, object], str]] = {
    "unknown key": (
        {"pooling_mode": "mean"},
        "the key 'pooling_mode' is unknown; did you mean 'pooling'?",
    ),
    "key unlike any other": ({"zzz": 1}, "the key 'zzz' is unknown; the keys are name, dim, max_tokens, pooling"),
    "missing key": ({"dim": None}, "the key 'dim' is missing; required are name, dim, max_tokens, pooling"),
    "wrong type": ({"dim": "4"}, "Expected `int`, got `str` - at `$.dim`"),
    "text for a boolean": ({"normalized": "true"}, "Expected `bool`, got `str` - at `$.normalized`"),
    "no dimension": ({"dim": 0}, "dim"),
    "no space for a word": ({"max_tokens": 2}, "max_tokens"),
    "unknown pooling": ({"pooling": "max"}, "use one of mean, cls, last_token, none"),
    "empty name": ({"name": ""}, "name"),
    "space in the name": ({"name": "a b"}, "use letters, digits"),
    "name that starts with a slash": ({"name": "/a"}, "name"),
    "at sign in the name, which FastEmbed's registry needs": ({"name": "a@b"}, "name"),
    "line break in the name": ({"name": "a\n"}, "name"),
    "model file outside the folder": ({"model_file": "../model.onnx"}, "outside"),
    "model file outside by a detour": ({"model_file": "sub/../../x.onnx"}, "outside"),
    "absolute path": ({"model_file": "/etc/hostname"}, "outside"),
    "additional file outside": ({"additional_files": ["../x"]}, "outside"),
    "listed file outside": ({"files": {"../a": {"sha256": SHA256, "size_bytes": 1}}}, "outside"),
    "hash of a wrong length": ({"files": {"a": {"sha256": "0", "size_bytes": 1}}}, "sha256"),
    "hash that is not hexadecimal": ({"files": {"a": {"sha256": "g" * 64, "size_bytes": 1}}}, "sha256"),
    "negative size": ({"files": {"a": {"sha256": SHA256, "size_bytes": -1}}}, "size_bytes"),
    "unknown prompt": ({"prompts": {"passage": "p: "}}, "passage"),
    "prompts that are not an object": ({"prompts": "q: "}, "prompts"),
    "needs_prompt that is not a boolean": ({"needs_prompt": "yes"}, "needs_prompt"),
    "matryoshka that is not a list": ({"matryoshka": 2}, "matryoshka"),
    "matryoshka dimension 0": ({"matryoshka": [0]}, "matryoshka"),
    "matryoshka dimension above dim": ({"matryoshka": [2, 5]}, "matryoshka contains 5, but dim is 4"),
    "canary without a vector": ({"canary": [{"text": "one"}]}, "vector"),
    "canary without a text": ({"canary": [{"text": "", "vector": VECTOR}]}, "text"),
    "unknown key of a canary": ({"canary": [{"text": "a", "vector": VECTOR, "prompt": ""}]}, "prompt"),
    "canary of another dimension": ({"canary": [{"text": "a", "vector": [1.0]}]}, "canary[0] must have 4"),
    "canary of zeros": (
        {"canary": [{"text": "a", "vector": VECTOR}, {"text": "b", "vector": [0.0] * 4}]},
        "canary[1]",
    ),
    "canary beyond float32": ({"canary": [{"text": "a", "vector": [1e300, 0.0, 0.0, 0.0]}]}, "canary[0]"),
}
NOT_A_MANIFEST = {
    "empty": b"",
    "cut short": b'{"name": "bro',
    "a list": b"[]",
    "not UTF-8": b'{"name": "\xff"}',
    "nested too deeply": b"[" * 100_000,
}


def change(folder: Path, **keys: object) -> None:
    """Set *keys* of the manifest in *folder*; None removes one."""
    manifest = {**json.loads((folder / "model.json").read_text()), **keys}
    (folder / "model.json").write_text(json.dumps({key: value for key, value in manifest.items() if value is not None}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return TinyModel("acme/tiny").write(tmp_path)


def test_manifest_that_breaks_a_rule_is_rejected_with_the_reason(folder: Path) -> None:
    whole = (folder / "model.json").read_bytes()
    accepted, other_reasons = [], {}
    for rule, (keys, reason) in BROKEN_RULES.items():
        (folder / "model.json").write_bytes(whole)
        change(folder, **keys)
        try:
            read_folder(folder)
            accepted.append(rule)
        except (msgspec.ValidationError, ValueError) as error:
            if reason not in str(error):
                other_reasons[rule] = str(error)
    assert (accepted, other_reasons) == ([], {})


def test_file_that_is_not_a_json_object_in_utf_8_is_rejected(folder: Path) -> None:
    for content in NOT_A_MANIFEST.values():
        (folder / "model.json").write_bytes(content)
        with pytest.raises((msgspec.MsgspecError, ValueError)):
            read_folder(folder)


def test_bundled_folder_lists_its_files_and_their_size() -> None:
    path = BUNDLED_MODELS_DIR / "all-MiniLM-L6-v2"
    folder = read_folder(path)
    assert set(folder.files) == {
        "model.onnx",
        "config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert folder.size_bytes == sum((path / name).stat().st_size for name in folder.files)


def test_keys_that_are_not_stated_are_empty(folder: Path) -> None:
    manifest = read_folder(folder).manifest
    assert (manifest.prompts, manifest.needs_prompt, manifest.matryoshka, manifest.canary) == (Prompts(), None, [], [])
    assert (manifest.files, manifest.revision) == ({}, "")


def test_prompts_dimensions_canaries_and_files_are_read(tmp_path: Path) -> None:
    canary = {"text": "one", "vector": VECTOR}
    path = TinyModel(
        "acme/full", prompts={"query": "one "}, needs_prompt=True, matryoshka=(2, 4), canary=[canary], is_hashed=True
    ).write(tmp_path)
    manifest = read_folder(path).manifest
    assert manifest.prompts == Prompts(query="one ")
    assert (manifest.needs_prompt, manifest.matryoshka) == (True, [2, 4])
    assert [(reference.text, reference.vector) for reference in manifest.canary] == [("one", VECTOR)]
    assert set(manifest.files) == {path.name for path in path.iterdir()} - {"model.json"}


def test_folder_with_a_missing_file_can_be_read(folder: Path) -> None:
    """The missing file is found when the model is loaded; until then the model is listed."""
    change(folder, model_file="absent.onnx", additional_files=["tokenizer.json"])
    found = read_folder(folder)
    assert found.files == ["absent.onnx", "tokenizer.json"]
    assert found.size_bytes == (folder / "tokenizer.json").stat().st_size


def test_every_file_is_listed_once(folder: Path) -> None:
    stated = {"sha256": SHA256, "size_bytes": 1}
    change(folder, additional_files=["a", "model.onnx", "a"], files={"model.onnx": stated, "b": stated})
    assert read_folder(folder).files == ["model.onnx", "a", "b"]


def test_registry_name_changes_with_the_manifest_and_with_the_path_only(tmp_path: Path) -> None:
    first = TinyModel("acme/tiny").write(tmp_path / "first")
    second = TinyModel("acme/tiny").write(tmp_path / "second")
    assert read_folder(first) == read_folder(first)
    names = {read_folder(first).registry_name, read_folder(second).registry_name}
    change(first, description="changed")
    names.add(read_folder(first).registry_name)
    assert len(names) == 3
    assert all(name.startswith("acme/tiny@") for name in names)


def test_manifest_may_have_a_byte_order_mark_or_be_in_utf_16(folder: Path) -> None:
    text, plain = (folder / "model.json").read_text(), read_folder(folder).manifest
    for encoding in ("utf-8-sig", "utf-16"):
        (folder / "model.json").write_bytes(text.replace(",", ",\r\n").encode(encoding))
        assert read_folder(folder).manifest == plain
