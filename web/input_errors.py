"""The 400 `invalid-input`: says in plain words what is wrong, where, what is allowed, and what was probably meant."""

import re
from difflib import get_close_matches
from functools import cache
from typing import Any, cast

import msgspec

from engine.errors import InvalidInputError

UNKNOWN_FIELD = "Object contains unknown field"
"""How msgspec starts the message about a field that the type does not have."""
MAX_QUOTED = 200
"""Maximum number of a caller's characters, such as a field name, that a message repeats."""
PLAIN_TYPES = {
    "str": "a string",
    "str | null": "a string or null",
    "int": "a whole number",
    "int | null": "a whole number or null",
    "float": "a number",
    "float | null": "a number or null",
    "bool": "true or false",
    "bool | null": "true, false or null",
    "array": "an array",
    "object": "an object",
    "null": "null",
}
"""msgspec's names of types, in words for people who do not know Python."""


def invalid_input(message: str, place: str, expected: Any = None) -> InvalidInputError:
    """Return the error for a body, header or query that does not match its type.

    Args:
        message: msgspec's message. It names types and fields, never the values of texts.
        place: the field, such as `texts[3]`, or the header; empty if it is the whole body.
        expected: the type of the body. Its `FIELD_HINTS`, if it has them, are sentences about unknown fields by name.
    """
    facts: dict[str, object] = {}
    if match := re.fullmatch(r"([\w-]+)(?:\[(\d+)\])?", place):
        facts["field"] = match[1]
        if match[2]:
            facts["index"] = int(match[2])
    elif match := re.search(r"(?:unknown|required) field `(.*)`", message, re.DOTALL):
        facts["field"] = match[1][:MAX_QUOTED]
    sentences = [f"{place + ': ' if place else ''}{_in_plain_words(message)[:MAX_QUOTED]}."]
    fields = _choices_by_field(expected)
    if is_unknown := message.startswith(UNKNOWN_FIELD):
        sentences += _guess(str(facts["field"]), expected)
    if choices := list(fields) if is_unknown else fields.get(place):
        facts["choices"] = choices
        sentences.append(f"Choose one of {', '.join(choices)}.")
    return InvalidInputError(" ".join(sentences), facts=facts)


def _in_plain_words(message: str) -> str:
    message = re.sub(r"^Invalid enum value (.*)$", r"\1 is not allowed", message, flags=re.DOTALL)
    return re.sub(r"`([^`]*)`", lambda match: PLAIN_TYPES.get(match[1], repr(match[1])), message)


def _guess(unknown: str, expected: Any) -> list[str]:
    """Return a sentence about what was meant by an *unknown* field, if that can be guessed."""
    if hint := getattr(expected, "FIELD_HINTS", {}).get(unknown.lower()):
        return [hint]
    return [f"Did you mean {name!r}?" for name in get_close_matches(unknown.lower(), _choices_by_field(expected), 1)]


@cache
def _choices_by_field(expected: Any) -> dict[str, list[str]]:
    """Return the fields of a body's type, required ones first, each with the words it accepts; none: not only words."""
    if not (isinstance(expected, type) and issubclass(expected, msgspec.Struct)):
        return {}
    fields = cast("msgspec.inspect.StructType", msgspec.inspect.type_info(expected)).fields
    return {field.encode_name: _words(field.type) for field in sorted(fields, key=lambda field: not field.required)}


def _words(kind: msgspec.inspect.Type) -> list[str]:
    match kind:
        case msgspec.inspect.LiteralType():
            return [str(value) for value in kind.values]
        case msgspec.inspect.UnionType():
            return [word for part in kind.types for word in _words(part)]
        case msgspec.inspect.Metadata():
            return _words(kind.type)
    return []
