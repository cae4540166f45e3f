"""A model's files are verified by their hashes, and the fingerprint identifies what its vectors depend on."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from engine.file_hashes import CorruptFileError, ExpectedFile, hash_same_kind
from engine.fingerprint import ModelFiles, files_of_folder
from engine.manifest import read_folder
from tests.support.tiny import TinyModel

CONTENTS = {"model.onnx": b"a graph", "tokenizer.json": b"{}", "deep/er.bin": bytes(range(256)) * 5000}


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


HASHES = (sha256, git_blob)


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


# --- Verification ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digest_of", HASHES)
@pytest.mark.parametrize("has_size", [True, False], ids=["with size", "without size"])
def test_expected_files_pass(files: ModelFiles, digest_of: Callable[[bytes], str], *, has_size: bool) -> None:
    expected = {
        name: ExpectedFile(digest_of(content), len(content) if has_size else None) for name, content in CONTENTS.items()
    }
    assert replace(files, expected=expected).fingerprint == files.fingerprint


@pytest.mark.parametrize("digest_of", HASHES)
def test_one_flipped_bit_is_detected(files: ModelFiles, digest_of: Callable[[bytes], str]) -> None:
    for name, whole in CONTENTS.items():
        content = bytearray(whole)
        content[len(content) // 2] ^= 1
        (files.folder / name).write_bytes(content)
        expected = ExpectedFile(digest_of(whole), len(content))
        with pytest.raises(CorruptFileError) as corrupt:
            _ = replace(files, expected={name: expected}).fingerprint
        hashes = f"{digest_of(bytes(content))[:12]}... instead of {digest_of(whole)[:12]}..."
        assert str(corrupt.value) == f"its file {name!r} is not the expected one: its hash is {hashes}"


def test_file_of_another_size_is_detected_with_both_sizes(files: ModelFiles) -> None:
    (files.folder / "model.onnx").write_bytes(b"a gra")
    expected = {"model.onnx": ExpectedFile(sha256(b"a graph"), 7)}
    with pytest.raises(CorruptFileError, match=r"'model.onnx' has 5 bytes instead of 7"):
        _ = replace(files, expected=expected).fingerprint


def test_missing_file_is_detected_whether_or_not_its_hash_is_known(files: ModelFiles) -> None:
    (files.folder / "tokenizer.json").unlink()
    for expected in ({"tokenizer.json": ExpectedFile(sha256(b"{}"), 2)}, {}):
        with pytest.raises(CorruptFileError, match=r"'tokenizer.json' is missing"):
            _ = replace(files, expected=expected).fingerprint


def test_hash_is_of_the_same_kind_as_the_given_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"hello\n")
    assert hash_same_kind("0" * 40, tmp_path / "a") == "ce013625030ba8dba906f756967f9e9ca394464a"  # `git hash-object`
    assert hash_same_kind("0" * 64, tmp_path / "a") == sha256(b"hello\n")
    assert [hash_same_kind(other, tmp_path / "a") for other in ("", "main", "0" * 39, "0" * 65)] == [None] * 4


# --- What the fingerprint depends on ---------------------------------------------------------------------------------


def test_fingerprint_contains_revision_hash_and_versions(files: ModelFiles) -> None:
    fingerprint = files.fingerprint
    assert (fingerprint.revision, fingerprint.onnx_sha256) == ("r1", sha256(CONTENTS["model.onnx"]))
    assert (fingerprint.onnxruntime, fingerprint.fastembed) == (version("onnxruntime"), version("fastembed"))
    assert len(fingerprint.digest) == 16
    int(fingerprint.digest, 16)


def renamed(files: ModelFiles) -> ModelFiles:
    (files.folder / "tokenizer.json").rename(files.folder / "other.json")
    return replace(files, names=("model.onnx", "other.json", "deep/er.bin"))


def test_fingerprint_changes_with_revision_settings_names_and_every_file(tmp_path: Path) -> None:
    def rewritten(name: str) -> Callable[[ModelFiles], ModelFiles]:
        def rewrite(files: ModelFiles) -> ModelFiles:
            (files.folder / name).write_bytes(CONTENTS[name] + b" ")
            return files

        return rewrite

    changes: list[Callable[[ModelFiles], ModelFiles]] = [
        lambda files: files,
        lambda files: replace(files, revision="r2"),
        lambda files: replace(files, settings="cls"),
        lambda files: replace(files, names=files.names[:2]),
        renamed,
        *map(rewritten, CONTENTS),
    ]
    digests = [change(write(tmp_path / str(number))).fingerprint.digest for number, change in enumerate(changes)]
    assert len(set(digests)) == len(changes)


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


def test_fingerprint_does_not_depend_on_order_path_known_hashes_or_other_files(files: ModelFiles) -> None:
    before = files.fingerprint
    assert replace(files, names=files.names[::-1]).fingerprint == before
    assert replace(files, expected={"model.onnx": ExpectedFile(sha256(b"a graph"))}).fingerprint == before
    assert write(files.folder / "elsewhere").fingerprint == before
    (files.folder / "README.md").write_text("changed")
    assert replace(files).fingerprint == before


# --- Model folders ---------------------------------------------------------------------------------------------------


def folder_files(folder: Path) -> ModelFiles:
    return files_of_folder(read_folder(folder))


def test_manifest_states_the_expected_files_of_a_folder(tmp_path: Path) -> None:
    folder = TinyModel("acme/tiny", is_hashed=True).write(tmp_path)
    files = folder_files(folder)
    assert set(files.expected) == {path.name for path in folder.iterdir()} - {"model.json"}
    assert files.fingerprint.onnx_sha256 == sha256((folder / "model.onnx").read_bytes())
    (folder / "config.json").write_bytes((folder / "config.json").read_bytes().replace(b"0", b"1"))
    with pytest.raises(CorruptFileError, match=r"config.json"):
        _ = folder_files(folder).fingerprint


def test_fingerprint_of_a_folder_without_hashes_changes_with_every_file_that_fastembed_reads(tmp_path: Path) -> None:
    """FastEmbed reads the padding from config.json, and adds the tokens of special_tokens_map.json."""
    folder = TinyModel("acme/tiny").write(tmp_path)
    digests = [folder_files(folder).fingerprint.digest]
    names = ["model.onnx", "tokenizer.json", "tokenizer_config.json", "config.json", "special_tokens_map.json"]
    for name in names:
        (folder / name).write_bytes((folder / name).read_bytes() + b" ")
        digests.append(folder_files(folder).fingerprint.digest)
    assert len(set(digests)) == 1 + len(names)


def test_fingerprint_of_a_folder_changes_with_the_manifests_keys_that_vectors_depend_on(tmp_path: Path) -> None:
    folder = TinyModel("acme/tiny").write(tmp_path)
    whole = json.loads((folder / "model.json").read_text())

    def digest(**keys: object) -> str:
        (folder / "model.json").write_text(json.dumps({**whole, **keys}))
        return folder_files(folder).fingerprint.digest

    before = digest()
    matters = {"pooling": "cls", "normalized": True, "output_name": "x", "revision": "r", "max_tokens": 9}
    assert [key for key, value in matters.items() if digest(**{key: value}) == before] == []
    does_not_matter = {"description": "new", "license": "mit", "memory_bytes": 5, "name": "acme/x"}
    assert [key for key, value in does_not_matter.items() if digest(**{key: value}) != before] == []
