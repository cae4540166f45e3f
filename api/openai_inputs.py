"""Reads `input` of OpenAI's embeddings: texts or token ids, alone or in lists, and its limits."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from api.openai_token_ids import TokenVocabulary
from engine.errors import InvalidInputError
from engine.fair_queue import Caller

MAX_TEXTS = 2_048
"""Texts per request, as OpenAI."""
MAX_TEXT_TOKENS = 8_192
"""Tokens per text, as OpenAI. They are counted before the text is cut to the model's input."""
MAX_REQUEST_TOKENS = 300_000
"""Tokens of all texts of a request, as OpenAI."""
MAX_CHARACTERS_PER_TOKEN = 16
"""A text with more characters per allowed token than this is rejected without tokenising it: that would take long, and
in no language it is below the limit. English has 4 to 5 characters per token, long German or Finnish words up to 10."""


class TextObject(msgspec.Struct, gc=False):
    """A text in an object of its own, as Jina's clients may send it."""

    text: str


Input = str | TextObject | list[str | int | tuple[int, ...] | TextObject]
"""Tuples and `gc=False`: the garbage collector would examine millions of small lists again and again, for seconds."""


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts of a request. Those that were token ids have the limits of ids, which are checked already."""

    texts: Sequence[str]
    are_ids: bool = False


async def read_texts(given: Input, vocabulary: TokenVocabulary, caller: Caller) -> Texts:
    """Return the texts of *given*, with token ids decoded.

    Raises:
        InvalidInputError: there are none or too many, one is certainly too long, a list has items of different kinds,
            or ids cannot be decoded.
        OverloadedError: too many ids of the *caller* wait to be decoded.
    """
    if isinstance(given, str):
        return _checked([given])
    if isinstance(given, TextObject):
        return _checked([given.text])
    kinds = set(map(type, given))
    if kinds == {str}:
        return _checked(given)  # type: ignore[arg-type]
    if not given:
        raise InvalidInputError(
            "input: the list is empty; send at least 1 text.", extensions={"field": "input", "limit": 1}
        )
    if kinds == {int}:
        return await _decoded([given], vocabulary, caller, is_nested=False)  # type: ignore[list-item]
    if kinds == {tuple}:
        return await _decoded(given, vocabulary, caller, is_nested=True)  # type: ignore[arg-type]
    if kinds <= {str, TextObject}:
        return _checked([item.text if isinstance(item, TextObject) else str(item) for item in given])
    raise _mixed(given)


async def _decoded(
    pieces: Sequence[Sequence[int]], vocabulary: TokenVocabulary, caller: Caller, *, is_nested: bool
) -> Texts:
    _check_number(len(pieces))
    check_tokens([len(piece) for piece in pieces])
    return Texts(await vocabulary.decode(pieces, caller=caller, is_nested=is_nested), are_ids=True)


def _checked(texts: Sequence[str]) -> Texts:
    _check_number(len(texts))
    longest = MAX_TEXT_TOKENS * MAX_CHARACTERS_PER_TOKEN
    lengths = list(map(len, texts))
    if max(lengths) > longest:
        index = next(index for index, length in enumerate(lengths) if length > longest)
        raise InvalidInputError(
            f"input[{index}]: {lengths[index]} characters are more than the {longest} allowed in one text, which may "
            f"have up to {MAX_TEXT_TOKENS} tokens. Split the text.",
            extensions={"field": "input", "index": index, "limit": longest},
        )
    if sum(lengths) > (most := MAX_REQUEST_TOKENS * MAX_CHARACTERS_PER_TOKEN):
        raise InvalidInputError(
            f"input: {sum(lengths)} characters are more than the {most} allowed in one request, which may have up to "
            f"{MAX_REQUEST_TOKENS} tokens. Send fewer texts per request.",
            extensions={"field": "input", "limit": most},
        )
    return Texts(texts)


def _check_number(number: int) -> None:
    if number > MAX_TEXTS:
        raise InvalidInputError(
            f"input: {number} texts are more than the {MAX_TEXTS} allowed in one request.",
            extensions={"field": "input", "limit": MAX_TEXTS},
        )


def check_tokens(tokens: Sequence[int]) -> None:
    """Check the number of *tokens* of each text, before any is cut.

    Raises:
        InvalidInputError: a text has too many, or all texts together.
    """
    if max(tokens) > MAX_TEXT_TOKENS:
        index = next(index for index, number in enumerate(tokens) if number > MAX_TEXT_TOKENS)
        raise InvalidInputError(
            f"input[{index}]: {tokens[index]} tokens are more than the maximum context length of {MAX_TEXT_TOKENS} "
            "tokens. Split the text.",
            extensions={"field": "input", "index": index, "tokens": tokens[index], "limit": MAX_TEXT_TOKENS},
        )
    if (total := sum(tokens)) > MAX_REQUEST_TOKENS:
        raise InvalidInputError(
            f"input: {total} tokens are more than the {MAX_REQUEST_TOKENS} allowed in one request. Send fewer texts "
            "per request.",
            extensions={"field": "input", "tokens": total, "limit": MAX_REQUEST_TOKENS},
        )


def _mixed(given: Sequence[object]) -> InvalidInputError:
    """Return the error for a list whose items are of different kinds; names the first that differs."""
    names = {str: "a text", TextObject: "a text", int: "a token id", tuple: "a list of token ids"}
    first = names[type(given[0])]
    index, other = next((index, name) for index, item in enumerate(given) if (name := names[type(item)]) != first)
    return InvalidInputError(
        f"input[{index}]: this is {other}, but input[0] is {first}. Send a list of texts, a list of token ids, or a "
        "list of lists of token ids.",
        extensions={"field": "input", "index": index},
    )
