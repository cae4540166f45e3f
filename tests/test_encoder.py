"""The encoder on real models: the bundled one, and tiny ones of which every vector is known."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from config import BUNDLED_MODEL, BUNDLED_MODELS_DIR
from engine.catalog import read_catalog
from engine.encoder import Encoder, load_encoder
from engine.errors import ModelUnavailableError
from tests.tiny import MAX_TOKENS, TinyModel, mean_of

TEXTS = ["one two three", "four", "one one five", "two"]


def load(folder: Path, name: str) -> Encoder:
    return load_encoder(read_catalog([folder], bundled="").get(name), hub_cache_dir=folder / "cache")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = tmp_path_factory.mktemp("models")
    TinyModel("acme/tiny").write(folder)
    return load(folder, "acme/tiny")


@pytest.fixture(scope="module")
def bundled() -> Encoder:
    return load(BUNDLED_MODELS_DIR, BUNDLED_MODEL)


def test_vectors_are_what_the_model_computes(tiny: Encoder) -> None:
    vectors = tiny.encode(tiny.tokenize(TEXTS))
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [mean_of(text.split()) for text in TEXTS], rtol=1e-6)


def test_a_normalised_model_gives_unit_vectors(tmp_path: Path) -> None:
    TinyModel("acme/unit", normalized=True).write(tmp_path)
    unit = load(tmp_path, "acme/unit")
    expected = mean_of(["one", "two"])
    [vector] = unit.encode(unit.tokenize(["one two"]))
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), rtol=1e-6)


@pytest.mark.parametrize(
    ("words", "tokens", "length"),
    [
        pytest.param(MAX_TOKENS - 2, MAX_TOKENS, MAX_TOKENS, id="exactly-the-limit"),
        pytest.param(MAX_TOKENS - 1, MAX_TOKENS + 1, MAX_TOKENS, id="one-over"),
        pytest.param(100, 102, MAX_TOKENS, id="many-over"),
        pytest.param(1, 3, 3, id="one-word"),
    ],
)
def test_tokens_count_the_whole_text_and_the_cut_is_told(tiny: Encoder, words: int, tokens: int, length: int) -> None:
    [item] = tiny.tokenize(["one " * words])
    assert (item.tokens, item.length, item.is_truncated) == (tokens, length, tokens > length)


def test_a_cut_text_has_the_vector_of_what_was_left(tiny: Encoder) -> None:
    long = ["one"] * (MAX_TOKENS - 2) + ["five"] * 40
    [vector] = tiny.encode(tiny.tokenize([" ".join(long)]))
    np.testing.assert_allclose(vector, mean_of(long[: MAX_TOKENS - 2]), rtol=1e-6)


@pytest.mark.parametrize("words", [254, 255, 600])
def test_tokens_of_the_bundled_model_are_those_of_its_own_tokenizer(bundled: Encoder, words: int) -> None:
    tokenizer = Tokenizer.from_file(str(BUNDLED_MODELS_DIR / "all-MiniLM-L6-v2" / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    text = "embedding " * words
    [item] = bundled.tokenize([text])
    assert item.tokens == len(tokenizer.encode(text))
    assert item.length == min(item.tokens, 256)


def test_a_text_in_a_batch_has_the_vector_that_it_has_alone(bundled: Encoder) -> None:
    texts = ["a", "How do I reset my password?", "Ein Satz mit Umlauten: äöü. " * 12, "x " * 300, "42"]
    together = bundled.encode(bundled.tokenize(texts))
    alone = np.concatenate([bundled.encode(bundled.tokenize([text])) for text in texts])
    assert np.abs(together - alone).max() <= 1e-5


def test_threads_may_share_an_encoder(bundled: Encoder) -> None:
    texts = [f"text number {number} " * (1 + number % 7) for number in range(24)]
    expected = np.concatenate([bundled.encode(bundled.tokenize([text])) for text in texts])

    def encode(start: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        return bundled.encode(bundled.tokenize(texts[start : start + 6]))

    with ThreadPoolExecutor(4) as pool:
        vectors = np.concatenate(list(pool.map(encode, range(0, 24, 6))))
    assert np.abs(vectors - expected).max() <= 1e-5


def test_the_same_items_may_be_run_twice(tiny: Encoder) -> None:
    items = tiny.tokenize(TEXTS)
    first = tiny.encode(items)
    np.testing.assert_allclose(tiny.encode(items[1:2]), first[1:2], rtol=1e-6)


def test_the_session_for_lone_texts_gives_the_same_vectors(bundled: Encoder) -> None:
    texts = ["How do I reset my password?", "x " * 300]
    expected = [bundled.encode(bundled.tokenize([text]), is_lone=True) for text in texts]
    bundled.widen(2)
    for text, vector in zip(texts, expected, strict=True):
        assert np.abs(bundled.encode(bundled.tokenize([text]), is_lone=True) - vector).max() <= 1e-5


def test_warming_up_measures_the_pace(tiny: Encoder) -> None:
    assert tiny.seconds_per_token > 0


def test_a_model_with_other_dimensions_than_stated_is_refused(tmp_path: Path) -> None:
    TinyModel("acme/liar", dim=4, stated_dim=8).write(tmp_path)
    with pytest.raises(ModelUnavailableError, match="4 dimensions where 8 are stated"):
        load(tmp_path, "acme/liar")


@pytest.mark.parametrize("broken", ["model.onnx", "tokenizer.json", "tokenizer_config.json"])
def test_a_broken_file_is_told_without_an_address(tmp_path: Path, broken: str) -> None:
    folder = TinyModel(f"acme/broken-{broken.replace('.', '-')}").write(tmp_path)
    (folder / broken).write_bytes(b"{ this is not it")
    with pytest.raises(ModelUnavailableError, match="missing or broken") as caught:
        load(tmp_path, f"acme/broken-{broken.replace('.', '-')}")
    assert str(tmp_path) not in str(caught.value)


def test_a_folder_with_a_name_of_the_registry_has_its_own_pooling(tmp_path: Path) -> None:
    TinyModel("BAAI/bge-small-en-v1.5").write(tmp_path)  # the registry pools this name by its first token
    encoder = load(tmp_path, "BAAI/bge-small-en-v1.5")
    np.testing.assert_allclose(encoder.encode(encoder.tokenize(["one two"])), [mean_of(["one", "two"])], rtol=1e-6)


def test_a_changed_folder_is_another_model(tmp_path: Path) -> None:
    folder = TinyModel("acme/changing").write(tmp_path)
    load(tmp_path, "acme/changing")
    manifest = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**manifest, "normalized": True}))
    changed = load(tmp_path, "acme/changing")
    [vector] = changed.encode(changed.tokenize(["one two"]))
    assert np.linalg.norm(vector) == pytest.approx(1.0)
