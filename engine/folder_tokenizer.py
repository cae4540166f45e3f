"""Reads the tokenizer of a model folder. The vectors are the same as with FastEmbed's own reader, which rejects more.

`model.json` states the longest input, so tokenizer_config.json need not. A padding token need not be named: padding is
masked, and the self-check of each load proves that it does not change the vectors.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Tokenizer

from engine.folder_files import UnusableModelError, read_object, read_object_if_any, read_text, why_missing

TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
SIDES = ("left", "right")
MAX_LENGTH = 1 << 31
"""Limits from here on mean that there is none: transformers writes 1e30 (`VERY_LARGE_INTEGER`)."""
PAD_TOKENS = ("[PAD]", "<pad>", "<|pad|>", "<PAD>")
"""Usual names of the padding token, for folders that do not name it."""
TOKEN_OPTIONS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True, slots=True)
class FolderTokenizer:
    """A tokenizer, with truncation and padding set up.

    Attributes:
        notes: what the operator should know about the folder, as sentences without a full stop.
    """

    tokenizer: Tokenizer
    notes: tuple[str, ...]


def read_tokenizer(folder: Path, *, max_tokens: int) -> FolderTokenizer:
    """Read the tokenizer in *folder*.

    Args:
        folder: contains tokenizer.json, and perhaps tokenizer_config.json, config.json and special_tokens_map.json.
        max_tokens: longest input, as the manifest states it; a lower limit in tokenizer_config.json applies as well.

    Raises:
        UnusableModelError: a file is missing or cannot be used.
    """
    config = read_object_if_any(folder, CONFIG)
    notes = [] if config is not None else [f"{CONFIG} is missing; add it if the model truncates or pads on the left"]
    config, model_config = config or {}, read_object_if_any(folder, "config.json") or {}
    special_tokens = read_object_if_any(folder, "special_tokens_map.json") or {}
    tokenizer = _read(folder)
    for token in _tokens(special_tokens):
        tokenizer.add_special_tokens([token])
    limits = [limit for key in ("model_max_length", "max_length") if (limit := _limit(config.get(key)))]
    if limits and min(limits) < max_tokens:
        notes.append(f"max_tokens is {max_tokens}, but {CONFIG} limits texts to {min(limits)} tokens")
    truncation, padding = tokenizer.truncation or {}, tokenizer.padding or {}
    tokenizer.enable_truncation(
        min([max_tokens, *limits]), direction=_side(config.get("truncation_side"), truncation.get("direction"))
    )
    named = padding.get("pad_token") or _content(config.get("pad_token")) or _content(special_tokens.get("pad_token"))
    pad_id = _pad_id(tokenizer, named, padding.get("pad_id", model_config.get("pad_token_id")))
    if pad_id is None:
        notes.append(f"no padding token is named, so id 0 pads; set pad_token in {CONFIG}")
    tokenizer.enable_padding(
        direction=_side(config.get("padding_side"), padding.get("direction")),
        pad_id=pad_id or 0,
        pad_token=named or tokenizer.id_to_token(pad_id or 0) or PAD_TOKENS[0],
        pad_to_multiple_of=padding.get("pad_to_multiple_of"),
    )
    return FolderTokenizer(tokenizer, tuple(notes))


def _read(folder: Path) -> Tokenizer:
    if not (folder / TOKENIZER).exists():
        raise UnusableModelError(why_missing(folder, TOKENIZER))
    text = read_text(folder, TOKENIZER)
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more specific
        read_object(folder, TOKENIZER)  # if it is not JSON, this raises the better explanation
        raise UnusableModelError(
            f"its file {TOKENIZER!r} cannot be read by tokenizers {tokenizers.__version__} ({error}): "
            "save it with another version, or copy it again"
        ) from error


def _limit(value: object) -> int | None:
    """Return a limit of tokens; None if *value* is not one, for example 0, null or 1e30."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < MAX_LENGTH:
        return None
    return int(value) or None


def _side(*values: object) -> str:
    """Return the first value that is a side; the default is the right."""
    return next((str(value) for value in values if value in SIDES), SIDES[1])


def _content(token: object) -> str | None:
    """Return the text of a token, which is a string or an object with the key `content`."""
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) and text else None


def _tokens(special_tokens: Mapping[str, Any]) -> Iterator[str | AddedToken]:
    """Yield the tokens of special_tokens_map.json, in which a key has one or a list of them."""
    for value in special_tokens.values():
        for token in value if isinstance(value, list) else [value]:
            if isinstance(token, str):
                yield token
            elif (content := _content(token)) is not None:
                yield AddedToken(
                    content, **{key: token[key] for key in TOKEN_OPTIONS if isinstance(token.get(key), bool)}
                )


def _pad_id(tokenizer: Tokenizer, named: str | None, stated: object) -> int | None:
    """Return the id of the padding token; None: unknown."""
    if isinstance(stated, int) and not isinstance(stated, bool) and stated >= 0:
        return stated
    names = [named] if named else PAD_TOKENS
    return next((number for name in names if (number := tokenizer.token_to_id(name)) is not None), None)
