"""Builds the arrays that a model runs: pads tokens, adds positions, converts number types."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.tokenizer import TokenizedText

INPUT_TYPES: Mapping[str, type[np.generic]] = {
    "int32": np.int32,
    "int64": np.int64,
    "float": np.float32,
    "float16": np.float16,
    "bool": np.bool_,
}
"""NumPy's types for the types of inputs; FastEmbed feeds int64 only."""


@dataclass(frozen=True, slots=True)
class PaddedText:
    """The attributes of `tokenizers.Encoding` that FastEmbed reads."""

    ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]


def pad(padding: Mapping[str, Any], items: list[TokenizedText], **_: object) -> list[PaddedText]:
    """Pad texts to equal length. Replaces FastEmbed's `tokenize`: the tokens are known already.

    A plain function, not a method: a reference cycle would delay freeing the model.
    """
    longest = padding.get("length") or max(item.length for item in items)
    if multiple := padding.get("pad_to_multiple_of"):
        longest = -(-longest // multiple) * multiple
    ids = np.full((len(items), longest), padding.get("pad_id", 0), dtype=np.int64)
    mask = np.zeros((len(items), longest), dtype=np.int64)
    for row, item in enumerate(items):
        place = slice(longest - item.length, None) if padding.get("direction") == "left" else slice(item.length)
        ids[row, place] = item.ids
        mask[row, place] = 1
    return [PaddedText(*rows) for rows in zip(ids, mask, strict=True)]


def fit_inputs(
    types: Mapping[str, type[np.generic]], inputs: Mapping[str, NDArray[Any]], **_: object
) -> dict[str, NDArray[Any]]:
    """Add the positions that some graphs require, and convert all inputs to the types of the graph.

    Positions count a text's own tokens from 0, on whichever side it is padded.
    """
    fitted = dict(inputs)
    if "position_ids" in types:
        mask = inputs.get("attention_mask", np.ones_like(inputs["input_ids"]))
        fitted["position_ids"] = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    return {name: values.astype(types[name], copy=False) for name, values in fitted.items()}


def concatenate_ids(items: list[TokenizedText]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return all token ids in one row, and the number of tokens per text. Replaces a static model's `_token_ids`."""
    ids = [np.asarray(item.ids, dtype=np.int64) for item in items]
    return np.concatenate(ids), np.asarray([item.length for item in items], dtype=np.int64)
