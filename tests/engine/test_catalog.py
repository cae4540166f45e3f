"""The catalogue: FastEmbed's registry and model folders, by name."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fastembed import TextEmbedding
from structlog.testing import capture_logs

from config import BUNDLED_MODEL, BUNDLED_MODELS_DIR
from engine.catalog import Catalog, Model, read_catalog
from engine.encoder import load_encoder
from engine.errors import ModelUnavailableError, UnknownModelError
from engine.model_cards import ModelCard
from engine.model_folders import IgnoredFolder
from tests.support.tiny import TinyModel

SMALL = "BAAI/bge-small-en-v1.5"


def model(name: str) -> Model:
    return Model(name, 4, 16, 1, 1, "", "", "local")


def catalog_of(folder: Path) -> Catalog:
    return read_catalog([folder], bundled=BUNDLED_MODEL)


def change(folder: Path, **keys: object) -> None:
    """Set *keys* in the manifest of *folder*."""
    manifest = {**json.loads((folder / "model.json").read_text()), **keys}
    (folder / "model.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def registry() -> Catalog:
    return read_catalog([], bundled=BUNDLED_MODEL)


@pytest.fixture(scope="module")
def product() -> Catalog:
    """What the service offers with default settings."""
    return catalog_of(BUNDLED_MODELS_DIR)


# --- FastEmbed's registry --------------------------------------------------------------------------------------------


def test_every_model_of_the_registry_is_a_hub_model_and_there_is_no_other(registry: Catalog) -> None:
    listed = {entry["model"]: entry for entry in TextEmbedding.list_supported_models() if "@" not in entry["model"]}
    assert {found.name for found in registry.models} == set(listed)
    wrong = [
        found.name
        for found in registry.models
        if (found.dim, found.source, found.folder) != (listed[found.name]["dim"], "hub", None)
        or found.size_bytes != pytest.approx(listed[found.name]["size_in_GB"] * 1e9)
        or not (found.memory_bytes and found.description and found.license)
    ]
    assert wrong == []


def test_longest_input_of_a_hub_model_is_read_from_its_description(registry: Catalog) -> None:
    expected = {
        SMALL: 512,
        "Qdrant/clip-ViT-B-32-text": 77,
        "jinaai/jina-embeddings-v2-base-en": 8192,
        "Qwen/Qwen3-Embedding-0.6B": 32768,
        "jinaai/jina-clip-v1": None,
    }
    assert {name: registry.get(name).max_tokens for name in expected} == expected


def test_only_hub_models_that_the_preloaded_cache_contains_are_marked_as_preloaded(tmp_path: Path) -> None:
    (tmp_path / "models--Qdrant--all-MiniLM-L6-v2-onnx").mkdir()
    preloaded = [found.name for found in read_catalog([], bundled="", preloaded=tmp_path).models if found.preloaded]
    assert preloaded == ["sentence-transformers/all-MiniLM-L6-v2"]
    assert not [found for found in read_catalog([], bundled="", preloaded=tmp_path / "none").models if found.preloaded]


# --- Model folders ---------------------------------------------------------------------------------------------------


def test_bundled_model_wins_over_the_registry_and_comes_first(product: Catalog) -> None:
    bundled, *others = product.models
    assert (bundled.name, bundled.source, bundled.dim, bundled.max_tokens) == (BUNDLED_MODEL, "bundled", 384, 256)
    assert bundled.folder
    assert bundled.folder.path == BUNDLED_MODELS_DIR / "all-MiniLM-L6-v2"
    names = [found.name for found in others]
    assert names == sorted(names, key=str.lower)


def test_folder_holds_a_local_model_under_its_own_name(tmp_path: Path) -> None:
    folder = TinyModel("acme/my-own_model.v1", dim=6, max_tokens=12).write(tmp_path)
    found = catalog_of(tmp_path).get("acme/my-own_model.v1")
    assert (found.source, found.dim, found.max_tokens, found.license) == ("local", 6, 12, "apache-2.0")
    assert found.folder
    assert found.folder.path == folder


def test_folder_in_models_dir_with_the_bundled_models_name_is_local(tmp_path: Path) -> None:
    folder = TinyModel(BUNDLED_MODEL).write(tmp_path)
    found = read_catalog([BUNDLED_MODELS_DIR, tmp_path], bundled=BUNDLED_MODEL).get(BUNDLED_MODEL)
    assert found.folder
    assert (found.folder.path, found.source) == (folder, "local")


def test_folder_wins_over_the_registry_whatever_the_case_of_its_name(tmp_path: Path, registry: Catalog) -> None:
    TinyModel(SMALL.lower()).write(tmp_path)
    catalog = catalog_of(tmp_path)
    found = catalog.get(SMALL)
    assert (found.name, found.source, found.dim) == (SMALL.lower(), "local", 4)
    assert len(catalog.models) == len(registry.models)


def test_later_folder_wins_over_an_earlier_one(tmp_path: Path) -> None:
    TinyModel("acme/tiny", dim=4).write(tmp_path / "first")
    TinyModel("acme/tiny", dim=5).write(tmp_path / "second")
    catalog = read_catalog([tmp_path / "first", tmp_path / "second"], bundled=BUNDLED_MODEL)
    assert catalog.get("acme/tiny").dim == 5


def test_size_is_that_of_the_files_and_memory_is_what_the_manifest_states(tmp_path: Path) -> None:
    folder = TinyModel("acme/tiny").write(tmp_path)
    size_bytes = (folder / "model.onnx").stat().st_size
    found = catalog_of(tmp_path).get("acme/tiny")
    assert (found.size_bytes, found.memory_bytes) == (size_bytes, size_bytes)
    change(folder, memory_bytes=123, additional_files=["tokenizer.json"])
    found = catalog_of(tmp_path).get("acme/tiny")
    assert found.size_bytes == size_bytes + (folder / "tokenizer.json").stat().st_size
    assert found.memory_bytes == 123


def test_card_of_a_folder_comes_from_its_manifest_and_not_from_the_registry(tmp_path: Path) -> None:
    TinyModel(SMALL).write(tmp_path)
    TinyModel("acme/full", prompts={"document": "one "}).write(tmp_path)
    catalog = catalog_of(tmp_path)
    assert catalog.get(SMALL).card == ModelCard(normalized=False, pooling="mean")
    assert catalog.get("acme/full").card.prompt_for("document") == "one "


def test_missing_folder_and_folder_without_a_manifest_count_as_empty(tmp_path: Path, registry: Catalog) -> None:
    (tmp_path / "notes").mkdir()
    with capture_logs() as events:
        for folder in (tmp_path, tmp_path / "nowhere"):
            catalog = catalog_of(folder)
            assert (catalog.models, catalog.ignored) == (registry.models, ())
    assert events == []


# One case per kind of error; tests/engine/test_manifest.py checks each rule of a manifest.
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b'{"name": "bro', "model.json is not valid JSON: Input data was truncated", id="not JSON"),
        pytest.param(b'{"dim": 0}', "Expected `int` >= 1 - at `$.dim`", id="wrong value"),
        pytest.param(
            b'{"name": "a", "dim": 4, "max_tokens": 9, "pooling": "cls", "normalized": true, "model_file": "../a"}',
            "the file '../a' is outside the folder",
            id="file outside the folder",
        ),
        pytest.param(None, "model.json cannot be read (Is a directory)", id="not readable"),
    ],
)
def test_folder_with_a_broken_manifest_is_ignored_and_logged(
    content: bytes | None, reason: str, tmp_path: Path
) -> None:
    """Other folders, and the registry's model with the same name, stay available."""
    TinyModel("whole").write(tmp_path)
    folder = TinyModel(SMALL).write(tmp_path)
    (folder / "model.json").unlink()
    if content is None:
        (folder / "model.json").mkdir()
    else:
        (folder / "model.json").write_bytes(content)
    with capture_logs() as events:
        catalog = catalog_of(tmp_path)
    assert [found.name for found in catalog.models if found.source != "hub"] == ["whole"]
    assert catalog.get(SMALL).source == "hub"
    [event] = events
    assert (event["event"], event["log_level"], event["folder"]) == ("model_folder_ignored", "warning", folder.name)
    assert event["reason"] == reason
    assert catalog.ignored == (IgnoredFolder(folder.name, reason),)


def test_folder_with_a_missing_file_is_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    missing: dict[str, dict[str, object]] = {
        "absent.onnx": {"model_file": "absent.onnx"},
        "weights.bin": {"additional_files": ["weights.bin"]},
        "gone.json": {"files": {"gone.json": {"sha256": "0" * 64, "size_bytes": 1}}},
        "model\0.onnx": {"model_file": "model\0.onnx"},
        ".": {"model_file": "."},  # a folder in place of a file
    }
    causes = {}
    for number, (name, keys) in enumerate(missing.items()):
        change(TinyModel(f"acme/{number}").write(tmp_path), **keys)
        found = catalog_of(tmp_path).get(f"acme/{number}")
        with pytest.raises(ModelUnavailableError) as unavailable:
            load_encoder(found, hub_cache_dir=tmp_path / "cache")
        causes[name] = unavailable.value.cause
    hint = "; the folder has 'model.onnx': set model_file in model.json"
    assert causes == {
        "absent.onnx": f"its file 'absent.onnx' is missing{hint}",
        "weights.bin": "its file 'weights.bin' is missing",
        "gone.json": "its file 'gone.json' is missing",
        "model\0.onnx": f"its file 'model\\x00.onnx' is missing{hint}",
        ".": "its file '.' is a folder",
    }


def test_folder_that_replaces_a_model_and_two_folders_of_one_name_are_reported(tmp_path: Path) -> None:
    TinyModel(SMALL.lower()).write(tmp_path)
    TinyModel(BUNDLED_MODEL).write(tmp_path)
    TinyModel("acme/tiny").write(tmp_path)
    TinyModel("acme/tiny").write(tmp_path / "other").rename(tmp_path / "zwilling")
    with capture_logs() as events:
        catalog = read_catalog([BUNDLED_MODELS_DIR, tmp_path], bundled=BUNDLED_MODEL)
    expected = [
        (SMALL, SMALL.lower().replace("/", "--"), "the hub model"),
        (BUNDLED_MODEL, BUNDLED_MODEL.replace("/", "--"), "the bundled model"),
        ("acme/tiny", "zwilling", "the folder 'acme--tiny'"),
    ]
    assert sorted((entry.name, entry.folder, entry.replaces) for entry in catalog.replaced) == sorted(expected)
    logged = [(line["model"], line["folder"], line["replaces"]) for line in events if line["event"] == "model_replaced"]
    assert sorted(logged) == sorted(expected)
    assert (
        str(catalog.replaced[-1])
        == "the folder 'zwilling' replaces the folder 'acme--tiny' of the same name, 'acme/tiny'"
    )


def test_nothing_is_reported_of_the_bundled_model_and_of_a_models_dir_that_is_named_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TinyModel("acme/tiny").write(tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    with capture_logs() as events:
        catalog = read_catalog(
            [BUNDLED_MODELS_DIR, tmp_path, Path(tmp_path.name), BUNDLED_MODELS_DIR / "."], bundled=BUNDLED_MODEL
        )
    assert (events, catalog.replaced) == ([], ())
    assert catalog.get(BUNDLED_MODEL).source == "bundled"


def test_folder_that_was_meant_to_be_a_model_is_reported_with_what_to_change(tmp_path: Path) -> None:
    kinds = {name: TinyModel(name).write(tmp_path) for name in ("bare", "extension", "case", "deep", ".git")}
    (kinds["bare"] / "model.json").unlink()
    (kinds[".git"] / "model.json").unlink()
    (kinds["extension"] / "model.json").rename(kinds["extension"] / "model.json.txt")
    (kinds["case"] / "model.json").rename(kinds["case"] / "Model.json")
    kinds["deep"].rename(tmp_path / "acme")
    os.mkfifo(TinyModel("pipe").write(tmp_path) / "model.json.fifo")
    (tmp_path / "pipe" / "model.json.fifo").replace(tmp_path / "pipe" / "model.json")
    TinyModel("inner").write(tmp_path / "owner")
    with capture_logs():
        ignored = {folder.name: folder.reason for folder in catalog_of(tmp_path).ignored}
    assert ignored == {
        "bare": "it has an ONNX file, but no model.json: add one with name, dim, max_tokens, pooling and normalized",
        "extension": "it has 'model.json.txt': rename it to model.json",
        "case": "it has 'Model.json': rename it to model.json",
        "pipe": "it has an ONNX file, but no model.json: add one with name, dim, max_tokens, pooling and normalized",
        "owner": "its subfolder 'inner' has a model.json: move 'inner' into MODELS_DIR itself",
    }


def test_models_dir_that_is_a_model_itself_is_reported(tmp_path: Path) -> None:
    folder = TinyModel("acme").write(tmp_path)
    with capture_logs():
        [ignored] = catalog_of(folder).ignored
    assert ignored.reason == "it has a model.json, but MODELS_DIR must be the folder that contains it"


def test_catalog_adopts_all_entries_of_another_one(tmp_path: Path) -> None:
    TinyModel("acme/tiny").write(tmp_path)
    catalog, other = Catalog([model("a")]), catalog_of(tmp_path)
    catalog.adopt(other)
    assert (catalog.models, catalog.find("a")) == (other.models, None)
    assert catalog.closest("tini") == ["acme/tiny"]


def test_models_with_changed_files_are_not_equal_and_notes_do_not_count(tmp_path: Path) -> None:
    folder = TinyModel("acme/tiny").write(tmp_path)
    first = catalog_of(tmp_path).get("acme/tiny")
    (folder / "README.md").write_text("notes")
    (folder / ".DS_Store").write_text("notes")
    assert catalog_of(tmp_path).get("acme/tiny") == first
    (folder / "model.onnx_data").write_bytes(b"new")
    assert catalog_of(tmp_path).get("acme/tiny") != first


# --- Names -----------------------------------------------------------------------------------------------------------


def test_model_is_found_whatever_the_case_of_its_name(registry: Catalog) -> None:
    for name in (SMALL, SMALL.upper(), SMALL.lower()):
        assert registry.get(name).name == SMALL
        assert registry.find(name) is registry.get(name)


def test_of_two_models_with_one_name_the_later_one_wins() -> None:
    first, second = model("a/Tiny"), model("A/tiny")
    catalog = Catalog([first, second])
    assert catalog.models == (second,)
    assert catalog.get("a/Tiny") is second


def test_unknown_model_is_rejected_with_the_closest_names(registry: Catalog) -> None:
    with pytest.raises(UnknownModelError, match=f"Did you mean .*{SMALL}") as unknown:
        registry.get("bge-small-en-v1.6")
    assert SMALL in unknown.value.closest


def test_closest_name_comes_first(product: Catalog) -> None:
    expected = {
        "BAAI/bge-smal-en-v1.5": SMALL,  # a letter is missing
        "baai/bge-small-en-v15": SMALL,  # a point is missing, in lower case
        "all-MiniLM-L6-v2": BUNDLED_MODEL,  # the owner is missing
        "openai/gte-large": "thenlper/gte-large",  # the owner is wrong
        "nomic-embed-text": "nomic-ai/nomic-embed-text-v1",  # the version is missing
    }
    assert {name: product.closest(name)[0] for name in expected} == expected


def test_closest_names_are_at_most_three_different_ones_and_none_if_nothing_is_similar(product: Catalog) -> None:
    for name in ("jinaai/jina-embeddings-v2-base", "BAAI/bge", "model", "a" * 100_000, "/"):
        closest = product.closest(name)
        assert len(set(closest)) == len(closest) <= 3, name
    assert [product.closest(name) for name in ("", "zzzzzz", "🙂")] == [[], [], []]


READ_AS_ANOTHER_USER = """
import sys
from pathlib import Path
import structlog
from engine.catalog import read_catalog
structlog.configure(processors=[lambda *_: (_ for _ in ()).throw(structlog.DropEvent)])
for folder in read_catalog([Path(sys.argv[1])], bundled="").ignored:
    print(f"{folder.name}: {folder.reason}")
"""


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root reads every file")
def test_folder_that_the_service_may_not_read_is_reported(tmp_path: Path) -> None:
    TinyModel("closed").write(tmp_path).chmod(0)
    (TinyModel("unreadable").write(tmp_path) / "model.json").chmod(0)
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    try:
        done = subprocess.run(
            [*drop, sys.executable, "-c", READ_AS_ANOTHER_USER, str(tmp_path)],
            cwd=BUNDLED_MODELS_DIR.parent,
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        (tmp_path / "closed").chmod(0o700)
    assert done.stdout.splitlines() == [
        "closed: it cannot be read (Permission denied): let the service's user read it",
        "unreadable: model.json cannot be read (Permission denied): let the service's user read it",
    ]
