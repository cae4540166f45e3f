"""The bundled model: FastEmbed gives the vectors of sentence-transformers, and the files are those of the manifest."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastembed import TextEmbedding
from numpy.typing import NDArray
from tokenizers import Tokenizer

FOLDER = Path(__file__).parents[2] / "models" / "all-MiniLM-L6-v2"
MANIFEST = json.loads((FOLDER / "model.json").read_text(encoding="utf-8"))
REFERENCE = Path(__file__).parents[1] / "reference" / "all-MiniLM-L6-v2.json"
ENTRIES: list[dict[str, Any]] = json.loads(REFERENCE.read_text(encoding="utf-8"))["texts"]

MIN_COSINE = 0.9999  # float16 weights cost less than a tenth of this
TOLERANCE = 1e-5

each_entry = pytest.mark.parametrize("entry", [pytest.param(entry, id=entry["name"]) for entry in ENTRIES])


@pytest.fixture(scope="module")
def embedder() -> TextEmbedding:
    """FastEmbed on the folder, as the service loads it."""
    return TextEmbedding(MANIFEST["name"], specific_model_path=str(FOLDER), threads=1)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def embed(embedder: TextEmbedding, texts: list[str]) -> NDArray[np.float32]:
    """One row per text, all in one run of the model."""
    return np.asarray(list(embedder.embed(texts, batch_size=len(texts))), dtype=np.float32)


@each_entry
def test_vector_is_the_one_of_sentence_transformers(embedder: TextEmbedding, entry: dict[str, Any]) -> None:
    [vector] = embed(embedder, [entry["text"]])
    assert vector.shape == (MANIFEST["dim"],)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=TOLERANCE)
    assert vector @ np.asarray(entry["vector"]) >= MIN_COSINE


@each_entry
def test_tokenizer_file_counts_all_tokens_and_cuts_none_off(tokenizer: Tokenizer, entry: dict[str, Any]) -> None:
    assert len(tokenizer.encode(entry["text"]).ids) == entry["tokens"]


def test_batch_of_mixed_texts_equals_its_texts_alone(embedder: TextEmbedding) -> None:
    texts = [entry["text"] for entry in ENTRIES[::4]] + [ENTRIES[-1]["text"]]
    alone = np.concatenate([embed(embedder, [text]) for text in texts])
    np.testing.assert_allclose(embed(embedder, texts), alone, rtol=0, atol=TOLERANCE)


def test_text_over_the_limit_has_the_vector_of_its_beginning(embedder: TextEmbedding) -> None:
    texts = {entry["name"]: entry["text"] for entry in ENTRIES}
    full, over = embed(embedder, [texts["tokens-256"], texts["tokens-257"]])
    np.testing.assert_allclose(over, full, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", MANIFEST["files"])
def test_file_is_the_one_the_manifest_names(name: str) -> None:
    content = (FOLDER / name).read_bytes()
    assert len(content) == MANIFEST["files"][name]["size_bytes"]
    assert hashlib.sha256(content).hexdigest() == MANIFEST["files"][name]["sha256"]


def test_manifest_names_every_file_the_model_is_loaded_from() -> None:
    about_the_model = {"model.json", "README.md", "LICENSE"}
    assert {path.name for path in FOLDER.iterdir()} - about_the_model == set(MANIFEST["files"])
