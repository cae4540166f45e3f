"""The bundled model: FastEmbed returns the vectors of sentence-transformers, and the files match the manifest."""

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

MIN_COSINE = 0.9999
"""Float16 weights cost less than a tenth of the difference from 1."""
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def embedder() -> TextEmbedding:
    """FastEmbed on the folder, as the service loads it."""
    return TextEmbedding(MANIFEST["name"], specific_model_path=str(FOLDER), threads=1)


def embed(embedder: TextEmbedding, texts: list[str]) -> NDArray[np.float32]:
    """Return one row per text, all from one run of the model."""
    return np.asarray(list(embedder.embed(texts, batch_size=len(texts))), dtype=np.float32)


def test_vector_is_the_one_of_sentence_transformers(embedder: TextEmbedding) -> None:
    wrong = []
    for entry in ENTRIES:
        [vector] = embed(embedder, [entry["text"]])
        assert vector.shape == (MANIFEST["dim"],)
        is_unit = np.linalg.norm(vector) == pytest.approx(1, abs=TOLERANCE)
        if not is_unit or vector @ np.asarray(entry["vector"]) < MIN_COSINE:
            wrong.append(entry["name"])
    assert wrong == []


def test_tokenizer_file_counts_all_tokens_and_truncates_none() -> None:
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    assert [entry["name"] for entry in ENTRIES if len(tokenizer.encode(entry["text"]).ids) != entry["tokens"]] == []


def test_texts_in_a_mixed_batch_have_the_vectors_that_they_have_alone(embedder: TextEmbedding) -> None:
    texts = [entry["text"] for entry in ENTRIES[::4]] + [ENTRIES[-1]["text"]]
    alone = np.concatenate([embed(embedder, [text]) for text in texts])
    np.testing.assert_allclose(embed(embedder, texts), alone, rtol=0, atol=TOLERANCE)


def test_text_over_the_limit_has_the_vector_of_its_beginning(embedder: TextEmbedding) -> None:
    texts = {entry["name"]: entry["text"] for entry in ENTRIES}
    full, over = embed(embedder, [texts["tokens-256"], texts["tokens-257"]])
    np.testing.assert_allclose(over, full, rtol=0, atol=TOLERANCE)


def test_files_are_those_that_the_manifest_lists() -> None:
    about_the_model = {"model.json", "README.md", "LICENSE"}
    contents = {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.name not in about_the_model}
    found = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
        for name, content in contents.items()
    }
    assert found == MANIFEST["files"]
