"""What counts of the tokenizer's files is what the two readers, ours and FastEmbed's, make of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from fastembed.common.preprocessor_utils import load_tokenizer
from tokenizers import Tokenizer

from engine.folder_tokenizer import read_tokenizer
from engine.tokenizer_files import tokenizer_facts
from tests.support.tiny import MAX_TOKENS, TinyModel

Json = dict[str, Any]
SERIALIZED: Json = {
    "truncation": {"direction": "Left", "max_length": 7, "strategy": "LongestFirst", "stride": 0},
    "padding": {
        "strategy": {"Fixed": 9},
        "direction": "Left",
        "pad_to_multiple_of": 4,
        "pad_id": 2,
        "pad_type_id": 0,
        "pad_token": "[CLS]",
    },
}
CHANGES: dict[str, dict[str, Json]] = {
    "as it is": {},
    "lower limit": {"tokenizer_config.json": {"model_max_length": 9}},
    "two limits": {"tokenizer_config.json": {"model_max_length": 9, "max_length": 8}},
    "no limit": {"tokenizer_config.json": {"model_max_length": None, "max_length": 8}},
    "very large limit": {"tokenizer_config.json": {"model_max_length": int(1e30), "max_length": 12}},
    "very large number": {"tokenizer_config.json": {"model_max_length": 1e30, "max_length": 12}},
    "limit with a point": {"tokenizer_config.json": {"model_max_length": 9.0, "max_length": 12}},
    "limits that are none": {"tokenizer_config.json": {"model_max_length": True, "max_length": 12}},
    "sides": {"tokenizer_config.json": {"truncation_side": "left", "padding_side": "left"}},
    "serialized": {"tokenizer.json": SERIALIZED},
    "serialized and sides": {
        "tokenizer.json": SERIALIZED,
        "tokenizer_config.json": {"truncation_side": "right", "padding_side": "right"},
    },
    "padding id": {"config.json": {"pad_token_id": 3}},
    "padding token": {"config.json": {"pad_token_id": None}, "tokenizer_config.json": {"pad_token": "[SEP]"}},
    "padding token as an object": {
        "config.json": {"pad_token_id": None},
        "tokenizer_config.json": {"pad_token": {"content": "[SEP]", "lstrip": False}},
    },
    "padding token of the map only": {
        "config.json": {"pad_token_id": None},
        "tokenizer_config.json": {"pad_token": None},
        "special_tokens_map.json": {"pad_token": "[SEP]"},
    },
    "no padding token": {
        "config.json": {"pad_token_id": None},
        "tokenizer_config.json": {"pad_token": None},
        "special_tokens_map.json": {"pad_token": None},
    },
}
ONLY_IN_FOLDERS = {"padding token as an object", "padding token of the map only", "no padding token"}
"""FastEmbed does not load these."""


def changed(folder: Path, change: str) -> Path:
    for name, keys in CHANGES[change].items():
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **keys}))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return TinyModel("acme/tiny").write(tmp_path)


def set_up(tokenizer: Tokenizer) -> Json:
    """Return how a tokenizer truncates and pads, in the words of the facts."""
    truncation, padding = tokenizer.truncation or {}, tokenizer.padding or {}
    return {
        "max_tokens": truncation["max_length"],
        "truncation_side": truncation["direction"],
        "padding_side": padding["direction"],
        "pad_id": padding["pad_id"],
        "pad_to_multiple_of": padding["pad_to_multiple_of"],
    }


@pytest.mark.parametrize("change", CHANGES)
def test_facts_of_a_folder_are_how_its_tokenizer_is_set_up(change: str, folder: Path) -> None:
    tokenizer = read_tokenizer(changed(folder, change), max_tokens=MAX_TOKENS).tokenizer
    facts = tokenizer_facts(folder, max_tokens=MAX_TOKENS, is_static=False)
    assert set_up(tokenizer).items() <= facts.items()


@pytest.mark.parametrize("change", [change for change in CHANGES if change not in ONLY_IN_FOLDERS])
def test_facts_in_a_hub_cache_are_how_fastembed_sets_the_tokenizer_up(change: str, folder: Path) -> None:
    tokenizer, _ = load_tokenizer(changed(folder, change))
    assert set_up(tokenizer).items() <= tokenizer_facts(folder, max_tokens=None, is_static=False).items()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_encoding_of_the_files_does_not_matter(encoding: str, folder: Path) -> None:
    before = tokenizer_facts(folder, max_tokens=MAX_TOKENS, is_static=False)
    for path in folder.glob("*.json"):
        path.write_text(path.read_text(), encoding=encoding)
    assert tokenizer_facts(folder, max_tokens=MAX_TOKENS, is_static=False) == before


def test_order_of_new_special_tokens_matters_because_it_is_that_of_their_ids(folder: Path) -> None:
    found = []
    for tokens in ({"a": "<x>", "b": "<y>"}, {"b": "<y>", "a": "<x>"}, {"b": "[CLS]", "a": "[SEP]"}):
        (folder / "special_tokens_map.json").write_text(json.dumps(tokens))
        tokenizer = read_tokenizer(folder, max_tokens=MAX_TOKENS).tokenizer
        facts = tokenizer_facts(folder, max_tokens=MAX_TOKENS, is_static=False)
        found.append((tokenizer.token_to_id("<x>"), [token["content"] for token in facts["special_tokens"]]))
    assert [found[0][1], found[1][1], found[2][1]] == [["<x>", "<y>"], ["<y>", "<x>"], ["[CLS]", "[SEP]"]]
    assert found[0][0] != found[1][0]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{ not JSON",
        b"\xff\xfe",
        b'{"added_tokens": 1, "model": [], "padding": 2, "truncation": "x"}',
        b'{"added_tokens": [1, {}, {"special": true}], "model": {"vocab": [[], 1, ["a", 1]]}}',
        b'{"number": ' + b"9" * 50 + b"}",
        b"[" * 100_000,
    ],
)
def test_file_that_nothing_can_read_counts_as_it_is(content: bytes, folder: Path) -> None:
    """Whether it is an error is decided where it is read."""
    before = tokenizer_facts(folder, max_tokens=MAX_TOKENS, is_static=False)
    for name in ("tokenizer.json", "special_tokens_map.json"):
        (folder / name).write_bytes(content)
    facts = tokenizer_facts(folder, max_tokens=MAX_TOKENS, is_static=False)
    assert facts != before
    json.dumps(facts)
