"""Decodes JSON request bodies strictly, and checks their fields in the same pass."""

import json
import re
from collections.abc import Callable
from functools import cache, lru_cache, partial
from typing import Any, cast, get_args

import msgspec
from litestar import Request
from litestar.exceptions.http_exceptions import RequestEntityTooLarge
from litestar.types import HTTPRequestEvent, HTTPScope, Receive

from engine.errors import InvalidInputError, ServiceError
from web.input_errors import MAX_QUOTED, invalid_input
from web.large_body_queue import Result
from web.litestar_adapter import body_type
from web.request_context import context_of, header_values
from web.responses import JSON

SURROGATE = re.compile("[\ud800-\udfff]")
JSON_TYPES = re.compile(r"application/(json|.*\+json)")
FORM = "application/x-www-form-urlencoded"
LARGE_BYTES = 1_000_000
"""Bodies above this size are joined and decoded one at a time, in the `LargeBodyQueue`: each blocks the event loop."""
MAX_SEARCHED_BYTES = 1_000_000
"""In bodies above this size we do not locate the bad text: the search would block the event loop."""


class NotJsonError(ServiceError):
    """The body is not sent as JSON."""

    status, code, title = 415, "not-json", "The body must be JSON"


async def receive_body(scope: HTTPScope, receive: Receive) -> bytes:
    """Return the whole body of a request. A large one waits in the `LargeBodyQueue`.

    Raises:
        RequestEntityTooLarge: it is longer than the app allows, which is the same limit as that of Litestar's `stream`.
        OverloadedError: it is large, and too many other large bodies of the caller are waiting.
    """
    limit = cast("int", scope["litestar_app"].request_max_body_size)
    announced = header_values(scope, b"content-length")
    if announced and announced[0].isdecimal() and int(announced[0]) > limit:
        raise RequestEntityTooLarge
    pieces: list[bytes] = []
    size, has_more = 0, True
    while has_more:
        event = cast("HTTPRequestEvent", await receive())  # a disconnect cancels the task instead
        pieces.append(event["body"])
        has_more = event.get("more_body", False)
        size += len(pieces[-1])
        if size > limit:
            raise RequestEntityTooLarge
    return pieces[0] if len(pieces) == 1 else await _run_queued(scope, partial(b"".join, pieces), size)


async def _run_queued(scope: HTTPScope, work: Callable[[], Result], size_bytes: int) -> Result:
    """Run *work* on a body of this size: at once, or in the queue if it is large."""
    context = context_of(scope)
    if size_bytes <= LARGE_BYTES or context.large_bodies is None:
        return work()
    return await context.large_bodies.run(work, caller=context.caller, size_bytes=size_bytes)


class StrictRequest(Request[Any, Any, Any]):
    """A request whose JSON body is decoded strictly into the type that its route declares."""

    whole_body: bytes | None = None
    """The body, if it was received already."""

    async def body(self) -> bytes:
        """Return the whole body, as `receive_body` does."""
        if self.whole_body is None:
            self.whole_body = await receive_body(self.scope, self.receive)
        return self.whole_body

    async def json(self) -> Any:
        """Return the body as the type that the route declares, or as the one of several that its keys select.

        No value is converted: `"128"` is not a number, and `"null"` is not null.

        Raises:
            NotJsonError: the headers state a content type other than JSON (none at all counts as JSON), or an encoding.
            InvalidInputError: the body is not JSON, contains half of a surrogate pair (not a character), or does not
                match the type.
            OverloadedError: the body is large, and too many other large bodies of the caller are waiting.
        """
        dialect = context_of(self.scope).dialect
        media_type = _media_type(_first(header_values(self.scope, b"content-type"), JSON))
        is_curls = media_type == FORM and dialect is not None and dialect.takes_forms
        if media_type != JSON and not is_curls:
            raise NotJsonError("Send the body as JSON, with the header 'Content-Type: application/json'.")
        if _first(header_values(self.scope, b"content-encoding"), "identity").strip().lower() != "identity":
            raise NotJsonError("Send the body uncompressed, without the header 'Content-Encoding'.")
        body = await self.body()
        return await _run_queued(self.scope, partial(self._decode_body, body), len(body))

    def _decode_body(self, body: bytes) -> Any:
        """Decode *body* as our own type, or if it does not match that, as the type of the dialect whose key it has.

        From here on the request is in the dialect of its body, whatever its path is.
        """
        own, *others = _types_in(body_type(self))
        if not others:
            return _decode(body, own)
        context = context_of(self.scope)
        context.dialect = None
        try:
            return _decode(body, own)
        except InvalidInputError:
            for other in others:
                if _has_key(body, other.KEY):
                    context.dialect = other.DIALECT
                    return _decode(body, other)
            raise


@lru_cache(maxsize=64)
def _media_type(content_type: str) -> str:
    """Return the media type in a header `Content-Type`; JSON for all types whose bodies are JSON."""
    media_type = content_type.partition(";")[0].strip().lower()
    return JSON if JSON_TYPES.fullmatch(media_type) else media_type


def _first(values: list[str], default: str) -> str:
    return values[0] if values else default


def _decode(body: bytes, expected: Any) -> Any:
    try:
        return _decoder(expected).decode(body)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$")
        place = place.rstrip("`").removeprefix(".")[:MAX_QUOTED]  # a caller's field name may contain the separator
        raise invalid_input(message, place, expected) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _not_json(body, error) from None


@cache
def _types_in(expected: Any) -> tuple[Any, ...]:
    """Return the types of a body that may be of several: a union of structs, our own first. Else *expected* itself.

    The structs of dialects state the top-level key that only they have, `KEY`, and their `DIALECT`.
    """
    types = get_args(expected)
    is_choice = len(types) > 1 and all(isinstance(kind, type) and issubclass(kind, msgspec.Struct) for kind in types)
    return types if is_choice else (expected,)


def _has_key(body: bytes, key: str) -> bool:
    """Return whether *body* is an object with this key at its top level; if it is not JSON, whether it has the key."""
    try:
        _key_decoder(key).decode(body)
    except msgspec.ValidationError:
        return False
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return re.search(rb'"%s"\s*:' % key.encode(), body) is not None
    return True


@cache
def _key_decoder(key: str) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(msgspec.defstruct("Keyed", [(key, msgspec.Raw)]))


@cache
def _decoder(expected: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(expected)


def _not_json(body: bytes, error: Exception) -> InvalidInputError:
    """Return the error for a *body* that is not valid JSON, with the place of a text that is not valid Unicode."""
    cause = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)[:MAX_QUOTED]
    not_json = InvalidInputError(f"The body is not JSON: {cause}.")
    if len(body) > MAX_SEARCHED_BYTES:
        return not_json
    try:
        # Python's json accepts lone surrogates, NaN and Infinity. Given bytes, it would guess the encoding.
        content = json.loads(body.decode())
    except (ValueError, RecursionError):
        return not_json
    if (found := _lone_surrogate(content)) is None:
        return InvalidInputError("The body is not valid JSON: it contains NaN, Infinity or an invalid escape.")
    field, index = found
    place = field if index is None else f"{field}[{index}]"
    extensions: dict[str, object] = {"field": field} if index is None else {"field": field, "index": index}
    return InvalidInputError(
        f"{place}: it contains half of a surrogate pair (\\ud800 to \\udfff), which is not a character.",
        extensions=extensions,
    )


def _lone_surrogate(content: object) -> tuple[str, int | None] | None:
    """Return field and index of the first text with a lone surrogate, or None if there is none."""
    for name, value in content.items() if isinstance(content, dict) else ():
        texts = value if isinstance(value, list) else [value]
        for index, text in enumerate(texts):
            if isinstance(text, str) and not text.isascii() and SURROGATE.search(text):
                printable = SURROGATE.sub("\ufffd", name)[:MAX_QUOTED]
                return printable, index if isinstance(value, list) else None
    return None
