"""OpenAI's API over HTTP, in this process, with tiny models."""

import base64
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from litestar import Litestar
from litestar.testing import TestClient
from numpy.typing import NDArray

from api.openai_inputs import MAX_CHARACTERS_PER_TOKEN, MAX_REQUEST_TOKENS, MAX_TEXT_TOKENS, MAX_TEXTS
from api.openai_token_ids import CL100K_BASE
from config import BUNDLED_MODEL
from tests.support.apps import running_app
from tests.support.tiny import MAX_TOKENS, TinyModel, mean_of

Json = dict[str, Any]
Client = TestClient[Litestar]
PROMPTS = {"query": "one two ", "document": "three "}
TEXTS = ["one", "two three", "warm four zero", "five"]
LONGEST = MAX_TEXT_TOKENS * MAX_CHARACTERS_PER_TOKEN


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    TinyModel("acme/plain", dim=12).write(folder)
    TinyModel("acme/prompted", prompts=PROMPTS).write(folder)
    TinyModel("acme/nested", dim=8, matryoshka=(2, 4)).write(folder)
    TinyModel("acme/any-query").write(folder)
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Client]:
    settings = {"MODELS_DIR": str(folder), "REQUIRED_MODELS": "acme/plain", "MAX_CACHED_MODELS": "6"}
    with running_app(**settings, MODEL_ALIASES="text-embedding-3-small=acme/nested") as client:
        yield client


def ask(client: Client, path: str = "/v1/embeddings", **body: Any) -> Json:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return dict(response.json())


def rejection(client: Client, status: int, path: str = "/v1/embeddings", **body: Any) -> Json:
    """Return `error` of the answer, which must also be a problem document."""
    response = client.post(path, json=body)
    return error_of(response.json(), status, response.headers["content-type"])


def error_of(problem: Json, status: int, media_type: str) -> Json:
    assert media_type == "application/json"
    assert problem["status"] == problem["status_code"] == status
    assert isinstance(problem["detail"], str)  # Voyage's clients show it
    assert set(problem["error"]) == {"message", "type", "param", "code"}
    return dict(problem["error"])


def unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return vector / np.linalg.norm(vector)


def vectors(client: Client, given: object, **options: Any) -> NDArray[np.float32]:
    data = ask(client, input=given, **options)["data"]
    return np.asarray([row["embedding"] for row in data], np.float32)


@cache
def ids_of(text: str) -> list[int]:
    """Return ids of cl100k_base for a *text* of words that are tokens there, each with the space before it."""
    tokens = [base64.b64decode(line.split()[0]) for line in CL100K_BASE.read_bytes().splitlines()]
    return [tokens.index(word.encode()) for word in text.replace(" ", "| ").split("|")]


# --- Answers ---


def test_answer_has_all_members_and_vectors_of_length_1(client: Client) -> None:
    answer = ask(client, input=["one", "two three"], model="acme/plain", user="somebody")
    found = [row.pop("embedding") for row in answer["data"]]
    np.testing.assert_allclose(found, [unit(mean_of(["one"], 12)), unit(mean_of(["two", "three"], 12))], atol=1e-6)
    assert answer == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0}, {"object": "embedding", "index": 1}],
        "model": "acme/plain",
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }


def test_headers_state_the_model_the_tokens_and_the_texts_that_were_cut(client: Client) -> None:
    response = client.post("/v1/embeddings", json={"input": ["one", "two " * 50]})
    assert len(response.headers["X-Model-Fingerprint"]) == 16
    assert response.headers["X-Embedding-Tokens"] == str(3 + MAX_TOKENS)
    assert response.headers["X-Embedding-Truncated"] == "1"
    assert response.json()["usage"]["total_tokens"] == 3 + MAX_TOKENS


def test_base64_has_the_bytes_of_the_same_numbers(client: Client) -> None:
    data = ask(client, input=TEXTS, encoding_format="base64")["data"]
    found = [np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in data]
    np.testing.assert_array_equal(found, vectors(client, TEXTS))


@pytest.mark.parametrize("path", ["/embeddings", "/embeddings/", "/v1/embeddings/", "/openai/v1/embeddings"])
def test_other_addresses_answer_the_same(client: Client, path: str) -> None:
    assert ask(client, path, input=TEXTS) == ask(client, input=TEXTS)


@pytest.mark.parametrize("model", [{}, {"model": None}, {"model": ""}])
def test_without_a_model_the_default_one_answers(client: Client, model: Json) -> None:
    assert ask(client, input="one", **model)["model"] == "acme/plain"


def test_null_means_absent_and_other_fields_are_ignored(client: Client) -> None:
    fields = ["model", "encoding_format", "dimensions", "input_type", "truncation", "output_dtype", "output_dimension"]
    jina = ["task", "late_chunking", "embedding_type", "normalized", "truncate", "truncate_prompt_tokens"]
    body: Json = {**dict.fromkeys([*fields, *jina]), "user": 5, "messages": [], "parameters": {}}
    assert ask(client, input=TEXTS, **body) == ask(client, input=TEXTS)


def test_body_without_a_content_type_is_json(client: Client) -> None:
    response = client.post("/v1/embeddings", content=b'{"input": "one"}')
    assert "content-type" not in response.request.headers
    assert response.json() == ask(client, input="one")


@pytest.mark.parametrize(
    "given",
    ["one two", ["one two"], {"text": "one two"}, [{"text": "one two", "title": "x"}], "ids", "list of ids"],
    ids=str,
)
def test_every_form_of_input_has_the_same_answer(client: Client, given: Any) -> None:
    ids = ids_of("one two")
    given = {"ids": ids, "list of ids": [ids]}.get(given, given) if isinstance(given, str) else given
    assert ask(client, input=given) == ask(client, input=["one two"])


def test_texts_and_objects_with_texts_may_be_mixed(client: Client) -> None:
    assert ask(client, input=["one", {"text": "two three"}]) == ask(client, input=["one", "two three"])


@pytest.mark.parametrize("text", ["", " ", "\u200b\ufeff", "\x00"])
def test_text_without_content_has_the_vector_of_the_special_tokens(client: Client, text: str) -> None:
    answer = ask(client, input=text, model=BUNDLED_MODEL)
    assert answer["usage"] == {"prompt_tokens": 2, "total_tokens": 2}
    among = ask(client, input=["one", text, "two"], model=BUNDLED_MODEL)
    assert among["usage"]["total_tokens"] == 3 + 2 + 3
    found = [answer["data"][0]["embedding"], among["data"][1]["embedding"]]
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    assert np.linalg.norm(found[0]) == pytest.approx(1, abs=1e-6)


def test_2048_texts_are_answered_in_order(client: Client) -> None:
    texts = [TEXTS[number % 4] for number in range(MAX_TEXTS)]
    few = vectors(client, TEXTS)
    answer = ask(client, input=texts)
    assert [row["index"] for row in answer["data"]] == list(range(MAX_TEXTS))
    found = np.asarray([row["embedding"] for row in answer["data"]], np.float32)
    np.testing.assert_allclose(found, np.tile(few, (MAX_TEXTS // 4, 1)), atol=1e-6)


# --- Limits ---


@pytest.mark.parametrize("item", ["one", [606], {"text": "one"}], ids=["texts", "ids", "objects"])
def test_more_texts_are_rejected(client: Client, item: object) -> None:
    error = rejection(client, 400, input=[item] * (MAX_TEXTS + 1))
    assert error == {
        "message": "input: 2049 texts are more than the 2048 allowed in one request.",
        "type": "invalid_request_error",
        "param": "input",
        "code": "invalid_input",
    }


def test_text_of_8192_tokens_is_cut_and_a_longer_one_is_rejected(client: Client) -> None:
    body = {"input": ["one", "two " * (MAX_TEXT_TOKENS - 2)]}
    response = client.post("/v1/embeddings", json=body)
    assert (response.status_code, response.headers["X-Embedding-Truncated"]) == (200, "1")
    error = rejection(client, 400, input=["one", "two " * (MAX_TEXT_TOKENS - 1)])
    assert error["message"].startswith("input[1]: 8193 tokens are more than the maximum context length of 8192 tokens.")
    assert error["param"] == "input"


def test_more_than_300_000_tokens_are_rejected(client: Client) -> None:
    texts = ["two " * 8000] * 37  # each has two special tokens
    rest = MAX_REQUEST_TOKENS - 37 * 8002
    assert len(ask(client, input=[*texts, "two " * (rest - 2)])["data"]) == 38
    error = rejection(client, 400, input=[*texts, "two " * (rest - 1)])
    assert error["message"].startswith("input: 300001 tokens are more than the 300000 allowed in one request.")
    assert error["param"] == "input"


def test_text_that_cannot_be_short_enough_is_rejected_by_its_characters(client: Client) -> None:
    """For this tokenizer a word of any length is one token, so tokens alone would not reject these texts."""
    longest = "one ".ljust(LONGEST, "x")
    assert len(ask(client, input=longest)["data"]) == 1
    error = rejection(client, 400, input=["one", longest + "x"])
    assert error["message"].startswith(f"input[1]: {LONGEST + 1} characters are more than the {LONGEST} allowed")
    assert error["param"] == "input"
    error = rejection(client, 400, input=[longest] * (MAX_REQUEST_TOKENS // MAX_TEXT_TOKENS + 1))
    assert error["message"].startswith(f"input: {37 * LONGEST} characters are more than the 4800000 allowed")


def test_token_ids_have_the_same_limits(client: Client) -> None:
    two = ids_of("one two")[1]
    response = client.post("/v1/embeddings", json={"input": [[two] * MAX_TEXT_TOKENS]})
    assert (response.status_code, response.headers["X-Embedding-Truncated"]) == (200, "1")
    assert response.json()["usage"]["total_tokens"] == MAX_TOKENS
    assert rejection(client, 400, input=[[two] * (MAX_TEXT_TOKENS + 1)])["message"].startswith("input[0]: 8193 tokens")
    assert rejection(client, 400, input=[[two] * 8000] * 38)["message"].startswith("input: 304000 tokens are more")


def test_piece_of_ids_with_more_tokens_of_the_model_is_cut_not_rejected(client: Client) -> None:
    """Each id is 8 tokens of the bundled model: a client that counts OpenAI's tokens cannot know."""
    body = {"input": [ids_of("!!!!!!!!") * 8191], "model": BUNDLED_MODEL}
    response = client.post("/v1/embeddings", json=body)
    assert (response.status_code, response.headers["X-Embedding-Truncated"]) == (200, "1")
    assert response.json()["usage"]["total_tokens"] == 256


# --- Options of the relatives ---


@pytest.mark.parametrize("field", ["output_dtype", "embedding_type"])
@pytest.mark.parametrize("dtype", ["float", "int8", "uint8", "binary", "ubinary"])
def test_number_types_are_those_of_the_native_route(client: Client, field: str, dtype: str) -> None:
    native = {"texts": TEXTS, "normalize": True, "dtype": "float32" if dtype == "float" else dtype}
    expected = client.post("/embed/batch", json=native).json()["embeddings"]
    data = ask(client, input=TEXTS, **{field: dtype})["data"]
    assert [row["embedding"] for row in data] == expected
    encoded = client.post("/embed/batch", json={**native, "encoding": "base64"}).json()["embeddings"]
    data = ask(client, input=TEXTS, **{field: dtype}, encoding_format="base64")["data"]
    assert [row["embedding"] for row in data] == encoded


def test_embedding_type_base64_is_that_of_floats(client: Client) -> None:
    assert ask(client, input=TEXTS, embedding_type="base64") == ask(client, input=TEXTS, encoding_format="base64")


def test_normalized_false_keeps_the_length(client: Client) -> None:
    np.testing.assert_allclose(vectors(client, ["one"], normalized=False), [mean_of(["one"], 12)], atol=1e-6)
    assert rejection(client, 400, input="one", normalized=False, output_dtype="int8")["param"] == "normalized"


@pytest.mark.parametrize("field", ["dimensions", "output_dimension"])
def test_dimensions_are_those_that_the_model_was_trained_for(client: Client, field: str) -> None:
    found = vectors(client, ["one"], model="acme/nested", **{field: 4})
    np.testing.assert_allclose(found, [unit(mean_of(["one"], 8)[:4])], atol=1e-6)
    untrained: Json = {field: 3}
    error = rejection(client, 400, input="one", model="acme/nested", **untrained)
    assert error["message"] == "dimensions: 3 is not supported by 'acme/nested', which was trained for 2, 4."
    assert error["param"] == "dimensions"


@pytest.mark.parametrize(
    ("options", "prompt"),
    [
        pytest.param({}, "", id="none"),
        pytest.param({"input_type": "query"}, PROMPTS["query"], id="voyage-query"),
        pytest.param({"input_type": "document"}, PROMPTS["document"], id="voyage-document"),
        pytest.param({"input_type": "passage"}, PROMPTS["document"], id="nim-passage"),
        pytest.param({"model": "acme/prompted-query"}, PROMPTS["query"], id="nim-suffix-query"),
        pytest.param({"model": "acme/prompted-passage"}, PROMPTS["document"], id="nim-suffix-passage"),
        pytest.param({"task": "retrieval.query"}, PROMPTS["query"], id="jina-query"),
        pytest.param({"task": "retrieval.passage"}, PROMPTS["document"], id="jina-passage"),
        pytest.param({"task": "text-matching"}, "", id="jina-without-a-prompt"),
        pytest.param({"model": "acme/prompted-query", "input_type": "passage"}, PROMPTS["document"], id="both"),
    ],
)
def test_type_of_the_texts_selects_the_prompt(client: Client, options: Json, prompt: str) -> None:
    options = {"model": "acme/prompted", **options}
    plain = vectors(client, [prompt + text for text in TEXTS], model="acme/prompted")
    np.testing.assert_array_equal(vectors(client, TEXTS, **options), plain)
    np.testing.assert_array_equal(vectors(client, [prompt + TEXTS[0]], **options), plain[:1])  # not a second time


def test_name_that_ends_like_a_suffix_is_found_first(client: Client) -> None:
    assert ask(client, input="one", model="acme/any-query")["model"] == "acme/any-query"


@pytest.mark.parametrize("option", [{"truncation": False}, {"truncate": False}, {"truncate": "NONE"}])
def test_text_longer_than_the_models_input_is_rejected_on_request(client: Client, option: Json) -> None:
    error = rejection(client, 400, input=["one", "two " * 50], **option)
    assert error["message"] == f"Text 1 has 52 tokens; the model accepts at most {MAX_TOKENS}."
    assert error["param"] == "input"


@pytest.mark.parametrize(
    ("option", "seen"),
    [({"truncate": "START"}, "two"), ({"truncate": "END"}, "one"), ({"truncate": True}, "one"), ({}, "one")],
    ids=str,
)
def test_long_text_is_cut_at_the_requested_end(client: Client, option: Json, seen: str) -> None:
    text = "one " * 20 + "two " * 20
    np.testing.assert_allclose(vectors(client, text, **option), vectors(client, f"{seen} " * 14), atol=1e-6)


def test_late_chunking_is_rejected_and_false_is_not(client: Client) -> None:
    assert ask(client, input="one", late_chunking=False) == ask(client, input="one")
    error = rejection(client, 400, input="one", late_chunking=True)
    assert error["message"].startswith("late_chunking: late chunking is not supported.")
    assert error["param"] == "late_chunking"


def test_cut_of_vllm_below_the_models_input_is_rejected(client: Client) -> None:
    for number in (-1, MAX_TOKENS, 8192):
        assert ask(client, input=TEXTS, truncate_prompt_tokens=number) == ask(client, input=TEXTS)
    error = rejection(client, 400, input="one", truncate_prompt_tokens=MAX_TOKENS - 1)
    assert error["param"] == "truncate_prompt_tokens"


# --- Errors ---


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param([], "input: the list is empty; send at least 1 text.", id="empty-list"),
        pytest.param(["a", "b", "c", 5], "input[3]: this is a token id, but input[0] is a text.", id="id-among-texts"),
        pytest.param([5, 6, "a"], "input[2]: this is a text, but input[0] is a token id.", id="text-among-ids"),
        pytest.param([[5], 6], "input[1]: this is a token id, but input[0] is a list of token ids.", id="id-in-lists"),
        pytest.param([{"text": "a"}, [1]], "input[1]: this is a list of token ids, but", id="list-among-objects"),
        pytest.param(["a", "b", "c", None], "input[3]: Expected ", id="null-among-texts"),
        pytest.param([[1], [1, "a"]], "input[1][1]: Expected a whole number, got a string.", id="text-in-ids"),
        pytest.param([1.5], "input[0]: Expected ", id="fraction"),
        pytest.param([{"image": "a"}], "input[0]: Object missing required field 'text'.", id="image"),
        pytest.param([[5], [100_257]], "input[1]: the token id 100257 is not in the vocabulary", id="special-token"),
        pytest.param([5, 10**30], "input[1]: the token id ", id="huge-id"),
        pytest.param(5, "input: Expected ", id="number"),
        pytest.param(None, "input: Expected ", id="null"),
    ],
)
def test_input_of_another_form_is_rejected_with_its_place(client: Client, given: object, message: str) -> None:
    error = rejection(client, 400, input=given)
    assert error["message"].startswith(message)
    assert (error["type"], error["param"]) == ("invalid_request_error", "input")


def test_missing_input_and_wrong_values_name_their_field(client: Client) -> None:
    assert rejection(client, 400)["param"] == "input"
    error = rejection(client, 400, input="one", encoding_format="hex")
    assert error["message"] == "encoding_format: 'hex' is not allowed. Choose one of base64, float."
    assert error["param"] == "encoding_format"


def test_unknown_model_is_a_404_with_the_closest_names(client: Client) -> None:
    error = rejection(client, 404, input="one", model="acme/plian")
    assert error.pop("message") == "The model 'acme/plian' does not exist. Did you mean 'acme/plain'?"
    assert error == {"type": "not_found_error", "param": "model", "code": "model_not_found"}


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/v1/embeddings", 405, "invalid_request_error"),
        ("POST", "/v1/chat/completions", 404, "not_found_error"),
        ("POST", "/openai/deployments/one/chat/completions", 404, "not_found_error"),
        ("DELETE", "/v1/models/acme/plain", 405, "invalid_request_error"),
    ],
)
def test_wrong_addresses_and_methods_answer_in_openais_form(
    client: Client, *, method: str, path: str, status: int, kind: str
) -> None:
    response = client.request(method, path, json={"input": "one"})
    error = error_of(response.json(), status, response.headers["content-type"])
    assert error["type"] == kind


def test_keys_are_checked_and_errors_name_them(folder: Path) -> None:
    key = "some-key-of-32-characters-or-more"
    with running_app(MODELS_DIR=str(folder), REQUIRED_MODELS="acme/plain", API_KEYS=f"somebody:{key}") as client:
        for headers in ({"Authorization": f"Bearer {key}"}, {"api-key": key}, {"X-API-Key": key}):
            assert client.post("/v1/embeddings", json={"input": "one"}, headers=headers).status_code == 200
        response = client.post("/v1/embeddings", json={"input": "one"}, headers={"Authorization": "Bearer sk-x"})
        error = error_of(response.json(), 401, response.headers["content-type"])
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")


def test_quota_is_a_429_in_openais_form(folder: Path) -> None:
    limits = {"ENABLE_RATE_LIMIT": "true", "RATE_LIMIT_REQUESTS": "1", "RATE_LIMIT_WINDOW": "86400"}
    with running_app(MODELS_DIR=str(folder), REQUIRED_MODELS="acme/plain", **limits) as client:
        assert "RateLimit" in client.post("/v1/embeddings", json={"input": "one"}).headers
        error = rejection(client, 429, input="one")
        assert (error["type"], error["code"]) == ("rate_limit_exceeded", "rate_limit_exceeded")


def test_model_that_cannot_be_loaded_is_a_server_error(tmp_path: Path) -> None:
    TinyModel("acme/plain").write(tmp_path)
    (TinyModel("acme/broken").write(tmp_path) / "model.onnx").write_bytes(b"not a model")
    with running_app(MODELS_DIR=str(tmp_path), REQUIRED_MODELS="acme/plain") as client:
        error = rejection(client, 503, input="one", model="acme/broken")
        assert (error["type"], error["param"], error["code"]) == ("server_error", "model", "model_unavailable")


# --- Azure and models ---


@pytest.mark.parametrize("deployment", ["acme/nested", "acme%2Fnested", "text-embedding-3-small"])
def test_deployment_names_the_model(client: Client, deployment: str) -> None:
    path = f"/openai/deployments/{deployment}/embeddings"
    expected = ask(client, input=TEXTS, model="acme/nested")
    assert ask(client, f"{path}?api-version=2024-10-21", input=TEXTS) == expected
    for ignored in ("acme/plain", "text-embedding-ada-002"):  # the latter is LangChain's default
        assert ask(client, path, input=TEXTS, model=ignored) == expected


def test_unknown_deployment_is_named(client: Client) -> None:
    response = client.post("/openai/deployments/unknown/embeddings", json={"input": "one", "model": "acme/plain"})
    assert response.status_code == 404
    assert "The model 'unknown' does not exist." in response.json()["error"]["message"]


def test_models_lists_what_may_be_used(client: Client) -> None:
    ask(client, input="one")
    answer = client.get("/v1/models").json()
    assert client.get("/openai/v1/models").json() == answer
    assert answer["object"] == "list"
    models = {model["id"]: model for model in answer["data"]}
    created = models["acme/plain"].pop("created")
    assert isinstance(created, int)
    assert created > 1_700_000_000
    assert len(models["acme/plain"].pop("fingerprint")) == 16
    assert models["acme/plain"].pop("size") > 0
    assert models["acme/plain"] == {
        "id": "acme/plain",
        "object": "model",
        "owned_by": "acme",
        "dimension": 12,
        "max_tokens": MAX_TOKENS,
    }
    assert "text-embedding-3-small" not in models
    absent = models["BAAI/bge-small-en-v1.5"]
    assert (absent["created"], absent["fingerprint"], absent["owned_by"]) == (0, None, "BAAI")


@pytest.mark.parametrize(
    "name", ["acme/nested", "acme%2Fnested", "ACME/Nested", "acme/nested:latest", "text-embedding-3-small"]
)
def test_model_is_found_by_each_of_its_names(client: Client, name: str) -> None:
    answer = client.get(f"/v1/models/{name}").json()
    assert answer["id"] == "acme/nested"
    assert client.get(f"/openai/v1/models/{name}").json() == answer


def test_unknown_model_in_the_address_is_a_404(client: Client) -> None:
    response = client.get("/v1/models/zzz")
    error = error_of(response.json(), 404, response.headers["content-type"])
    assert error["message"] == "The model 'zzz' does not exist. GET /v1/models lists all."
    assert (error["type"], error["param"], error["code"]) == ("not_found_error", "model", "model_not_found")


def test_native_list_of_models_is_as_before(client: Client) -> None:
    assert set(client.get("/models").json()) == {
        "required_models",
        "cached_models",
        "allowed_models",
        "available_models",
    }


@pytest.mark.parametrize(("path", "field"), [("/embed", "text"), ("/embed/batch", "texts")])
def test_native_route_that_gets_input_names_its_field_and_openais_route(client: Client, path: str, field: str) -> None:
    detail = client.post(path, json={"input": "one"}).json()["detail"]
    assert f"Did you mean {field!r}? Clients of OpenAI's API send 'input' to POST /v1/embeddings." in detail
