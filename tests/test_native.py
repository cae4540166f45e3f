import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest
from litestar import Litestar, Response, get
from numpy.typing import NDArray

from api.native import (
    EmbedAnswer,
    EmbedBatchAnswer,
    EmbedBatchRequest,
    EmbedRequest,
    FastResponse,
    TextRules,
    Vectors,
    VectorsSchema,
)
from engine.errors import InvalidInputError

RULES = TextRules(max_characters=5, max_texts=3)


def rendered(content: object) -> str:
    return FastResponse(content).render(content, "application/json").decode()


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
    assert refusal.value.facts == {"field": "text"}
    with pytest.raises(InvalidInputError, match=rf"^texts\[1\]: .*{words}") as refusal:
        RULES.check_texts(["a", text])
    assert refusal.value.facts == {"field": "texts", "index": 1}


def test_long_text_is_refused_with_its_place_and_the_limit() -> None:
    with pytest.raises(InvalidInputError, match=r"^text: 6 characters are more than the 5") as refusal:
        RULES.check_text("abcdef")
    assert refusal.value.facts == {"field": "text", "limit": 5}
    with pytest.raises(InvalidInputError, match=r"^texts\[2\]: 6 characters are more than the 5") as refusal:
        RULES.check_texts(["a", "b", "abcdef"])
    assert refusal.value.facts == {"field": "texts", "index": 2, "limit": 5}


def test_no_texts_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="empty") as refusal:
        RULES.check_texts([])
    assert refusal.value.facts == {"field": "texts", "limit": 1}


def test_too_many_texts_are_refused_with_the_limit() -> None:
    RULES.check_texts(["a"] * 3)
    with pytest.raises(InvalidInputError, match="4 texts are more than the 3") as refusal:
        RULES.check_texts(["a"] * 4)
    assert refusal.value.facts == {"field": "texts", "limit": 3}


def test_refusal_never_repeats_the_text() -> None:
    with pytest.raises(InvalidInputError) as refusal:
        RULES.check_text("secret")
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        pytest.param(EmbedRequest, {"text": "a", "normalize": True}, id="unknown field"),
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


def some_floats() -> NDArray[np.float32]:
    """Usual ones, and all the odd ones: least, largest, subnormal, whole, negative zero."""
    usual = np.random.default_rng(7).standard_normal(2000).astype(np.float32) / 20
    odd = np.array([1e-45, 3.4028235e38, 1.1754944e-38, 1.0, -0.0, 0.1, 1 / 3, 16777216.0], np.float32)
    return np.concatenate([usual, odd])


def test_floats_come_back_exactly() -> None:
    vector = some_floats()
    again = np.array(json.loads(rendered(vector)), np.float32)
    np.testing.assert_array_equal(again, vector)
    assert np.signbit(again[-4])


def test_floats_have_no_more_digits_than_float32_needs() -> None:
    for number in some_floats():
        digits = json.dumps(float(rendered(np.array([number], np.float32)).strip("[]")))
        assert float(digits) == float(str(number))


def test_vectors_take_about_half_the_bytes_of_float64() -> None:
    vector = some_floats()[:2000]
    assert len(rendered(vector)) < 0.6 * len(json.dumps(vector.astype(np.float64).tolist()))


def test_answer_is_written_field_by_field() -> None:
    answer = EmbedAnswer(
        embedding=np.array([0.1, -0.5], np.float32),
        model_name="a/b",
        dimension=2,
        text_length=3,
        tokens=4,
        truncated=False,
        processing_time_ms=1.5,
    )
    assert rendered(answer) == (
        '{"embedding":[0.1,-0.5],"model_name":"a/b","dimension":2,"text_length":3,"tokens":4,"truncated":false,'
        '"processing_time_ms":1.5}'
    )


def test_vectors_of_a_batch_are_lists_in_a_list() -> None:
    vectors = np.array([[1, 2], [3, 4]], np.float32)
    answer = EmbedBatchAnswer(vectors, "a", 2, 2, [3, 3], [False, True], 1.0)
    body = orjson.loads(rendered(answer))
    assert body["embeddings"] == [[1, 2], [3, 4]]
    assert (body["tokens"], body["truncated"]) == ([3, 3], [False, True])


def test_times_of_day_end_with_z() -> None:
    assert rendered({"at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)}) == '{"at":"2026-01-02T03:04:05Z"}'


@dataclass(frozen=True, slots=True)
class Both:
    embedding: Vectors
    embeddings: Vectors
    name: str


def test_schema_says_what_vectors_are() -> None:
    @get("/both")
    async def both() -> Response[Both]:
        raise NotImplementedError

    schema: Any = Litestar([both], plugins=[VectorsSchema()], logging_config=None).openapi_schema.to_schema()
    [properties] = [facts["properties"] for facts in schema["components"]["schemas"].values() if "Both" in str(facts)]
    numbers = {"type": "array", "items": {"type": "number"}}
    assert properties["embedding"] == numbers
    assert properties["embeddings"] == {"type": "array", "items": numbers}
    assert properties["name"] == {"type": "string"}
