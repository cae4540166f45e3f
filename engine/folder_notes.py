"""Compares a manifest with what the model's authors state in the other files of its folder."""

from pathlib import Path
from typing import Any

from engine.folder_files import UnusableModelError, read_object_if_any
from engine.manifest import Manifest

POOLING_FILE, LENGTH_FILE, MODEL_FILE = "1_Pooling/config.json", "sentence_bert_config.json", "config.json"
POOLINGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last_token",
}
"""Keys of sentence-transformers, and the pooling that each means."""


def contradictions(folder: Path, manifest: Manifest) -> list[str]:
    """Return what in *manifest* differs from files of sentence-transformers and transformers in *folder*, if any.

    Each is a sentence without a full stop. The manifest applies nevertheless.
    """
    notes = []
    pooling = _read(folder, POOLING_FILE)
    stated = [value for key, value in POOLINGS.items() if pooling.get(key) is True]
    if len(stated) == 1 and manifest.pooling not in (*stated, "none"):
        notes.append(f"pooling is {manifest.pooling!r}, but {POOLING_FILE} states {stated[0]!r}")
    dim = pooling.get("word_embedding_dimension")
    if isinstance(dim, int) and dim != manifest.dim:
        notes.append(f"dim is {manifest.dim}, but {POOLING_FILE} states {dim}")
    length = _read(folder, LENGTH_FILE).get("max_seq_length")
    if isinstance(length, int) and length < manifest.max_tokens:
        notes.append(f"max_tokens is {manifest.max_tokens}, but {LENGTH_FILE} states {length}")
    positions = _read(folder, MODEL_FILE).get("max_position_embeddings")
    if isinstance(positions, int) and 0 < positions < manifest.max_tokens:
        notes.append(
            f"max_tokens is {manifest.max_tokens}, but {MODEL_FILE} states {positions} positions; long texts may fail"
        )
    return notes


def _read(folder: Path, name: str) -> dict[str, Any]:
    """Return the object in a file that nothing needs; empty if there is none."""
    try:
        return read_object_if_any(folder, name) or {}
    except UnusableModelError:
        return {}
