"""JSON answers: exact and short numbers, and the same head as Litestar's own."""

import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson
import pytest
from litestar import Response, get
from litestar.response.base import ASGIResponse
from litestar.testing import create_test_client
from numpy.typing import NDArray

from api.answer_types import EmbedAnswer, EmbedBatchAnswer
from web.responses import json_answer, json_of


def rendered(content: object) -> str:
    return json_of(content).decode()


def some_floats() -> NDArray[np.float32]:
    """Return common values and special ones: smallest, largest, subnormal, whole, negative zero."""
    common = np.random.default_rng(7).standard_normal(2000).astype(np.float32) / 20
    special = np.array([1e-45, 3.4028235e38, 1.1754944e-38, 1.0, -0.0, 0.1, 1 / 3, 16777216.0], np.float32)
    return np.concatenate([common, special])


def test_floats_are_read_back_exactly() -> None:
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


def test_answer_has_its_fields_in_order() -> None:
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


def test_vectors_of_a_batch_are_a_list_of_lists() -> None:
    vectors = np.array([[1, 2], [3, 4]], np.float32)
    answer = EmbedBatchAnswer(vectors, "a", 2, 2, [3, 3], [False, True], 1.0)
    body = orjson.loads(rendered(answer))
    assert body["embeddings"] == [[1, 2], [3, 4]]
    assert (body["tokens"], body["truncated"]) == ([3, 3], [False, True])


def test_times_of_day_end_with_z() -> None:
    assert rendered({"at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)}) == '{"at":"2026-01-02T03:04:05Z"}'


@pytest.mark.parametrize("dtype", [np.float16, np.int8, np.uint8])
def test_numbers_of_other_types_are_read_back_exactly(dtype: type[np.generic]) -> None:
    vectors = np.array([[0, 1, 3], [100, 127, 2]], dtype)
    np.testing.assert_array_equal(np.array(json.loads(rendered(vectors)), dtype), vectors)


def test_answer_has_the_same_head_as_one_of_litestar() -> None:
    @get("/own", status_code=203)
    async def own() -> Response[Any]:
        return Response({"a": 1}, headers={"X-Model-Fingerprint": "abc", "Retry-After": "1"}, status_code=503)

    @get("/fast", status_code=203)
    async def fast() -> ASGIResponse:
        return json_answer({"a": 1}, headers={"X-Model-Fingerprint": "abc", "Retry-After": "1"}, status=503)

    with create_test_client([own, fast]) as client:
        wanted, given = client.get("/own"), client.get("/fast")
    assert (given.status_code, given.content) == (wanted.status_code, wanted.content) == (503, b'{"a":1}')
    assert sorted(given.headers.multi_items()) == sorted(wanted.headers.multi_items())
