"""What is read of a model folder's `model.json`."""

import json
from pathlib import Path

import msgspec
import pytest

from config import BUNDLED_MODELS_DIR
from engine.manifest import Prompts, read_folder
from tests.support.tiny import TinyModel

VECTOR = [1.0, 0.0, 0.0, 0.0]


def change(folder: Path, **keys: object) -> None:
    manifest = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**manifest, **keys}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return TinyModel("acme/tiny").write(tmp_path)


def test_bundled_folder_names_its_files_and_their_size() -> None:
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


def test_what_is_not_stated_is_empty(folder: Path) -> None:
    manifest = read_folder(folder).manifest
    assert (manifest.prompts, manifest.needs_prompt, manifest.matryoshka, manifest.canary) == (Prompts(), None, [], [])
    assert (manifest.files, manifest.revision) == ({}, "")


def test_prompts_sizes_and_canaries_are_read(tmp_path: Path) -> None:
    canary = {"text": "one", "vector": VECTOR}
    path = TinyModel(
        "acme/full", prompts={"query": "one "}, needs_prompt=True, matryoshka=(2, 4), canary=[canary], is_hashed=True
    ).write(tmp_path)
    manifest = read_folder(path).manifest
    assert manifest.prompts == Prompts(query="one ")
    assert (manifest.needs_prompt, manifest.matryoshka) == (True, [2, 4])
    assert [(reference.text, reference.vector) for reference in manifest.canary] == [("one", VECTOR)]
    assert set(manifest.files) == {path.name for path in path.iterdir()} - {"model.json"}


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        pytest.param({"prompts": {"question": "q: "}}, "question", id="unknown-prompt"),
        pytest.param({"prompts": "q: "}, "prompts", id="prompt-that-is-no-object"),
        pytest.param({"matryoshka": [0]}, "matryoshka", id="no-dimension"),
        pytest.param({"matryoshka": [2, 5]}, "matryoshka contains 5, but dim is 4", id="more-than-there-are"),
        pytest.param({"matryoshka": 2}, "matryoshka", id="size-that-is-no-list"),
        pytest.param({"canary": [{"text": "one"}]}, "vector", id="canary-without-a-vector"),
        pytest.param({"canary": [{"text": "", "vector": VECTOR}]}, "text", id="canary-without-a-text"),
        pytest.param(
            {"canary": [{"text": "a", "vector": VECTOR, "prompt": ""}]}, "prompt", id="unknown-key-of-a-canary"
        ),
        pytest.param({"canary": [{"text": "a", "vector": [1.0]}]}, r"canary\[0\] must have 4", id="short-canary"),
        pytest.param(
            {"canary": [{"text": "a", "vector": VECTOR}, {"text": "b", "vector": [0.0] * 4}]},
            r"canary\[1\]",
            id="zero-canary",
        ),
        pytest.param(
            {"canary": [{"text": "a", "vector": [1e300, 0.0, 0.0, 0.0]}]}, r"canary\[0\]", id="canary-beyond-float32"
        ),
        pytest.param({"needs_prompt": "yes"}, "needs_prompt", id="needs-prompt-that-is-no-boolean"),
        pytest.param({"files": {"a": {"sha256": "g" * 64, "size_bytes": 1}}}, "sha256", id="digest-that-is-none"),
        pytest.param({"files": {"a": {"sha256": "0" * 64, "size_bytes": -1}}}, "size_bytes", id="negative-size"),
        pytest.param({"files": {"../a": {"sha256": "0" * 64, "size_bytes": 1}}}, "outside", id="file-outside"),
    ],
)
def test_manifest_that_breaks_a_rule_is_refused_and_says_which(
    keys: dict[str, object], reason: str, folder: Path
) -> None:
    change(folder, **keys)
    with pytest.raises((msgspec.ValidationError, ValueError), match=reason):
        read_folder(folder)


def test_folder_with_a_file_missing_is_read_all_the_same(folder: Path) -> None:
    """Whether a file is there is a matter of loading: until then the model is told of."""
    change(folder, model_file="absent.onnx", additional_files=["tokenizer.json"])
    found = read_folder(folder)
    assert found.files == ["absent.onnx", "tokenizer.json"]
    assert found.size_bytes == (folder / "tokenizer.json").stat().st_size


def test_every_file_is_named_once(folder: Path) -> None:
    facts = {"sha256": "0" * 64, "size_bytes": 1}
    change(folder, additional_files=["a", "model.onnx", "a"], files={"model.onnx": facts, "b": facts})
    assert read_folder(folder).files == ["model.onnx", "a", "b"]


def test_other_content_or_another_place_is_another_name_for_fastembed(tmp_path: Path) -> None:
    first = TinyModel("acme/tiny").write(tmp_path / "first")
    second = TinyModel("acme/tiny").write(tmp_path / "second")
    names = {read_folder(first).registry_name, read_folder(second).registry_name}
    change(first, description="changed")
    names.add(read_folder(first).registry_name)
    assert len(names) == 3
    assert all(name.startswith("acme/tiny@") for name in names)
