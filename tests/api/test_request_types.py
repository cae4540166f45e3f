import re
from pathlib import Path

import msgspec
import pytest

from api.request_types import EmbedBatchRequest, EmbedRequest, TextLimits, TokenizeRequest
from engine.errors import InvalidInputError
from engine.manifest import Manifest
from engine.options import DEFAULTS, EmbedOptions

DOCS = Path(__file__).parents[2] / "docs"
RULES = TextLimits(max_characters=5, max_texts=3)


@pytest.mark.parametrize("text", ["a", "abcde", " a ", "ü" * 5, "🙂" * 5, "\x00", "\u200b"])
def test_text_within_the_rules_is_taken(text: str) -> None:
    RULES.check_text(text)
    RULES.check_texts([text])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("", "empty", id="empty"),
        pytest.param("  \n\t", "blank", id="blank"),
        pytest.param("\u00a0\u2003\u3000", "blank", id="blank in other scripts"),
    ],
)
def test_empty_text_is_refused_with_its_place(text: str, words: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"^text: .*{words}") as refusal:
        RULES.check_text(text)
    assert refusal.value.extensions == {"field": "text"}
    with pytest.raises(InvalidInputError, match=rf"^texts\[1\]: .*{words}") as refusal:
        RULES.check_texts(["a", text])
    assert refusal.value.extensions == {"field": "texts", "index": 1}


def test_long_text_is_refused_with_its_place_and_the_limit() -> None:
    with pytest.raises(InvalidInputError, match=r"^text: 6 characters are more than the 5") as refusal:
        RULES.check_text("abcdef")
    assert refusal.value.extensions == {"field": "text", "limit": 5}
    with pytest.raises(InvalidInputError, match=r"^texts\[2\]: 6 characters are more than the 5") as refusal:
        RULES.check_texts(["a", "b", "abcdef"])
    assert refusal.value.extensions == {"field": "texts", "index": 2, "limit": 5}


def test_no_texts_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="empty") as refusal:
        RULES.check_texts([])
    assert refusal.value.extensions == {"field": "texts", "limit": 1}


def test_too_many_texts_are_refused_with_the_limit() -> None:
    RULES.check_texts(["a"] * 3)
    with pytest.raises(InvalidInputError, match="4 texts are more than the 3") as refusal:
        RULES.check_texts(["a"] * 4)
    assert refusal.value.extensions == {"field": "texts", "limit": 3}


def test_refusal_never_repeats_the_text() -> None:
    with pytest.raises(InvalidInputError) as refusal:
        RULES.check_text("secret")
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        pytest.param(EmbedRequest, {"text": "a", "normalise": True}, id="unknown field"),
        pytest.param(EmbedRequest, {"text": 1}, id="no string"),
        pytest.param(EmbedRequest, {}, id="no text"),
        pytest.param(EmbedBatchRequest, {"texts": ["a", 1]}, id="no string in the list"),
        pytest.param(EmbedBatchRequest, {"texts": "a"}, id="no list"),
    ],
)
def test_body_with_other_fields_or_types_is_refused(kind: type[msgspec.Struct], body: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(body, kind)


@pytest.mark.parametrize("model_name", [None, "a/b"])
def test_model_is_optional(model_name: str | None) -> None:
    assert msgspec.convert({"text": "a"}, EmbedRequest).model_name is None
    assert msgspec.convert({"texts": ["a"], "model_name": model_name}, EmbedBatchRequest).model_name == model_name


def test_options_left_out_are_the_defaults() -> None:
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
    assert set(options) == set(EmbedOptions.__dataclass_fields__)
    assert msgspec.convert({"text": "a", **options}, EmbedRequest).options == EmbedOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [EmbedRequest, EmbedBatchRequest, TokenizeRequest])
@pytest.mark.parametrize("value", ["Query", "", 1, ["query"]])
def test_choice_outside_the_words_is_refused(kind: type[msgspec.Struct], value: object) -> None:
    texts = {"text": "a"} if kind is EmbedRequest else {"texts": ["a"]}
    with pytest.raises(msgspec.ValidationError, match="input_type"):
        msgspec.convert({**texts, "input_type": value}, kind)


def table_rows(page: str) -> str:
    """The first cells of the page's table rows."""
    told = (DOCS / page).read_text(encoding="utf-8")
    return "\n".join(re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", told, re.MULTILINE))


@pytest.mark.parametrize("name", sorted(set(EmbedRequest.__struct_fields__) - {"text", "model_name"}))
def test_option_is_documented(name: str) -> None:
    told = (DOCS / "API.md").read_text(encoding="utf-8")
    assert f"`{name}`" in (table_rows("API.md") if name != "allow_untrained_dimensions" else told)


@pytest.mark.parametrize("name", Manifest.__struct_fields__)
def test_key_of_a_manifest_is_documented(name: str) -> None:
    assert f"`{name}`" in table_rows("MODELS.md")
