"""What a 400 says about a field that the body may not have: the field that was probably meant, and all allowed ones."""

import json
from typing import Any

import msgspec
import pytest

from api.request_types import EmbedBatchRequest, EmbedRequest, TextLimits, TokenizeRequest
from engine.errors import InvalidInputError
from tests.support.decoding import decode
from web.input_errors import invalid_input


def error_of(expected: type[Any], **body: object) -> InvalidInputError:
    with pytest.raises(InvalidInputError) as rejection:
        decode(json.dumps(body).encode(), expected)
    return rejection.value


@pytest.mark.parametrize(
    ("expected", "field", "guess"),
    [
        pytest.param(
            EmbedRequest, "texts", "For several texts, send 'texts' to POST /embed/batch.", id="several texts"
        ),
        pytest.param(
            EmbedRequest,
            "input",
            "Did you mean 'text'? Clients of OpenAI's API send 'input' to POST /v1/embeddings.",
            id="OpenAI's text",
        ),
        pytest.param(EmbedRequest, "Prompt", "Did you mean 'text'?", id="another API's text"),
        pytest.param(EmbedRequest, "Inputs", "Did you mean 'text'?", id="another case"),
        pytest.param(EmbedRequest, "model", "Did you mean 'model_name'?", id="another API's model"),
        pytest.param(EmbedRequest, "normalise", "Did you mean 'normalize'?", id="another spelling"),
        pytest.param(EmbedRequest, "dimension", "Did you mean 'dimensions'?", id="one letter less"),
        pytest.param(
            EmbedBatchRequest, "text", "For one text, use POST /embed; here 'texts' is a list.", id="one text"
        ),
        pytest.param(EmbedBatchRequest, "sentences", "Did you mean 'texts'?", id="another API's texts"),
        pytest.param(EmbedBatchRequest, "encoding_format", "Did you mean 'encoding'?", id="another API's option"),
        pytest.param(TokenizeRequest, "text", "Did you mean 'texts'?", id="one text to tokenize"),
    ],
)
def test_unknown_field_gets_a_guess_of_what_was_meant(expected: type[Any], field: str, guess: str) -> None:
    error = error_of(expected, **{field: "a"})
    assert error.detail.startswith(f"Object contains unknown field {field!r}. {guess} Choose one of ")
    assert error.extensions["field"] == field


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        (str, "a string"),
        (str | None, "a string or null"),
        (bool | None, "true, false or null"),
        (str | list[str] | None, "a string, an array or null"),
        (list[str] | None, "an array or null"),
        (TextLimits | None, "an object or null"),
    ],
)
def test_types_are_named_in_plain_words(expected: Any, words: str) -> None:
    error = error_of(msgspec.defstruct("Body", [("field", expected)]), field=0.5)
    assert error.detail == f"field: Expected {words}, got a number."


@pytest.mark.parametrize(
    ("expected", "body", "hint"),
    [
        (EmbedRequest, {"text": ["a", "b"]}, "For several texts, send 'texts' to POST /embed/batch."),
        (EmbedBatchRequest, {"texts": "a"}, "Send a list, or 'text' to POST /embed."),
    ],
)
def test_list_in_place_of_a_text_and_the_reverse_get_a_hint(
    expected: type[Any], body: dict[str, object], hint: str
) -> None:
    error = error_of(expected, **body)
    assert error.detail.endswith(hint)
    assert error.extensions["field"] in body


def test_unknown_field_unlike_any_other_gets_no_guess() -> None:
    error = error_of(EmbedRequest, text="a", xyz=1)
    assert error.detail.startswith("Object contains unknown field 'xyz'. Choose one of text, ")


@pytest.mark.parametrize(("expected", "required"), [(EmbedRequest, "text"), (EmbedBatchRequest, "texts")])
def test_choices_begin_with_the_required_field(expected: type[Any], required: str) -> None:
    choices = error_of(expected, xyz=1).extensions["choices"]
    assert isinstance(choices, list)
    assert choices[:2] == [required, "model_name"]
    assert sorted(choices) == sorted(expected.__struct_fields__)


@pytest.mark.parametrize("expected", [EmbedRequest, EmbedBatchRequest, TokenizeRequest])
def test_hints_are_only_about_fields_that_the_body_does_not_have(expected: type[Any]) -> None:
    assert set(expected.FIELD_HINTS).isdisjoint(expected.__struct_fields__)


def test_body_of_a_type_without_fields_gets_neither_guess_nor_choices() -> None:
    error = invalid_input("Object contains unknown field `a`", "", dict[str, int])
    assert (error.detail, error.extensions) == ("Object contains unknown field 'a'.", {"field": "a"})
