import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fastembed import TextEmbedding
from structlog.testing import capture_logs

from config import BUNDLED_MODEL, BUNDLED_MODELS_DIR
from engine.catalog import Catalog, Model, read_catalog
from engine.encoder import load_encoder
from engine.errors import ModelUnavailableError, UnknownModelError
from engine.model_cards import ModelCard
from tests.support.tiny import TinyModel

SMALL = "BAAI/bge-small-en-v1.5"
REGISTRY = [facts for facts in TextEmbedding.list_supported_models() if "@" not in facts["model"]]


def model(name: str) -> Model:
    return Model(name, 4, 16, 1, 1, "", "", "local")


def catalog_of(folder: Path) -> Catalog:
    return read_catalog([folder], bundled=BUNDLED_MODEL)


@pytest.fixture(scope="module")
def registry() -> Catalog:
    return read_catalog([], bundled=BUNDLED_MODEL)


@pytest.fixture(scope="module")
def product() -> Catalog:
    """What the service offers with default settings."""
    return catalog_of(BUNDLED_MODELS_DIR)


@pytest.mark.parametrize("facts", [pytest.param(facts, id=facts["model"]) for facts in REGISTRY])
def test_model_of_the_registry_is_there(facts: Mapping[str, Any], registry: Catalog) -> None:
    found = registry.get(facts["model"])
    assert (found.name, found.dim, found.source, found.folder) == (facts["model"], facts["dim"], "hub", None)
    assert found.size_bytes == pytest.approx(facts["size_in_GB"] * 1e9)
    assert found.memory_bytes > 0
    assert found.description
    assert found.license


def test_registry_is_there_and_nothing_else(registry: Catalog) -> None:
    assert {found.name for found in registry.models} == {facts["model"] for facts in REGISTRY}


@pytest.mark.parametrize(
    ("name", "max_tokens"),
    [
        (SMALL, 512),
        ("Qdrant/clip-ViT-B-32-text", 77),
        ("jinaai/jina-embeddings-v2-base-en", 8192),
        ("Qwen/Qwen3-Embedding-0.6B", 32768),
        ("jinaai/jina-clip-v1", None),
    ],
)
def test_longest_input_is_read_from_the_registrys_words(name: str, max_tokens: int | None, registry: Catalog) -> None:
    assert registry.get(name).max_tokens == max_tokens


def test_models_that_need_no_download_come_first_then_names(product: Catalog) -> None:
    names = [found.name for found in product.models]
    assert names[0] == BUNDLED_MODEL
    assert names[1:] == sorted(names[1:], key=str.lower)


def test_bundled_model_wins_over_the_registry(product: Catalog) -> None:
    bundled = product.get(BUNDLED_MODEL)
    assert (bundled.source, bundled.dim, bundled.max_tokens) == ("bundled", 384, 256)
    assert bundled.folder
    assert bundled.folder.path == BUNDLED_MODELS_DIR / "all-MiniLM-L6-v2"


def test_folder_of_ones_own_under_the_bundled_models_name_is_local(tmp_path: Path) -> None:
    folder = TinyModel(BUNDLED_MODEL).write(tmp_path)
    found = read_catalog([BUNDLED_MODELS_DIR, tmp_path], bundled=BUNDLED_MODEL).get(BUNDLED_MODEL)
    assert found.folder
    assert (found.folder.path, found.source) == (folder, "local")


def test_folder_holds_a_local_model_under_its_own_name(tmp_path: Path) -> None:
    folder = TinyModel("acme/my-own_model.v1", dim=6, max_tokens=12).write(tmp_path)
    found = catalog_of(tmp_path).get("acme/my-own_model.v1")
    assert (found.source, found.dim, found.max_tokens, found.license) == ("local", 6, 12, "apache-2.0")
    assert found.folder
    assert found.folder.path == folder


@pytest.mark.parametrize("name", [SMALL, SMALL.lower()])
def test_folder_wins_over_the_registry_whatever_the_case(name: str, tmp_path: Path) -> None:
    TinyModel(name).write(tmp_path)
    catalog = catalog_of(tmp_path)
    found = catalog.get(SMALL)
    assert (found.name, found.source, found.dim) == (name, "local", 4)
    assert len(catalog.models) == len(REGISTRY)


def test_later_folder_wins_over_an_earlier_one(tmp_path: Path) -> None:
    TinyModel("acme/tiny", dim=4).write(tmp_path / "first")
    TinyModel("acme/tiny", dim=5).write(tmp_path / "second")
    catalog = read_catalog([tmp_path / "first", tmp_path / "second"], bundled=BUNDLED_MODEL)
    assert catalog.get("acme/tiny").dim == 5


def test_size_is_that_of_the_files_and_memory_what_the_manifest_states(tmp_path: Path) -> None:
    folder = TinyModel("acme/tiny").write(tmp_path)
    size_bytes = (folder / "model.onnx").stat().st_size
    found = catalog_of(tmp_path).get("acme/tiny")
    assert (found.size_bytes, found.memory_bytes) == (size_bytes, size_bytes)
    change(folder, memory_bytes=123, additional_files=["tokenizer.json"])
    found = catalog_of(tmp_path).get("acme/tiny")
    assert found.size_bytes == size_bytes + (folder / "tokenizer.json").stat().st_size
    assert found.memory_bytes == 123


def test_other_content_is_another_model_to_fastembed(tmp_path: Path) -> None:
    folder = TinyModel("acme/tiny").write(tmp_path)
    before = catalog_of(tmp_path).get("acme/tiny").folder
    assert before == catalog_of(tmp_path).get("acme/tiny").folder
    change(folder, description="changed")
    after = catalog_of(tmp_path).get("acme/tiny").folder
    assert before
    assert after
    assert before.registry_name != after.registry_name


def test_folder_that_does_not_exist_counts_as_empty(tmp_path: Path) -> None:
    assert len(catalog_of(tmp_path / "nowhere").models) == len(REGISTRY)


def test_folder_without_a_manifest_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    with capture_logs() as events:
        assert len(catalog_of(tmp_path).models) == len(REGISTRY)
    assert events == []


def change(folder: Path, **keys: object) -> None:
    """Set *keys* of the manifest in *folder*; None takes one out."""
    manifest = {**json.loads((folder / "model.json").read_text()), **keys}
    (folder / "model.json").write_text(json.dumps({key: value for key, value in manifest.items() if value is not None}))


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        pytest.param({"pooling_mode": "mean"}, "pooling_mode", id="unknown key"),
        pytest.param({"dim": None}, "dim", id="key missing"),
        pytest.param({"dim": 0}, "dim", id="no dimension"),
        pytest.param({"dim": "4"}, "dim", id="wrong type"),
        pytest.param({"max_tokens": 2}, "max_tokens", id="no room for a word"),
        pytest.param({"pooling": "max"}, "pooling", id="unknown pooling"),
        pytest.param({"name": ""}, "name", id="no name"),
        pytest.param({"name": "a b"}, "name", id="space in the name"),
        pytest.param({"name": "/a"}, "name", id="slash before the name"),
        pytest.param({"name": "a@b"}, "name", id="at sign in the name"),
        pytest.param({"name": "a\n"}, "name", id="line break in the name"),
        pytest.param({"model_file": "../model.onnx"}, "outside", id="file outside of the folder"),
        pytest.param({"model_file": "sub/../../x.onnx"}, "outside", id="file outside by a detour"),
        pytest.param({"additional_files": ["../x"]}, "outside", id="additional file outside"),
        pytest.param({"files": {"../x": {"sha256": "0" * 64, "size_bytes": 1}}}, "outside", id="checked file outside"),
        pytest.param({"model_file": "/etc/hostname"}, "outside", id="absolute address"),
        pytest.param({"files": {"model.onnx": {"sha256": "0", "size_bytes": 1}}}, "sha256", id="no checksum"),
        pytest.param({"matryoshka": [5]}, "matryoshka", id="size above the dimension"),
        pytest.param({"canary": [{"text": "one", "vector": [1.0]}]}, "canary", id="canary of another dimension"),
        pytest.param({"prompts": {"passage": "p: "}}, "passage", id="unknown prompt"),
    ],
)
def test_folder_with_a_broken_manifest_is_ignored_and_told(
    keys: dict[str, object], reason: str, tmp_path: Path
) -> None:
    folder = TinyModel("broken").write(tmp_path)
    TinyModel("whole").write(tmp_path)
    change(folder, **keys)
    with capture_logs() as events:
        catalog = catalog_of(tmp_path)
    assert [(found.name, found.source) for found in catalog.models if found.source != "hub"] == [("whole", "local")]
    [event] = events
    assert (event["event"], event["log_level"], event["folder"]) == ("model_folder_ignored", "warning", "broken")
    assert reason in event["reason"]
    assert str(tmp_path) not in event["reason"]
    [ignored] = catalog.ignored
    assert (ignored.name, ignored.reason) == ("broken", event["reason"])


def test_folders_that_are_models_are_not_among_the_ignored(tmp_path: Path) -> None:
    TinyModel("acme/tiny").write(tmp_path)
    (tmp_path / "notes").mkdir()
    assert catalog_of(tmp_path).ignored == ()


@pytest.mark.parametrize(
    ("keys", "missing"),
    [
        pytest.param({"model_file": "absent.onnx"}, "absent.onnx", id="file missing"),
        pytest.param({"additional_files": ["weights.bin"]}, "weights.bin", id="additional file missing"),
        pytest.param(
            {"files": {"gone.json": {"sha256": "0" * 64, "size_bytes": 1}}}, "gone.json", id="checked file missing"
        ),
        pytest.param({"model_file": "model\0.onnx"}, "model\0.onnx", id="null character in a file's name"),
        pytest.param({"model_file": "."}, ".", id="folder in place of a file"),
    ],
)
def test_folder_whose_file_is_missing_is_a_model_and_is_told_when_it_is_loaded(
    keys: dict[str, object], missing: str, tmp_path: Path
) -> None:
    change(TinyModel("acme/lacking").write(tmp_path), **keys)
    catalog = catalog_of(tmp_path)
    assert (catalog.get("acme/lacking").source, catalog.ignored) == ("local", ())
    with pytest.raises(ModelUnavailableError, match="is missing") as refused:
        load_encoder(catalog.get("acme/lacking"), hub_cache_dir=tmp_path / "cache")
    assert refused.value.cause == f"its file {missing!r} is missing"


def test_card_of_a_folder_is_what_its_manifest_states(tmp_path: Path) -> None:
    TinyModel("acme/plain").write(tmp_path)
    TinyModel("acme/full", normalized=True, prompts={"document": "one "}, matryoshka=(2,)).write(tmp_path)
    catalog = catalog_of(tmp_path)
    assert (catalog.get("acme/plain").card.normalized, catalog.get("acme/plain").card.needs_prompt) == (False, False)
    card = catalog.get("acme/full").card
    assert (card.normalized, card.needs_prompt, card.prompt_for("document")) == (True, True, "one ")
    assert card.matryoshka
    assert card.matryoshka.sizes == (2,)


def test_card_of_the_registrys_model_is_no_matter_to_a_folder_of_its_name(tmp_path: Path) -> None:
    TinyModel(SMALL).write(tmp_path)
    assert catalog_of(tmp_path).get(SMALL).card == ModelCard(normalized=False)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b'{"name": "bro', id="cut short"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b'{"name": "\xff"}', id="not UTF-8"),
        pytest.param(b"[" * 100_000, id="nested without end"),
    ],
)
def test_manifest_that_is_no_json_object_is_ignored_and_told(content: bytes, tmp_path: Path) -> None:
    folder = TinyModel("broken").write(tmp_path)
    TinyModel("whole").write(tmp_path)
    (folder / "model.json").write_bytes(content)
    with capture_logs() as events:
        catalog = catalog_of(tmp_path)
    assert catalog.find("whole")
    assert not catalog.find("broken")
    assert [event["event"] for event in events] == ["model_folder_ignored"]


def test_manifest_that_cannot_be_read_is_ignored_and_told(tmp_path: Path) -> None:
    folder = TinyModel("broken").write(tmp_path)
    (folder / "model.json").unlink()
    (folder / "model.json").mkdir()
    with capture_logs() as events:
        assert not catalog_of(tmp_path).find("broken")
    assert [event["reason"] for event in events] == ["Is a directory: model.json"]


def test_broken_folder_leaves_the_registrys_model_of_its_name(tmp_path: Path) -> None:
    change(TinyModel(SMALL).write(tmp_path), dim=0)
    with capture_logs():
        assert catalog_of(tmp_path).get(SMALL).source == "hub"


@pytest.mark.parametrize("name", [SMALL, SMALL.upper(), SMALL.lower()])
def test_model_is_found_whatever_the_case(name: str, registry: Catalog) -> None:
    assert registry.get(name).name == SMALL
    assert registry.find(name) is registry.get(name)


def test_unknown_model_is_refused_with_the_closest_names(registry: Catalog) -> None:
    with pytest.raises(UnknownModelError, match=re.escape(repr(SMALL))) as refusal:
        registry.get("bge-small-en-v1.6")
    assert SMALL in refusal.value.closest


@pytest.mark.parametrize(
    ("name", "closest"),
    [
        pytest.param("BAAI/bge-smal-en-v1.5", SMALL, id="letter missing"),
        pytest.param("baai/bge-small-en-v15", SMALL, id="point missing, lower case"),
        pytest.param("all-MiniLM-L6-v2", BUNDLED_MODEL, id="owner missing"),
        pytest.param("openai/gte-large", "thenlper/gte-large", id="wrong owner"),
        pytest.param("nomic-embed-text", "nomic-ai/nomic-embed-text-v1", id="version missing"),
    ],
)
def test_closest_name_comes_first_for(name: str, closest: str, product: Catalog) -> None:
    assert product.closest(name)[0] == closest


def test_closest_names_are_three_at_most_and_none_twice(product: Catalog) -> None:
    for name in ("jinaai/jina-embeddings-v2-base", "BAAI/bge", "model", "a" * 100_000, "/", ""):
        closest = product.closest(name)
        assert len(closest) <= 3
        assert len(set(closest)) == len(closest)


@pytest.mark.parametrize("name", ["", "zzzzzz", "🙂"])
def test_name_like_no_other_has_no_closest(name: str, product: Catalog) -> None:
    assert product.closest(name) == []


def test_of_two_models_with_one_name_the_later_one_counts() -> None:
    first, second = model("a/Tiny"), model("A/tiny")
    catalog = Catalog([first, second])
    assert catalog.models == (second,)
    assert catalog.get("a/Tiny") is second


def test_only_hub_models_that_a_preloaded_cache_has_are_said_to_lie_there(tmp_path: Path) -> None:
    (tmp_path / "models--Qdrant--all-MiniLM-L6-v2-onnx").mkdir()
    preloaded = [model.name for model in read_catalog([], bundled="", preloaded=tmp_path).models if model.preloaded]
    assert preloaded == ["sentence-transformers/all-MiniLM-L6-v2"]
    assert not [model for model in read_catalog([], bundled="", preloaded=tmp_path / "none").models if model.preloaded]
