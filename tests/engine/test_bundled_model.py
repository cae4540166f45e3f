"""The bundled model: FastEmbed returns the vectors of sentence-transformers, and the files match the manifest."""

import hashlib
import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastembed import TextEmbedding
from numpy.typing import NDArray
from tokenizers import Tokenizer

from engine.catalog import read_catalog
from engine.encoder import Encoder, load_encoder

FOLDER = Path(__file__).parents[2] / "models" / "all-MiniLM-L6-v2"
MANIFEST = json.loads((FOLDER / "model.json").read_text(encoding="utf-8"))
REFERENCE = Path(__file__).parents[1] / "reference" / "all-MiniLM-L6-v2.json"
ENTRIES: list[dict[str, Any]] = json.loads(REFERENCE.read_text(encoding="utf-8"))["texts"]

MIN_COSINE = 0.9999
"""Float16 weights cost less than a tenth of the difference from 1."""
TOLERANCE = 1e-5
FINGERPRINT = "853622761c0bc2c3"
KEPT_COSINE, KEPT_DIFFERENCE = 0.999995, 5e-4
"""What an upgrade must keep: cosine and largest difference of a number to the vectors of sentence-transformers.

Float16 weights cost 1.2e-6 of the cosine and 3.3e-4 of a number.
"""
RUNTIME = ("onnxruntime", "fastembed", "tokenizers")


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


# --- Upgrades --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """The model as the service loads it."""
    model = read_catalog([FOLDER.parent], bundled=MANIFEST["name"]).get(MANIFEST["name"])
    return load_encoder(model, hub_cache_dir=tmp_path_factory.mktemp("hub"))


def test_installed_runtime_is_the_pinned_one() -> None:
    """So the next tests prove what is released: an upgrade changes the lock file, and runs them."""
    lock = (FOLDER.parents[1] / "requirements" / "lock.txt").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^([\w-]+)==([^\s;\\]+)", lock, re.MULTILINE))
    assert {name: version(name) for name in RUNTIME} == {name: pinned[name] for name in RUNTIME}


def test_pinned_runtime_returns_the_canary_vectors_so_an_index_may_stay(encoder: Encoder) -> None:
    """All texts of the reference: many scripts, symbols, and lengths up to the model's limit and beyond.

    If this fails after an upgrade, the new version computes other vectors: raise `RECIPE` in engine/fingerprint.py, and
    say in CHANGELOG.md that indexes have to be built again.
    """
    changed = {}
    for entry in ENTRIES:
        [vector], expected = encoder.encode(encoder.tokenizer.tokenize([entry["text"]])), np.asarray(entry["vector"])
        cosine, difference = float(vector @ expected), float(np.abs(vector - expected).max())
        if cosine < KEPT_COSINE or difference > KEPT_DIFFERENCE:
            changed[entry["name"]] = (cosine, difference)
    assert changed == {}


def test_fingerprint_of_the_bundled_model_changes_only_on_purpose(encoder: Encoder) -> None:
    """Indexes contain it. It changes with the files, or with `RECIPE`, and with nothing else."""
    assert encoder.fingerprint
    assert encoder.fingerprint.digest == FINGERPRINT
    assert FINGERPRINT in (FOLDER.parents[1] / "docs" / "COMMANDS.md").read_text(encoding="utf-8")
