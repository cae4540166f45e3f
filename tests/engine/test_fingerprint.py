"""A model's files are those that were promised, and the fingerprint stands for what vectors depend on."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from engine.fingerprint import CorruptFileError, ExpectedFile, ModelFiles, files_of_folder, hash_same_kind
from engine.manifest import read_folder
from tests.support.tiny import TinyModel

CONTENTS = {"model.onnx": b"a graph", "tokenizer.json": b"{}", "deep/er.bin": bytes(range(256)) * 5000}


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write(folder: Path, contents: Mapping[str, bytes] = CONTENTS) -> ModelFiles:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return ModelFiles(
        folder=folder, model_file="model.onnx", revision="r1", names=tuple(contents), expected={}, settings="mean"
    )


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    return write(tmp_path)


def test_fingerprint_holds_revision_hash_and_versions(files: ModelFiles) -> None:
    fingerprint = files.fingerprint
    assert (fingerprint.revision, fingerprint.onnx_sha256) == ("r1", sha256(CONTENTS["model.onnx"]))
    assert (fingerprint.onnxruntime, fingerprint.fastembed) == (version("onnxruntime"), version("fastembed"))
    assert len(fingerprint.digest) == 16
    int(fingerprint.digest, 16)


@pytest.mark.parametrize("digest_of", [pytest.param(sha256, id="sha256"), pytest.param(git_blob, id="git's id")])
@pytest.mark.parametrize("has_size", [True, False], ids=["with-size", "without-size"])
def test_files_as_promised_pass(files: ModelFiles, digest_of: Callable[[bytes], str], *, has_size: bool) -> None:
    promised = {
        name: ExpectedFile(digest_of(content), len(content) if has_size else None) for name, content in CONTENTS.items()
    }
    assert replace(files, expected=promised).fingerprint == files.fingerprint


@pytest.mark.parametrize("digest_of", [pytest.param(sha256, id="sha256"), pytest.param(git_blob, id="git's id")])
@pytest.mark.parametrize("name", CONTENTS)
def test_one_flipped_bit_of_a_promised_file_is_told(
    files: ModelFiles, name: str, digest_of: Callable[[bytes], str]
) -> None:
    content = bytearray(CONTENTS[name])
    content[len(content) // 2] ^= 1
    (files.folder / name).write_bytes(content)
    promised = ExpectedFile(digest_of(CONTENTS[name]), len(content))
    with pytest.raises(CorruptFileError, match="is not the expected one") as spoilt:
        _ = replace(files, expected={name: promised}).fingerprint
    assert repr(name) in str(spoilt.value)
    assert digest_of(CONTENTS[name])[:12] in str(spoilt.value)
    assert digest_of(bytes(content))[:12] in str(spoilt.value)
    assert str(files.folder) not in str(spoilt.value)


def test_file_of_another_size_is_told_with_both_sizes(files: ModelFiles) -> None:
    (files.folder / "model.onnx").write_bytes(b"a gra")
    promised = {"model.onnx": ExpectedFile(sha256(b"a graph"), 7)}
    with pytest.raises(CorruptFileError, match=r"'model.onnx' has 5 bytes instead of 7"):
        _ = replace(files, expected=promised).fingerprint


@pytest.mark.parametrize("is_promised", [True, False], ids=["promised", "not-promised"])
def test_missing_file_is_told(files: ModelFiles, *, is_promised: bool) -> None:
    (files.folder / "tokenizer.json").unlink()
    promised = {"tokenizer.json": ExpectedFile(sha256(b"{}"), 2)} if is_promised else {}
    with pytest.raises(CorruptFileError, match=r"'tokenizer.json' is missing"):
        _ = replace(files, expected=promised).fingerprint


def renamed(files: ModelFiles) -> ModelFiles:
    (files.folder / "tokenizer.json").rename(files.folder / "other.json")
    return replace(files, names=("model.onnx", "other.json", "deep/er.bin"))


def rewritten(name: str) -> Callable[[ModelFiles], ModelFiles]:
    def rewrite(files: ModelFiles) -> ModelFiles:
        (files.folder / name).write_bytes(CONTENTS[name] + b" ")
        return replace(files)

    return rewrite


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda files: replace(files, revision="r2"), id="revision"),
        pytest.param(lambda files: replace(files, settings="cls"), id="settings"),
        pytest.param(lambda files: replace(files, names=files.names[:2]), id="one file less"),
        pytest.param(renamed, id="another name"),
        *(pytest.param(rewritten(name), id=f"content of {name}") for name in CONTENTS),
    ],
)
def test_fingerprint_changes_with(change: Callable[[ModelFiles], ModelFiles], files: ModelFiles) -> None:
    before = files.fingerprint.digest
    assert change(files).fingerprint.digest != before


@pytest.mark.parametrize("package", ["onnxruntime", "fastembed"])
def test_fingerprint_changes_with_the_version_of(
    package: str, files: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files.fingerprint
    installed = tmp_path / "site" / f"{package}-99.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 99.0\n")
    monkeypatch.syspath_prepend(installed.parent)
    after = replace(files).fingerprint
    assert getattr(after, package) == "99.0"
    assert after.digest != before.digest


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda files: replace(files, names=files.names[::-1]), id="order of the files"),
        pytest.param(
            lambda files: replace(files, expected={"model.onnx": ExpectedFile(sha256(b"a graph"))}), id="promises"
        ),
        pytest.param(lambda files: write(files.folder / "elsewhere"), id="place"),
    ],
)
def test_fingerprint_stays_whatever_the(change: Callable[[ModelFiles], ModelFiles], files: ModelFiles) -> None:
    assert change(files).fingerprint == files.fingerprint


def test_fingerprint_stays_whatever_else_lies_in_the_folder(files: ModelFiles) -> None:
    before = files.fingerprint
    (files.folder / "README.md").write_text("changed")
    assert replace(files).fingerprint == before


@pytest.mark.parametrize("digest", ["", "main", "0" * 39, "0" * 65])
def test_digest_of_no_known_kind_has_no_hash(digest: str, files: ModelFiles) -> None:
    assert hash_same_kind(digest, files.folder / "model.onnx") is None


def test_known_hashes_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"hello\n")
    assert hash_same_kind("0" * 40, tmp_path / "a") == "ce013625030ba8dba906f756967f9e9ca394464a"  # `git hash-object`
    assert hash_same_kind("0" * 64, tmp_path / "a") == sha256(b"hello\n")


def folder_files(folder: Path) -> ModelFiles:
    return files_of_folder(read_folder(folder))


def test_files_of_a_folder_are_promised_by_its_manifest(tmp_path: Path) -> None:
    folder = TinyModel("acme/tiny", is_hashed=True).write(tmp_path)
    files = folder_files(folder)
    assert set(files.expected) == {path.name for path in folder.iterdir()} - {"model.json"}
    assert files.fingerprint.onnx_sha256 == sha256((folder / "model.onnx").read_bytes())
    (folder / "config.json").write_bytes((folder / "config.json").read_bytes().replace(b"0", b"1"))
    with pytest.raises(CorruptFileError, match=r"config.json"):
        _ = folder_files(folder).fingerprint


@pytest.mark.parametrize(
    "name", ["model.onnx", "tokenizer.json", "tokenizer_config.json", "config.json", "special_tokens_map.json"]
)
def test_fingerprint_of_a_folder_without_promises_changes_with_every_file_that_has_a_part(
    name: str, tmp_path: Path
) -> None:
    """FastEmbed takes the padding from config.json, and adds the tokens of special_tokens_map.json."""
    folder = TinyModel("acme/tiny").write(tmp_path)
    before = folder_files(folder).fingerprint.digest
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    assert folder_files(folder).fingerprint.digest != before


@pytest.mark.parametrize(
    "keys",
    [{"pooling": "cls"}, {"normalized": True}, {"output_name": "x"}, {"revision": "r"}, {"max_tokens": 9}],
    ids=lambda keys: next(iter(keys)),
)
def test_fingerprint_of_a_folder_changes_with_its_manifests(keys: dict[str, object], tmp_path: Path) -> None:
    folder = TinyModel("acme/tiny").write(tmp_path)
    before = folder_files(folder).fingerprint.digest
    change_manifest(folder, **keys)
    assert folder_files(folder).fingerprint.digest != before


@pytest.mark.parametrize(
    "keys",
    [{"description": "new"}, {"license": "mit"}, {"memory_bytes": 5}, {"name": "acme/x"}],
    ids=lambda keys: next(iter(keys)),
)
def test_fingerprint_of_a_folder_stays_whatever_its_manifests(keys: dict[str, object], tmp_path: Path) -> None:
    folder = TinyModel("acme/tiny").write(tmp_path)
    before = folder_files(folder).fingerprint.digest
    change_manifest(folder, **keys)
    assert folder_files(folder).fingerprint.digest == before


def change_manifest(folder: Path, **keys: object) -> None:
    manifest = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**manifest, **keys}))
