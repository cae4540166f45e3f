"""JSON request bodies: decoded once and strictly. An error says what is wrong, where, and what is allowed."""

import json
import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any, cast

import msgspec
from litestar import Request

from engine.errors import InvalidInputError, ServiceError
from web.large_body_queue import Result
from web.litestar_adapter import body_type
from web.request_context import context_of

UNKNOWN_FIELD = "Object contains unknown field"
"""How msgspec begins to tell of a field that a body does not know."""
MAX_ECHOED = 200
"""Characters of a caller's own words (a field's name) that a message repeats at most."""
SURROGATE = re.compile("[\ud800-\udfff]")
MAX_SEARCHED_BYTES = 1_000_000
"""Of larger bodies it is not searched which text is wrong: that would hold the event loop, and so all other callers."""
LARGE_BYTES = 1_000_000
"""Bodies larger than this are put together and decoded in turns."""

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


class NotJsonError(ServiceError):
    """The body is sent as something else than JSON."""

    status, code, title = 415, "not-json", "The body must be JSON"


class StrictRequest(Request[Any, Any, Any]):
    """A request whose JSON body is refused with words that help."""

    _whole: bytes | None = None

    async def body(self) -> bytes:
        """All that was sent; a large body is put together in its turn, as memory for megabytes is slow to come."""
        if self._whole is None:
            pieces = [piece async for piece in self.stream() if piece]
            self._whole = await self._in_turn(partial(b"".join, pieces), sum(map(len, pieces)))
        return self._whole

    async def _in_turn(self, work: Callable[[], Result], size_bytes: int) -> Result:
        queue = context_of(self.scope).large_bodies
        if size_bytes <= LARGE_BYTES or queue is None:
            return work()
        return await queue.run(work)

    async def json(self) -> Any:
        """The decoded body, as the type that the route takes.

        It is decoded and checked at once and strictly: `"128"` is no number, and `"null"` is not nothing.

        Raises:
            OverloadedError: it is large, and so are too many others that wait to be decoded.
            NotJsonError: another content type than JSON is stated; none at all is taken for JSON.
            InvalidInputError: it is not JSON, holds half of a surrogate pair, which is no character, or breaks a rule
                of the type.
        """
        media_type = self.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if media_type != "application/json" and not (
            media_type.startswith("application/") and media_type.endswith("+json")
        ):
            raise NotJsonError("Send the body as JSON, with the header 'Content-Type: application/json'.")
        if self.headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise NotJsonError("Send the body as it is, without 'Content-Encoding'.")
        body = await self.body()
        return await self._in_turn(partial(_decoded, body, body_type(self)), len(body))


def _decoded(body: bytes, kind: Any) -> Any:
    try:
        return _decoder(kind).decode(body)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `$")
        where = where.rstrip("`").removeprefix(".")[:MAX_ECHOED]  # a field's name may hold these words, too
        raise invalid_input(message, where, kind) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid_json(body, error) from None


@cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


@cache
def _fields(kind: Any) -> dict[str, list[str]]:
    """The fields of a body, and the words that each may hold; none: it may hold others than these."""
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return {}
    fields = cast("msgspec.inspect.StructType", msgspec.inspect.type_info(kind)).fields
    return {field.encode_name: _words(field.type) for field in fields}


def _words(kind: msgspec.inspect.Type) -> list[str]:
    match kind:
        case msgspec.inspect.LiteralType():
            return [str(value) for value in kind.values]
        case msgspec.inspect.UnionType():
            return [word for part in kind.types for word in _words(part)]
        case msgspec.inspect.Metadata():
            return _words(kind.type)
    return []


def invalid_input(message: str, where: str, kind: Any = None) -> InvalidInputError:
    """Say what is wrong, where, and what is allowed. The messages name types and fields, never values of texts."""
    facts: dict[str, object] = {}
    if match := re.fullmatch(r"([\w-]+)(?:\[(\d+)\])?", where):
        facts["field"] = match[1]
        if match[2]:
            facts["index"] = int(match[2])
    elif match := re.search(r"(?:unknown|required) field `(.*)`", message, re.DOTALL):
        facts["field"] = match[1][:MAX_ECHOED]
    told = f"{where + ': ' if where else ''}{_plain(message)[:MAX_ECHOED]}."
    known = _fields(kind)
    if choices := list(known) if message.startswith(UNKNOWN_FIELD) else known.get(where):
        facts["choices"] = choices
        told = f"{told} Choose one of {', '.join(choices)}."
    return InvalidInputError(told, facts=facts)


def _plain(message: str) -> str:
    """The words of msgspec, as people who do not know Python say them."""
    message = re.sub(r"^Invalid enum value (.*)$", r"\1 is not allowed", message, flags=re.DOTALL)
    return re.sub(r"`([^`]*)`", lambda match: PLAIN_TYPES.get(match[1], repr(match[1])), message)


def _invalid_json(body: bytes, error: Exception) -> InvalidInputError:
    """A strict decoder says that the body is wrong; here is said what is, and where."""
    cause = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)[:MAX_ECHOED]
    not_json = InvalidInputError(f"The body is not JSON: {cause}.")
    if len(body) > MAX_SEARCHED_BYTES:
        return not_json
    try:
        found = _lone_surrogate(json.loads(body.decode()))  # of bytes json would guess the encoding
    except (ValueError, RecursionError):
        return not_json
    if found is None:
        return InvalidInputError("The body is not valid JSON: it holds NaN, Infinity or a wrong escape.")
    name, index = found
    place = name if index is None else f"{name}[{index}]"
    facts: dict[str, object] = {"field": name} if index is None else {"field": name, "index": index}
    return InvalidInputError(
        f"{place}: half of a surrogate pair (\\ud800 to \\udfff) stands alone; it is not a character.", facts=facts
    )


def _lone_surrogate(content: object) -> tuple[str, int | None] | None:
    """The field (and index) of the first text with a lone surrogate; None: there is none."""
    for name, value in content.items() if isinstance(content, dict) else ():
        texts = value if isinstance(value, list) else [value]
        for index, text in enumerate(texts):
            if isinstance(text, str) and not text.isascii() and SURROGATE.search(text):
                readable = SURROGATE.sub("\ufffd", name)[:MAX_ECHOED]
                return readable, index if isinstance(value, list) else None
    return None
