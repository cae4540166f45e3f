"""Cohere's API over HTTP, in this process, with tiny models."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from litestar import Litestar
from litestar.testing import TestClient
from numpy.typing import NDArray

from api.cohere_types import MAX_TEXTS
from tests.support.apps import running_app
from tests.support.tiny import MAX_TOKENS, WORDS, TinyModel, mean_of

Json = dict[str, Any]
Client = TestClient[Litestar]
PROMPTS = {"query": "one two ", "document": "three "}
TEXTS = ["one", "two three", "warm four zero", "five"]
KINDS = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
each_version = pytest.mark.parametrize("path", ["/v1/embed", "/v2/embed"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    TinyModel("acme/plain", dim=12).write(folder)
    TinyModel("acme/prompted", prompts=PROMPTS).write(folder)
    TinyModel("acme/nested", dim=8, matryoshka=(2, 4)).write(folder)
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Client]:
    with running_app(MODELS_DIR=str(folder), REQUIRED_MODELS="acme/plain", MAX_CACHED_MODELS="5") as client:
        yield client


def ask(client: Client, path: str = "/v2/embed", **body: Any) -> Json:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return dict(response.json())


def rejection(client: Client, status: int, path: str = "/v2/embed", **body: Any) -> Json:
    """Return the answer, which must have the members of Cohere's errors and of a problem document."""
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    problem = dict(response.json())
    assert problem["message"] == problem["detail"] or problem["code"] == "unknown-model"
    assert problem["id"] == problem["request_id"] == response.headers["x-request-id"]
    assert problem["status"] == status
    return problem


def unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return vector / np.linalg.norm(vector)


def floats(client: Client, *texts: str, **options: Any) -> NDArray[np.float32]:
    return np.asarray(ask(client, texts=list(texts), **options)["embeddings"]["float"], np.float32)


def test_version_2_answers_with_vectors_of_length_1_below_their_type(client: Client) -> None:
    answer = ask(client, texts=["one", "two three"], model="acme/plain", input_type="search_document")
    expected = [unit(mean_of(["one"], 12)), unit(mean_of(["two", "three"], 12))]
    np.testing.assert_allclose(answer.pop("embeddings")["float"], expected, atol=1e-6)
    assert len(answer.pop("id")) == 36
    assert answer == {
        "texts": ["one", "two three"],
        "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": 7}},
        "response_type": "embeddings_by_type",
    }


@pytest.mark.parametrize("types", [{}, {"embedding_types": None}, {"embedding_types": []}])
def test_version_1_without_types_answers_with_a_bare_list(client: Client, types: Json) -> None:
    answer = ask(client, "/v1/embed", texts=["one", "two three"], **types)
    np.testing.assert_array_equal(np.float32(answer["embeddings"]), floats(client, "one", "two three"))
    assert answer["response_type"] == "embeddings_floats"
    assert answer["meta"]["api_version"] == {"version": "1"}


def test_version_1_with_types_answers_as_version_2(client: Client) -> None:
    answers = [
        ask(client, path, texts=["one"], embedding_types=["int8", "float"]) for path in ("/v1/embed", "/v2/embed")
    ]
    assert [answer["meta"]["api_version"]["version"] for answer in answers] == ["1", "2"]
    assert answers[0]["embeddings"] == answers[1]["embeddings"]
    assert answers[0]["response_type"] == answers[1]["response_type"] == "embeddings_by_type"


def test_each_type_is_computed_from_the_same_vector(client: Client) -> None:
    found = ask(client, texts=TEXTS[:2], embedding_types=["base64", *KINDS, "int8"])["embeddings"]
    assert sorted(found) == sorted(KINDS)
    vectors = np.asarray(found["float"], np.float32)
    bits = np.packbits(vectors > 0, axis=1)
    np.testing.assert_array_equal(found["int8"], np.rint(127 * vectors))
    np.testing.assert_array_equal(found["uint8"], np.rint(127 * vectors) + 128)
    np.testing.assert_array_equal(found["ubinary"], bits)
    np.testing.assert_array_equal(found["binary"], bits.astype(int) - 128)
    decoded = [np.frombuffer(base64.b64decode(text), "<f4") for text in found["base64"]]
    np.testing.assert_array_equal(decoded, vectors)


@pytest.mark.parametrize("kind", KINDS)
def test_a_type_alone_has_the_same_vectors_as_beside_others(client: Client, kind: str) -> None:
    alone = ask(client, texts=TEXTS, embedding_types=[kind])["embeddings"]
    assert alone == {kind: ask(client, texts=TEXTS, embedding_types=KINDS)["embeddings"][kind]}


@pytest.mark.parametrize("kinds", [["float"], KINDS], ids=["one-type", "all-types"])
def test_as_many_texts_as_the_limit_are_answered_in_their_order(client: Client, kinds: list[str]) -> None:
    texts = [f"{WORDS[number % 7]} {WORDS[number // 7 % 7]} {'warm ' * (number % 5)}" for number in range(MAX_TEXTS)]
    answer = ask(client, texts=texts, embedding_types=kinds)
    assert answer["texts"] == texts
    assert {len(rows) for rows in answer["embeddings"].values()} == {MAX_TEXTS}
    expected = np.array([unit(mean_of(text.split(), 12)) for text in texts])
    np.testing.assert_allclose(answer["embeddings"]["float"], expected, atol=1e-6)


@each_version
def test_inputs_of_text_parts_are_texts(client: Client, path: str) -> None:
    parts = [[{"type": "text", "text": "one"}], [{"type": "text", "text": "two"}, {"text": "three"}]]
    answer = ask(client, path, inputs=[{"content": content} for content in parts], embedding_types=["float"])
    assert answer["texts"] == ["one", "two\nthree"]
    np.testing.assert_array_equal(np.float32(answer["embeddings"]["float"]), floats(client, "one", "two three"))


@pytest.mark.parametrize(
    ("input_type", "prompt"),
    [
        ("search_query", "one two"),
        ("search_document", "three"),
        *((name, "") for name in ("classification", "clustering", "image", None)),
    ],
)
def test_input_types_of_search_add_the_prompt_of_the_model(client: Client, input_type: str | None, prompt: str) -> None:
    answer = ask(client, texts=["four"], model="acme/prompted", input_type=input_type)
    words = [*prompt.split(), "four"]
    np.testing.assert_allclose(answer["embeddings"]["float"], [unit(mean_of(words))], atol=1e-6)
    assert answer["texts"] == ["four"]
    assert answer["meta"]["billed_units"] == {"input_tokens": len(words) + 2}


def test_a_text_that_begins_with_the_prompt_does_not_get_it_twice(client: Client) -> None:
    with_prompt = ask(client, texts=["one two four"], model="acme/prompted", input_type="search_query")
    without = ask(client, texts=["four"], model="acme/prompted", input_type="search_query")
    assert with_prompt["embeddings"] == without["embeddings"]
    assert with_prompt["texts"] == ["one two four"]


@each_version
def test_unknown_fields_are_ignored_and_null_means_absent(client: Client, path: str) -> None:
    names = ("model", "inputs", "images", "input_type", "embedding_types", "output_dimension", "truncate", "max_tokens")
    further: Json = {**dict.fromkeys(names), "priority": 1, "compress": {"x": []}}
    answers = [ask(client, path, texts=["one"]), ask(client, path, texts=["one"], **further)]
    for answer in answers:
        answer.pop("id")
    assert answers[0] == answers[1]


@pytest.mark.parametrize(("truncate", "seen"), [("END", "one"), (None, "one"), ("START", "two")])
def test_a_long_text_is_cut_at_the_end_or_where_the_request_says(
    client: Client, truncate: str | None, seen: str
) -> None:
    text = "one " * MAX_TOKENS + "two " * MAX_TOKENS
    response = client.post("/v2/embed", json={"texts": [text, "four"], "truncate": truncate})
    assert response.status_code == 200, response.text
    assert response.headers["x-embedding-truncated"] == "1"
    assert response.headers["x-embedding-tokens"] == str(MAX_TOKENS + 3)
    answer = response.json()
    assert answer["meta"]["billed_units"] == {"input_tokens": MAX_TOKENS + 3}
    expected = unit(mean_of([seen] * (MAX_TOKENS - 2), 12))
    np.testing.assert_allclose(answer["embeddings"]["float"][0], expected, atol=1e-6)


@pytest.mark.parametrize(("truncate", "seen"), [("END", ["one", "two"]), ("START", ["three", "four"])])
def test_max_tokens_cuts_texts_below_the_input_of_the_model(client: Client, truncate: str, seen: list[str]) -> None:
    response = client.post(
        "/v2/embed", json={"texts": ["one two three four", "five"], "truncate": truncate, "max_tokens": 4}
    )
    assert response.headers["x-embedding-truncated"] == "1"
    assert response.headers["x-embedding-tokens"] == str(4 + 3)
    expected = [unit(mean_of(seen, 12)), unit(mean_of(["five"], 12))]
    np.testing.assert_allclose(response.json()["embeddings"]["float"], expected, atol=1e-6)


def test_max_tokens_above_the_input_of_the_model_changes_nothing(client: Client) -> None:
    text = "one two " * MAX_TOKENS
    np.testing.assert_array_equal(floats(client, text, max_tokens=5000), floats(client, text))


def test_truncate_none_rejects_what_max_tokens_would_cut(client: Client) -> None:
    problem = rejection(client, 400, texts=["one two three four"], truncate="NONE", max_tokens=4)
    assert (problem["index"], problem["tokens"], problem["limit"]) == (0, 6, 4)


def test_truncate_none_rejects_a_long_text(client: Client) -> None:
    problem = rejection(client, 400, texts=["one", "one " * MAX_TOKENS], truncate="NONE")
    assert (problem["index"], problem["tokens"], problem["limit"]) == (1, MAX_TOKENS + 2, MAX_TOKENS)
    assert "16" in problem["message"]


def test_a_trained_dimension_shortens_vectors(client: Client) -> None:
    whole = floats(client, "one", model="acme/nested")
    short = floats(client, "one", model="acme/nested", output_dimension=4)
    np.testing.assert_allclose(short, [unit(whole[0, :4])], atol=1e-6)


@pytest.mark.parametrize("dimension", [3, 9])
def test_another_dimension_is_rejected_by_the_name_of_cohere(client: Client, dimension: int) -> None:
    problem = rejection(client, 400, texts=["one"], model="acme/nested", output_dimension=dimension)
    assert problem["message"].startswith(f"output_dimension: {dimension} is not ")
    assert "allow_untrained" not in problem["message"]
    assert problem["field"] == "output_dimension"


@each_version
@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({}, "texts", "at least one text must be provided"),
        ({"texts": []}, "texts", "at least one text must be provided"),
        ({"inputs": []}, "texts", "at least one text must be provided"),
        ({"texts": ["one"] * (MAX_TEXTS + 1)}, "texts", "at most 2048 - received 2049"),
        ({"inputs": [{"content": [{"text": "one"}]}] * (MAX_TEXTS + 1)}, "inputs", "at most 2048 - received 2049"),
        ({"inputs": [{"content": []}] * (MAX_TEXTS + 1)}, "inputs", "at most 2048 - received 2049"),
        ({"texts": ["one"], "inputs": [{"content": [{"text": "one"}]}]}, "inputs", "not both"),
        ({"images": ["data:image/png;base64,AAAA"]}, "images", "only texts"),
        ({"inputs": [{"content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "inputs", "type 'text'"),
        ({"inputs": [{"content": []}]}, "inputs", "type 'text'"),
        ({"texts": ["one"], "embedding_types": ["float16"]}, "embedding_types", "Choose one of base64, binary, float,"),
        ({"texts": ["one"], "input_type": "query"}, "input_type", "search_query"),
        ({"texts": ["one"], "truncate": "end"}, "truncate", "END, NONE, START"),
        ({"texts": ["one", 2]}, "texts", "Expected a string"),
    ],
)
def test_a_bad_body_is_a_400_that_names_the_field(
    client: Client, path: str, body: Json, field: str, words: str
) -> None:
    problem = rejection(client, 400, path, **body)
    assert problem["field"] == field
    assert words in problem["message"]


@each_version
def test_an_unknown_model_is_a_404_with_the_closest_names(client: Client, path: str) -> None:
    problem = rejection(client, 404, path, texts=["one"], model="acme/plane")
    assert problem["code"] == "unknown-model"
    assert problem["message"].startswith("model 'acme/plane' not found, make sure the correct model ID was used. ")
    assert "Did you mean 'acme/plain'" in problem["message"]


@pytest.mark.parametrize("path", ["/v2/rerank", "/v1/rerank", "/v2/nothing/here", "/v1/embed/more"])
def test_an_address_that_does_not_exist_is_a_404_in_the_words_of_cohere(client: Client, path: str) -> None:
    assert rejection(client, 404, path, query="one", documents=["two"])["code"] == "not-found"


@each_version
def test_another_method_is_a_405_in_the_words_of_cohere(client: Client, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 405
    assert response.headers["content-type"] == "application/json"
    assert response.json()["message"] == "This address does not accept GET. Use POST."


@each_version
def test_a_body_without_a_content_type_is_json_and_a_slash_at_the_end_is_ignored(client: Client, path: str) -> None:
    response = client.post(f"{path}/", content=b'{"texts": ["one"]}')
    assert response.status_code == 200, response.text


def test_the_answer_states_the_fingerprint_and_obeys_the_one_that_the_request_requires(client: Client) -> None:
    fingerprint = client.post("/v2/embed", json={"texts": ["one"]}).headers["x-model-fingerprint"]
    native = client.post("/embed", json={"text": "one"}).headers["x-model-fingerprint"]
    assert fingerprint == native
    required = {"If-Model-Fingerprint": fingerprint[::-1]}
    response = client.post("/v2/embed", json={"texts": ["one"]}, headers=required)
    assert response.status_code == 412
    assert response.json()["message"] == response.json()["detail"]


def test_models_are_listed_beside_those_for_clients_of_openai(client: Client) -> None:
    answer = client.get("/v1/models").json()
    assert {"name": "acme/plain", "endpoints": ["embed"], "context_length": MAX_TOKENS} in answer["models"]
    assert [model["name"] for model in answer["models"]] == [model["id"] for model in answer["data"]]


def test_keys_quotas_and_permissions_hold(folder: Path) -> None:
    key = "a-key-of-at-least-32-characters-or-so"
    settings = {"API_KEYS": f"somebody:{key}", "ENABLE_RATE_LIMIT": "true", "RATE_LIMIT_REQUESTS": "1"}
    body = {"texts": ["one"]}
    with running_app(MODELS_DIR=str(folder), REQUIRED_MODELS="acme/plain", **settings) as client:
        refused = client.post("/v2/embed", json=body)
        assert refused.status_code == 401
        assert refused.json()["message"] == refused.json()["detail"]
        headers = {"Authorization": f"Bearer {key}"}
        first, second = (client.post(path, json=body, headers=headers) for path in ("/v2/embed", "/v1/embed"))
    assert first.status_code == 200
    assert "ratelimit" in first.headers
    assert second.status_code == 429
    assert second.json()["message"] == second.json()["detail"]
    assert int(second.headers["retry-after"]) > 0


def test_the_bundled_model_embeds_an_empty_text_and_equals_the_native_route() -> None:
    """An empty text gets the vector of the two special tokens."""
    texts = ["", "\u200b", "How do I reset my password?"]
    with running_app() as client:
        answer = ask(client, texts=texts)
        native = client.post("/embed", json={"text": texts[2], "normalize": True}).json()
    vectors = np.asarray(answer["embeddings"]["float"], np.float32)
    assert answer["meta"]["billed_units"] == {"input_tokens": 2 + 2 + 9}
    np.testing.assert_array_equal(vectors[0], vectors[1])
    np.testing.assert_allclose(vectors[2], native["embedding"], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
