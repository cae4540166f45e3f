"""A model's files are verified by their hashes, and the fingerprint identifies what its vectors depend on."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from fastembed import TextEmbedding
from tokenizers import Tokenizer

from engine.catalog import read_catalog
from engine.encoder import load_encoder
from engine.fastembed_adapter import registry_model
from engine.file_hashes import CorruptFileError, ExpectedFile, hash_same_kind
from engine.fingerprint import POSTPROCESSING, ModelFiles, VectorFacts, files_of_folder
from engine.hub import fetch
from engine.manifest import Prompts, read_folder
from tests.support.tiny import TinyModel, gather
from tests.support.tiny_models import COMMIT, TASKED, cache_static, cache_tasked, snapshot_of

HUB_MODEL = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"
"""A model of the registry with mean pooling that is not normalised, as `TinyModel` writes them."""

TABLE = np.arange(12, dtype=np.float32).reshape(3, 4)
GRAPH: bytes = gather(TABLE).SerializeToString()
CONTENTS = {"model.onnx": GRAPH, "tokenizer.json": b"{}", "deep/er.bin": bytes(range(256)) * 5000}


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


HASHES = (sha256, git_blob)


def write(folder: Path, contents: Mapping[str, bytes] = CONTENTS) -> ModelFiles:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    facts = VectorFacts("mean", normalized=True, output=0, dim=4)
    return ModelFiles(
        folder=folder, model_file="model.onnx", revision="r1", listed=tuple(contents), expected={}, facts=facts
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
    (files.folder / "model.onnx").write_bytes(GRAPH[:-2])
    expected = {"model.onnx": ExpectedFile(sha256(GRAPH), len(GRAPH))}
    sizes = f"'model.onnx' has {len(GRAPH) - 2} bytes instead of {len(GRAPH)}"
    with pytest.raises(CorruptFileError, match=sizes):
        _ = replace(files, expected=expected).fingerprint


def test_missing_file_is_detected_whether_or_not_its_hash_is_known(files: ModelFiles) -> None:
    (files.folder / "tokenizer.json").unlink()
    for expected in ({"tokenizer.json": ExpectedFile(sha256(b"{}"), 2)}, {}):
        with pytest.raises(CorruptFileError, match=r"'tokenizer.json' is missing"):
            _ = replace(files, expected=expected).fingerprint


def test_git_lfs_pointer_is_named_as_such_with_what_to_do(files: ModelFiles) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    for name in CONTENTS:
        whole = (files.folder / name).read_bytes()
        (files.folder / name).write_bytes(pointer)
        with pytest.raises(CorruptFileError, match=f"{name}' is a git-lfs pointer .* 'git lfs pull'"):
            _ = replace(files).fingerprint
        (files.folder / name).write_bytes(whole)


def test_hash_is_of_the_same_kind_as_the_given_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"hello\n")
    assert hash_same_kind("0" * 40, tmp_path / "a") == "ce013625030ba8dba906f756967f9e9ca394464a"  # `git hash-object`
    assert hash_same_kind("0" * 64, tmp_path / "a") == sha256(b"hello\n")
    assert [hash_same_kind(other, tmp_path / "a") for other in ("", "main", "0" * 39, "0" * 65)] == [None] * 4


# --- What the fingerprint depends on ---------------------------------------------------------------------------------


def renamed(files: ModelFiles) -> ModelFiles:
    (files.folder / "model.onnx").rename(files.folder / "other.onnx")
    return replace(files, model_file="other.onnx", listed=("other.onnx",))


def test_fingerprint_changes_with_each_fact(files: ModelFiles) -> None:
    facts = files.facts
    changes = [
        replace(facts, pooling="cls"),
        replace(facts, normalized=False),
        replace(facts, output="another"),
        replace(facts, dim=5),
        replace(facts, max_tokens=9),
        replace(facts, prompts=Prompts(query="query: ")),
        replace(facts, prompts=Prompts(document="query: ")),
        replace(facts, uses_tasks=True),
        replace(facts, layer_norm=True),
    ]
    digests = [replace(files, facts=changed).fingerprint.digest for changed in [facts, *changes]]
    assert len(set(digests)) == 1 + len(changes)


def test_fingerprint_depends_on_nothing_else(files: ModelFiles) -> None:
    before = files.fingerprint
    assert len(before.digest) == 16
    int(before.digest, 16)
    assert before.onnx_sha256 == sha256(GRAPH)
    same = {
        "revision": replace(files, revision="r2"),
        "listed files": replace(files, listed=()),
        "known hashes": replace(files, expected={"model.onnx": ExpectedFile(sha256(GRAPH))}),
        "path": write(files.folder / "elsewhere"),
        "name": renamed(write(files.folder / "renamed")),
        "output by its name": replace(files, facts=replace(files.facts, output="last_hidden_state")),
    }
    assert {what for what, other in same.items() if other.fingerprint.digest != before.digest} == set()


def test_versions_of_libraries_change_the_runtime_and_not_the_fingerprint(
    files: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = [files.fingerprint]
    assert seen[0].runtime.onnxruntime == version("onnxruntime")
    for package in ("onnxruntime", "fastembed", "tokenizers"):
        installed = tmp_path / package / f"{package}-99.0.dist-info"
        installed.mkdir(parents=True)
        (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 99.0\n")
        monkeypatch.syspath_prepend(installed.parent)
        seen.append(replace(files).fingerprint)
        assert getattr(seen[-1].runtime, package) == "99.0"
    assert len({fingerprint.digest for fingerprint in seen}) == 1
    assert len({fingerprint.runtime.id for fingerprint in seen}) == len(seen)


# --- Model folders ---------------------------------------------------------------------------------------------------


def folder_files(folder: Path) -> ModelFiles:
    return files_of_folder(read_folder(folder))


def digest_of(folder: Path) -> str:
    return folder_files(folder).fingerprint.digest


def rewrite(path: Path, **keys: object) -> None:
    """Change *keys* of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return TinyModel("acme/tiny").write(tmp_path)


def test_manifest_states_the_expected_files_of_a_folder(tmp_path: Path) -> None:
    folder = TinyModel("acme/tiny", is_hashed=True).write(tmp_path)
    files = folder_files(folder)
    assert set(files.expected) == {path.name for path in folder.iterdir()} - {"model.json"}
    assert files.fingerprint.onnx_sha256 == sha256((folder / "model.onnx").read_bytes())
    (folder / "config.json").write_bytes((folder / "config.json").read_bytes().replace(b"0", b"1"))
    with pytest.raises(CorruptFileError, match=r"config.json"):
        _ = folder_files(folder).fingerprint


def test_fingerprint_of_a_folder_changes_with_the_manifests_keys_that_vectors_depend_on(folder: Path) -> None:
    whole = json.loads((folder / "model.json").read_text())

    def digest(**keys: object) -> str:
        (folder / "model.json").write_text(json.dumps({**whole, **keys}))
        return digest_of(folder)

    before = digest()
    matters = {
        "pooling": "cls",
        "normalized": True,
        "output_name": "x",
        "max_tokens": 9,
        "dim": 5,
        "prompts": {"query": "q: "},
    }
    assert [key for key, value in matters.items() if digest(**{key: value}) == before] == []
    does_not_matter = {
        "description": "new",
        "license": "mit",
        "memory_bytes": 5,
        "name": "acme/x",
        "revision": "r",
        "source": "elsewhere",
        "output_name": "last_hidden_state",
        "needs_prompt": True,
        "matryoshka": [2],
        "max_tokens": 17,  # the tokenizer's limit is 16
        "additional_files": ["tokenizer.json"],
        "canary": [{"text": "one", "vector": [1, 0, 0, 0]}],
    }
    assert [key for key, value in does_not_matter.items() if digest(**{key: value}) != before] == []


def add_files_that_nothing_reads(folder: Path) -> None:
    for name in (".DS_Store", "._model.onnx", "README.md", "vocab.txt", "model.onnx.bak", ".git/HEAD", "1_Pooling/x"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"anything")


def write_json_otherwise(folder: Path) -> None:
    """Write the same JSON with other spaces, escapes and order."""
    for path in folder.glob("*.json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(dict(reversed(content.items())), indent=3, ensure_ascii=False))


def add_keys_that_nothing_reads(folder: Path) -> None:
    rewrite(folder / "tokenizer_config.json", tokenizer_class="BertTokenizer", name_or_path="/home/a", max_length=None)
    rewrite(folder / "config.json", transformers_version="5.0", torch_dtype="float32")
    rewrite(folder / "tokenizer.json", decoder={"type": "WordPiece", "prefix": "##", "cleanup": True})


def state_the_defaults(folder: Path) -> None:
    rewrite(folder / "tokenizer_config.json", truncation_side="right", padding_side="right", max_length=99)
    (folder / "config.json").unlink()  # the id of the padding token is in the vocabulary, too


def let_the_tokenizer_truncate_and_pad(folder: Path) -> None:
    """FastEmbed replaces both."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(7)
    tokenizer.enable_padding(pad_token="[PAD]", length=30)  # noqa: S106 - not a password
    tokenizer.save(str(folder / "tokenizer.json"))


def write_line_ends_otherwise(folder: Path) -> None:
    for path in folder.glob("*.json"):
        path.write_bytes(path.read_bytes() + b"\r\n")


@pytest.mark.parametrize(
    "change",
    [
        add_files_that_nothing_reads,
        write_json_otherwise,
        add_keys_that_nothing_reads,
        state_the_defaults,
        let_the_tokenizer_truncate_and_pad,
        write_line_ends_otherwise,
    ],
)
def test_fingerprint_does_not_depend_on_what_changes_no_vector(change: Callable[[Path], None], folder: Path) -> None:
    before, facts = digest_of(folder), token_facts(folder)
    change(folder)
    assert token_facts(folder) == facts
    assert digest_of(folder) == before


def token_facts(folder: Path) -> object:
    """Return how FastEmbed itself sets the tokenizer up, and some tokens."""
    encoder = load_encoder(read_catalog([folder.parent], bundled="").get("acme/tiny"), hub_cache_dir=folder / "none")
    tokenizer, padding = encoder.tokenizer, encoder._sessions.one_thread._padding  # noqa: SLF001
    items = tokenizer.tokenize(["one two five", "one [MASK] <x>", "six " * 40])
    padded = (padding["direction"], padding["pad_id"], padding["pad_to_multiple_of"])
    return encoder.max_tokens, tokenizer.default_side, padded, [list(item.ids) for item in items]


def change_vocabulary(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["one"], vocabulary["two"] = vocabulary["two"], vocabulary["one"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def pad_to_eight(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(pad_token="[PAD]", pad_to_multiple_of=8)  # noqa: S106 - not a password
    tokenizer.save(str(folder / "tokenizer.json"))


CHANGES: dict[str, Callable[[Path], None]] = {
    "vocabulary": change_vocabulary,
    "added token": lambda folder: rewrite(folder / "special_tokens_map.json", mask_token="[MASK]"),  # noqa: S106
    "list of added tokens": lambda folder: rewrite(
        folder / "special_tokens_map.json", additional_special_tokens=["<x>"]
    ),
    "normalizer": lambda folder: rewrite(folder / "tokenizer.json", normalizer={"type": "Lowercase"}),
    "limit": lambda folder: rewrite(folder / "tokenizer_config.json", model_max_length=15),
    "second limit": lambda folder: rewrite(folder / "tokenizer_config.json", max_length=14),
    "truncated side": lambda folder: rewrite(folder / "tokenizer_config.json", truncation_side="left"),
    "padded side": lambda folder: rewrite(folder / "tokenizer_config.json", padding_side="left"),
    "padding id": lambda folder: rewrite(folder / "config.json", pad_token_id=3),
    "multiple": pad_to_eight,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_fingerprint_changes_with_everything_that_changes_tokens(change: Callable[[Path], None], folder: Path) -> None:
    before = digest_of(folder)
    change(folder)
    assert digest_of(folder) != before


# --- Where the files are ---------------------------------------------------------------------------------------------


def link_files(snapshot: Path, model_folder: Path) -> None:
    """Fill a snapshot as the hub's client does: with links to blobs that are named by their hashes."""
    blobs = snapshot.parents[1] / "blobs"
    blobs.mkdir()
    for path in model_folder.iterdir():
        name = "model_optimized.onnx" if path.name == "model.onnx" else path.name
        blob = blobs / (sha256 if name.endswith("onnx") else git_blob)(path.read_bytes())
        shutil.copy(path, blob)
        (snapshot / name).symlink_to(os.path.relpath(blob, snapshot))


def copy_files(snapshot: Path, model_folder: Path) -> None:
    for path in model_folder.iterdir():
        shutil.copy(path, snapshot / ("model_optimized.onnx" if path.name == "model.onnx" else path.name))


def test_same_files_have_one_fingerprint_in_the_hub_cache_in_an_image_and_in_a_folder(tmp_path: Path) -> None:
    model_folder = TinyModel("acme/tiny", dim=384).write(tmp_path / "models")
    repository = registry_model(HUB_MODEL).repository
    found = {"folder": folder_files(model_folder).fingerprint}
    for name, fill in {"links": link_files, "copies": copy_files}.items():
        snapshot = snapshot_of(repository, tmp_path / name)
        fill(snapshot, model_folder)
        (snapshot / ".DS_Store").write_bytes(b"anything")
        found[name] = fetch(read_catalog([], bundled="").get(HUB_MODEL), tmp_path / name).fingerprint
        preloaded = read_catalog([], bundled="", preloaded=tmp_path / name).get(HUB_MODEL)
        found[f"{name} in an image"] = fetch(preloaded, tmp_path / "empty").fingerprint
        assert (found[name].revision, snapshot.name) == (COMMIT, COMMIT)
    assert len({fingerprint.digest for fingerprint in found.values()}) == 1


def test_damaged_blob_of_the_hub_is_found_but_a_damaged_readme_is_not_looked_at(tmp_path: Path) -> None:
    model_folder = TinyModel("acme/tiny", dim=384).write(tmp_path / "models")
    (model_folder / "README.md").write_text("about")
    snapshot = snapshot_of(registry_model(HUB_MODEL).repository, tmp_path)
    link_files(snapshot, model_folder)
    model = read_catalog([], bundled="").get(HUB_MODEL)
    before = fetch(model, tmp_path).fingerprint
    (snapshot / "README.md").resolve().write_text("damaged")
    assert fetch(model, tmp_path).fingerprint == before
    (snapshot / "tokenizer_config.json").resolve().write_text("{}")
    with pytest.raises(CorruptFileError, match=r"tokenizer_config\.json"):
        _ = fetch(model, tmp_path).fingerprint


def test_models_with_tasks_and_static_models_have_fingerprints(tmp_path: Path) -> None:
    cache_static(tmp_path)
    cache_tasked(tmp_path)
    catalog = read_catalog([], bundled="")
    static, tasked = (fetch(catalog.get(name), tmp_path) for name in ("minishlab/potion-base-8M", TASKED))
    assert tasked.facts.uses_tasks
    before = static.fingerprint.digest
    (static.folder / "config.json").write_text('{"pad_token_id": 7}')  # nothing reads it for a static model
    assert replace(static).fingerprint.digest == before != tasked.fingerprint.digest
    change_vocabulary(static.folder)
    assert replace(static).fingerprint.digest != before


def test_postprocessing_of_every_class_of_the_registry_is_known() -> None:
    """An upgrade of FastEmbed that adds or renames a class fails here: look at what it does with the graph's output."""
    kinds = {kind.__name__ for kind in TextEmbedding.EMBEDDINGS_REGISTRY} - {"CustomTextEmbedding"}
    assert set(POSTPROCESSING) == kinds


def test_canonical_form_of_a_tokenizer_stays_the_same_in_all_versions(tmp_path: Path) -> None:
    """Numbers and characters that JSON writers write differently. A new digest here makes everybody embed again."""
    content = {"model": {"vocab": [['\u2581e\u0301 \u007f\u2028/"', -1e-7], ["b", 1e16], ["c", -0.0], ["d", 13.5]]}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "model.onnx").write_bytes(b"\x3a\x00")  # an empty graph
    assert write(tmp_path, {}).fingerprint.digest == "d2cd3d8bddba6dcc"
