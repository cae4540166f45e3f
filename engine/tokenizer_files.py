"""What a load takes from a model's tokenizer files, in a form that does not depend on how they are written.

Only what changes tokens counts, as `engine.folder_tokenizer` reads it in a folder, and
`fastembed.common.preprocessor_utils` in a hub cache. Spaces, the order of keys, and keys and files that nothing reads
do not.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from engine.folder_files import decode_text
from engine.folder_tokenizer import MAX_LENGTH, PAD_TOKENS, SIDES

TOKENIZER, CONFIG, MODEL_CONFIG, SPECIAL_TOKENS = TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "config.json",
    "special_tokens_map.json",
)
"""Files that are read, if they exist, from the model's folder. A static model has only the first."""
NOT_USED = ("version", "decoder", "truncation", "padding")
"""Keys of tokenizer.json without effect on tokens: a load sets the last two itself, see `_limits` and `_padding`."""
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
"""The defaults of a special token's flags."""

Json = dict[str, Any]


def tokenizer_facts(folder: Path, *, max_tokens: int | None, is_static: bool) -> Json:
    """Return what determines the tokens of a text, as JSON.

    Args:
        folder: contains the tokenizer files.
        max_tokens: the longest input that the manifest states; None: not stated.
        is_static: the model is static, for which FastEmbed reads tokenizer.json only.
    """
    tokenizer = _read(folder / TOKENIZER)
    core = {key: value for key, value in tokenizer.items() if key not in NOT_USED}
    facts: Json = {"tokenizer": hashlib.sha256(msgspec.json.encode(core, order="sorted")).hexdigest()}
    if is_static:
        return facts | {"max_tokens": max_tokens}
    config, model_config, special_tokens = (_read(folder / name) for name in (CONFIG, MODEL_CONFIG, SPECIAL_TOKENS))
    padding = _object(tokenizer, "padding")
    names = [_content(token) for token in (padding.get("pad_token"), config.get("pad_token"))]
    return {
        **facts,
        **_limits(tokenizer, config, max_tokens),
        "padding_side": _side(config.get("padding_side"), padding.get("direction")),
        "pad_id": _pad_id(
            tokenizer,
            stated=padding.get("pad_id", model_config.get("pad_token_id")),
            named=next(filter(None, [*names, _content(special_tokens.get("pad_token"))]), None),
        ),
        "pad_to_multiple_of": padding.get("pad_to_multiple_of"),
        "special_tokens": _added(tokenizer, special_tokens),
    }


def _read(path: Path) -> Json:
    """Return the object in a JSON file. If it is not one, return its hash: whether it is used is not decided here."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    try:
        text = content if json.detect_encoding(content) == "utf-8" else decode_text(content)
        found = msgspec.json.decode(text) if path.name == TOKENIZER else json.loads(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"sha256": hashlib.sha256(content).hexdigest()}


def _limits(tokenizer: Json, config: Json, max_tokens: int | None) -> Json:
    """Return the longest input, and the side at which longer ones are truncated."""
    numbers = (int,) if max_tokens is None else (int, float)  # FastEmbed ignores 512.0, a folder does not
    limits: list[Any] = [max_tokens, config.get("model_max_length"), config.get("max_length")]
    usable = [int(limit) for limit in limits if type(limit) in numbers and 1 <= limit < MAX_LENGTH]
    side = _side(config.get("truncation_side"), _object(tokenizer, "truncation").get("direction"))
    return {"max_tokens": min(usable, default=None), "truncation_side": side}


def _side(configured: object, serialized: object) -> str:
    """Return where to truncate or pad; tokenizer.json writes it with a capital letter."""
    return next((side for side in (configured, str(serialized).lower()) if side in SIDES), SIDES[1])


def _pad_id(tokenizer: Json, *, stated: object, named: str | None) -> object:
    """Return the id of the padding token; its name if it gets an id only when it is added."""
    if type(stated) is int and stated >= 0:
        return stated
    names = [named] if named else PAD_TOKENS
    ids = {token.get("content"): token.get("id") for token in _objects(tokenizer, "added_tokens")}
    vocabulary = _object(tokenizer, "model").get("vocab")
    known = [
        source[name] for name in names for source in (ids, vocabulary) if isinstance(source, dict) and name in source
    ]
    return known[0] if known else named or 0


def _content(token: object) -> str | None:
    """Return the text of a token, which is a string or an object with the key `content`."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and text else None


def _added(tokenizer: Json, special_tokens: Json) -> list[Json]:
    """Return the special tokens that the map adds to those of the tokenizer.

    The order of those that are not in the vocabulary determines their ids; that of the others does not matter.
    """
    listed = [part for value in special_tokens.values() for part in (value if isinstance(value, list) else [value])]
    wanted = [{"content": token} if isinstance(token, str) else token for token in listed]
    known = [_flags(token) for token in _objects(tokenizer, "added_tokens") if token.get("special")]
    added: list[Json] = []
    for token in wanted:
        if isinstance(token, dict) and _flags(token) not in [*known, *added]:
            added.append(_flags(token))
    if not added:
        return []
    contents = {token.get("content") for token in _objects(tokenizer, "added_tokens")} | _vocabulary(tokenizer)
    old = [token for token in added if token["content"] in contents]
    return [*sorted(old, key=lambda token: str(token["content"])), *[token for token in added if token not in old]]


def _vocabulary(tokenizer: Json) -> set[object]:
    """Return the tokens of the model: the keys of an object, or the first of each pair with a score (Unigram)."""
    vocabulary = _object(tokenizer, "model").get("vocab")
    pairs = [pair[0] for pair in vocabulary if isinstance(pair, list) and pair] if isinstance(vocabulary, list) else []
    return {token for token in (vocabulary if isinstance(vocabulary, dict) else pairs) if isinstance(token, str)}


def _flags(token: Mapping[str, Any]) -> Json:
    return {"content": token.get("content"), **{name: token.get(name, value) for name, value in FLAGS.items()}}


def _object(parent: Json, key: str) -> Json:
    """Return the object in *key*, which is empty if there is none."""
    value = parent.get(key)
    return value if isinstance(value, dict) else {}


def _objects(parent: Json, key: str) -> list[Json]:
    """Return the objects in the list in *key*, which is empty if there is none."""
    values = parent.get(key)
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []
