"""Request bodies: limits of texts, types of fields, and the options that reach the engine."""

import re
from pathlib import Path

import msgspec
import pytest

from api.request_types import EmbedBatchRequest, EmbedRequest, TextLimits, TokenizeRequest
from engine.errors import InvalidInputError
from engine.manifest import Manifest
from engine.options import DEFAULTS, EmbedOptions

DOCS = Path(__file__).parents[2] / "docs"
LIMITS = TextLimits(max_characters=5, max_texts=3)


@pytest.mark.parametrize("text", ["a", "abcde", " a ", "ü" * 5, "🙂" * 5, "\x00", "\u200b"])
def test_text_within_the_limits_is_accepted(text: str) -> None:
    LIMITS.check_text(text)
    LIMITS.check_texts([text])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("", "empty", id="empty"),
        pytest.param("  \n\t", "blank", id="blank"),
        pytest.param("\u00a0\u2003\u3000", "blank", id="blank in other scripts"),
    ],
)
def test_empty_text_is_rejected_with_its_field_and_index(text: str, words: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"^text: .*{words}") as rejection:
        LIMITS.check_text(text)
    assert rejection.value.extensions == {"field": "text"}
    with pytest.raises(InvalidInputError, match=rf"^texts\[1\]: .*{words}") as rejection:
        LIMITS.check_texts(["a", text])
    assert rejection.value.extensions == {"field": "texts", "index": 1}


def test_long_text_is_rejected_with_its_field_index_and_the_limit() -> None:
    with pytest.raises(InvalidInputError, match=r"^text: 6 characters are more than the 5") as rejection:
        LIMITS.check_text("abcdef")
    assert rejection.value.extensions == {"field": "text", "limit": 5}
    with pytest.raises(InvalidInputError, match=r"^texts\[2\]: 6 characters are more than the 5") as rejection:
        LIMITS.check_texts(["a", "b", "abcdef"])
    assert rejection.value.extensions == {"field": "texts", "index": 2, "limit": 5}


def test_empty_list_of_texts_is_rejected() -> None:
    with pytest.raises(InvalidInputError, match="empty") as rejection:
        LIMITS.check_texts([])
    assert rejection.value.extensions == {"field": "texts", "limit": 1}


def test_too_many_texts_are_rejected_with_the_limit() -> None:
    LIMITS.check_texts(["a"] * 3)
    with pytest.raises(InvalidInputError, match="4 texts are more than the 3") as rejection:
        LIMITS.check_texts(["a"] * 4)
    assert rejection.value.extensions == {"field": "texts", "limit": 3}


def test_rejection_never_repeats_the_text() -> None:
    with pytest.raises(InvalidInputError) as rejection:
        LIMITS.check_text("secret")
    assert "secret" not in str(rejection.value)


@pytest.mark.parametrize(
    ("body_type", "body"),
    [
        pytest.param(EmbedRequest, {"text": "a", "normalise": True}, id="unknown field"),
        pytest.param(EmbedRequest, {"text": 1}, id="number for a string"),
        pytest.param(EmbedRequest, {}, id="field missing"),
        pytest.param(EmbedBatchRequest, {"texts": ["a", 1]}, id="number in the list"),
        pytest.param(EmbedBatchRequest, {"texts": "a"}, id="string for a list"),
    ],
)
def test_body_with_unknown_fields_or_wrong_types_is_rejected(body_type: type[msgspec.Struct], body: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(body, body_type)


@pytest.mark.parametrize("model_name", [None, "a/b"])
def test_model_name_is_optional(model_name: str | None) -> None:
    assert msgspec.convert({"text": "a"}, EmbedRequest).model_name is None
    assert msgspec.convert({"texts": ["a"], "model_name": model_name}, EmbedBatchRequest).model_name == model_name


def test_omitted_options_have_their_defaults() -> None:
    assert msgspec.convert({"text": "a"}, EmbedRequest).options is DEFAULTS
    assert msgspec.convert({"texts": ["a"], "encoding": "base64"}, EmbedBatchRequest).options is DEFAULTS


def test_each_option_reaches_the_engine() -> None:
    options = {
        "input_type": "query",
        "truncate": "start",
        "long_text": "mean",
        "dimensions": 3,
        "allow_untrained_dimensions": True,
        "normalize": False,
        "dtype": "int8",
    }
    others = {"allow_blank", "clip", "max_tokens"}  # of the routes of dialects
    assert {*options, *others} == set(EmbedOptions.__dataclass_fields__)
    assert msgspec.convert({"text": "a", **options}, EmbedRequest).options == EmbedOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("body_type", [EmbedRequest, EmbedBatchRequest, TokenizeRequest])
@pytest.mark.parametrize("value", ["Query", "", 1, ["query"]])
def test_value_that_is_not_a_choice_is_rejected(body_type: type[msgspec.Struct], value: object) -> None:
    texts = {"text": "a"} if body_type is EmbedRequest else {"texts": ["a"]}
    with pytest.raises(msgspec.ValidationError, match="input_type"):
        msgspec.convert({**texts, "input_type": value}, body_type)


def table_rows(page: str) -> str:
    """Return the first cells of the page's table rows."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return "\n".join(re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", text, re.MULTILINE))


def test_options_are_documented() -> None:
    rows, page = table_rows("API.md"), (DOCS / "API.md").read_text(encoding="utf-8")
    for name in set(EmbedRequest.__struct_fields__) - {"text", "model_name"}:
        assert f"`{name}`" in (rows if name != "allow_untrained_dimensions" else page)


def test_keys_of_a_manifest_are_documented() -> None:
    rows = table_rows("MODELS.md")
    assert [name for name in Manifest.__struct_fields__ if f"`{name}`" not in rows] == []
