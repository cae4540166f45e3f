"""The detail of `invalid-input` (400): what is wrong, where, what is allowed, and what was probably meant."""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any, cast

import msgspec

from engine.errors import InvalidInputError

UNKNOWN_FIELD = "Object contains unknown field"
"""How msgspec starts the message about a field that the type does not have."""
WRONG_TYPE = "Expected"
"""How msgspec starts the message about a value of the wrong type."""
EMPTY_BODY = "The body is empty; send a JSON object"
"""The message about a body of no bytes, which is not JSON either."""
MAX_QUOTED = 200
"""Maximum number of characters that a message repeats of what a caller sent, such as a field name."""
PLAIN_TYPES: Mapping[str, tuple[str, ...]] = {
    "str": ("a string",),
    "int": ("a whole number",),
    "float": ("a number",),
    "bool": ("true", "false"),
    "array": ("an array",),
    "object": ("an object",),
    "null": ("null",),
}
"""msgspec's names of types, in words that do not require Python."""


def invalid_input(message: str, place: str, expected: Any = None) -> InvalidInputError:
    """Return the error for a body, header or query that does not match its type.

    Args:
        message: msgspec's message. It names types and fields, never the values of texts.
        place: the field, such as `texts[3]`, or the header; empty if it is the whole body.
        expected: the type of the body. Its `FIELD_HINTS`, if it has them, are sentences about unknown fields by name,
            and its `TYPE_HINTS` sentences about fields whose value has the wrong type; `texts[]` means every entry
            of a list.
    """
    extensions: dict[str, object] = {}
    if match := re.fullmatch(r"([\w-]+)(?:\[(\d+)\])?", place):
        extensions["field"] = match[1]
        if match[2]:
            extensions["index"] = int(match[2])
    elif match := re.search(r"(?:unknown|required) field `(.*)`", message, re.DOTALL):
        extensions["field"] = match[1][:MAX_QUOTED]
    sentences = [f"{place + ': ' if place else ''}{_in_plain_words(message)[:MAX_QUOTED]}."]
    fields = _choices_by_field(expected)
    if is_unknown := message.startswith(UNKNOWN_FIELD):
        sentences += _guess(str(extensions["field"]), expected)
    hints = getattr(expected, "TYPE_HINTS", {}) if message.startswith(WRONG_TYPE) else {}
    if hint := hints.get(place) or hints.get(re.sub(r"\[\d+\]$", "[]", place)):
        sentences.append(hint)
    if choices := list(fields) if is_unknown else fields.get(place.partition("[")[0]):
        extensions["choices"] = choices
        sentences.append(f"Choose one of {', '.join(choices)}.")
    return InvalidInputError(" ".join(sentences), extensions=extensions)


def _in_plain_words(message: str) -> str:
    message = re.sub(r"^Invalid enum value (.*)$", r"\1 is not allowed", message, flags=re.DOTALL)
    return re.sub(r"`([^`]*)`", lambda match: _plain_type(match[1]) or repr(match[1]), message)


def _plain_type(name: str) -> str:
    """Return msgspec's *name* of a type, such as `str | null`, in plain words; empty: it is not the name of a type."""
    parts = name.split(" | ", len(PLAIN_TYPES))  # the name of a field may be as long as a body
    if not PLAIN_TYPES.keys() >= set(parts):
        return ""
    *others, last = (word for part in parts for word in PLAIN_TYPES[part])
    return f"{', '.join(others)} or {last}" if others else last


def _guess(unknown: str, expected: Any) -> list[str]:
    """Return a sentence about what an *unknown* field probably means, or nothing."""
    if hint := getattr(expected, "FIELD_HINTS", {}).get(unknown.lower()):
        return [hint]
    return [f"Did you mean {name!r}?" for name in get_close_matches(unknown.lower(), _choices_by_field(expected), 1)]


@cache
def _choices_by_field(expected: Any) -> dict[str, list[str]]:
    """Return the fields of a body's type, required ones first, each with its literal values; empty: it has none."""
    if not (isinstance(expected, type) and issubclass(expected, msgspec.Struct)):
        return {}
    fields = cast("msgspec.inspect.StructType", msgspec.inspect.type_info(expected)).fields
    return {field.encode_name: _literals(field.type) for field in sorted(fields, key=lambda field: not field.required)}


def _literals(field_type: msgspec.inspect.Type) -> list[str]:
    match field_type:
        case msgspec.inspect.LiteralType():
            return [str(value) for value in field_type.values]
        case msgspec.inspect.UnionType():
            return [literal for member in field_type.types for literal in _literals(member)]
        case msgspec.inspect.Metadata():
            return _literals(field_type.type)
        case msgspec.inspect.ListType():
            return _literals(field_type.item_type)
    return []
