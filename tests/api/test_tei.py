"""TEI's routes: what its clients send, and the answers and errors that they read."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from litestar import Litestar
from litestar.testing import TestClient
from numpy.typing import NDArray

from api.tei_errors import members_of, status_of
from api.tei_types import MAX_TEXTS
from tests.support.apps import running_app
from tests.support.tiny import SPECIAL, TinyModel, mean_of, row
from web.problems import known_codes

Client = TestClient[Litestar]
Json = Any

QUERY, DOCUMENT = "five two ", "four "
LIMITS = {"MAX_BATCH_SIZE": "4", "MAX_TEXT_LENGTH": "1000"}
"""Limits of the native routes, all of which TEI's routes exceed."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings with four models: one has prompts and a trained size, one has no owner, one is broken."""
    models = tmp_path_factory.mktemp("models")
    TinyModel("tiny/plain").write(models)
    TinyModel("tiny/prompted", prompts={"query": QUERY, "document": DOCUMENT}, matryoshka=(2,)).write(models)
    TinyModel("lone").write(models)
    (TinyModel("tiny/broken").write(models) / "model.onnx").write_bytes(b"not a model")
    return {"MODELS_DIR": str(models), "REQUIRED_MODELS": "tiny/plain,tiny/prompted,lone", "MAX_CACHED_MODELS": "4"}


@pytest.fixture(scope="module")
def client(settings: dict[str, str]) -> Iterator[Client]:
    with running_app(**settings, **LIMITS) as client:
        yield client


def ask(client: Client, path: str, body: Json) -> Json:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    return response.json()


def unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return vector / np.linalg.norm(vector)


def same(found: Json, *expected: NDArray[np.float32] | np.floating[Any]) -> bool:
    return np.allclose(found, expected, atol=1e-6)


def refusal(client: Client, path: str, body: Json) -> tuple[int, str, Json]:
    """Return status, `error_type` and the whole document of an error in TEI's shape."""
    response = client.post(path, json=body)
    document = response.json()
    assert response.headers["content-type"] == "application/json"
    assert document["error"].startswith(document["detail"])
    assert document["status"] == document["status_code"] == response.status_code
    return response.status_code, document["error_type"], document


# --- Paths --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/embed", "/", "/tei", "/tei/embed"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_texts_are_embedded_on_every_path(client: Client, path: str, slash: str) -> None:
    assert same(ask(client, path + slash, {"inputs": ["one two", "three"]}), *map(unit, (ONE_TWO, mean_of(["three"]))))
    assert same(ask(client, path + slash, {"inputs": "one two"}), unit(ONE_TWO))


ONE_TWO = mean_of(["one", "two"])
PROMPTED = unit(mean_of([*QUERY.split(), "one"]))


@pytest.mark.parametrize("name", ["tiny/prompted", "tiny%2Fprompted", "Tiny/PROMPTED"])
@pytest.mark.parametrize("action", ["", "/", "/embed", "/embed/"])
def test_the_model_is_named_in_the_url(client: Client, name: str, action: str) -> None:
    assert same(ask(client, f"/tei/{name}{action}", {"inputs": "one", "prompt_name": "query"}), PROMPTED)
    body = {"inputs": "one", "prompt_name": "query", "model": "tiny/plain"}
    assert same(ask(client, f"/tei/{name}{action}", body), PROMPTED), "the URL wins over the body"


def test_the_model_is_named_in_the_body(client: Client) -> None:
    body = {"inputs": "one", "prompt_name": "query", "model": "tiny/prompted"}
    assert same(ask(client, "/embed", body), PROMPTED)
    assert same(ask(client, "/tei", {**body, "model": ""}), unit(row("one")))


def test_name_without_an_owner_is_a_model_in_the_url(client: Client) -> None:
    assert same(ask(client, "/tei/lone", {"inputs": "one"}), unit(row("one")))
    assert client.get("/tei/lone/info").json()["model_id"] == "lone"


def test_every_action_exists_below_the_model(client: Client) -> None:
    sentences = {"inputs": {"source_sentence": "one", "sentences": ["one"]}}
    for base in ("/tei", "/tei/lone", "/tei/tiny/prompted"):
        assert same(ask(client, f"{base}/similarity", sentences), np.float32(1))
        assert same(ask(client, base, sentences), np.float32(1))
        assert len(ask(client, f"{base}/tokenize", {"inputs": ["one", "two"]})) == 2
        assert client.get(f"{base}/info/").status_code == 200


def test_health_is_ours(client: Client) -> None:
    assert client.get("/tei/health").json()["status"] == client.get("/health").json()["status"] == "healthy"


# --- Options ------------------------------------------------------------------------------------------------------


def test_vectors_have_length_1_unless_the_request_forbids_it(client: Client) -> None:
    assert same(ask(client, "/embed", {"inputs": "one", "normalize": None}), unit(row("one")))
    assert same(ask(client, "/embed", {"inputs": "one", "normalize": False}), mean_of(["one"]))
    native = client.post("/embed", json={"text": "one"}).json()["embedding"]
    assert same(ask(client, "/embed", {"inputs": "one", "normalize": False}), np.asarray(native, np.float32))


def test_options_may_be_in_parameters_and_unknown_ones_are_ignored(client: Client) -> None:
    body = {"inputs": "one", "parameters": {"normalize": False, "wait_for_model": True}, "options": {"use_cache": 0}}
    assert same(ask(client, "/embed", body), mean_of(["one"]))
    assert same(ask(client, "/embed", {**body, "normalize": True}), unit(row("one")))
    assert same(ask(client, "/embed", {"inputs": "one", "parameters": None, "encoding_format": 1}), unit(row("one")))


def test_long_texts_are_cut_and_the_header_counts_them(client: Client) -> None:
    long = " ".join(["one"] * 13 + ["two"] * 20)
    response = client.post("/tei", json={"inputs": [long, "one"]})
    assert same(response.json(), unit(mean_of(["one"] * 13 + ["two"])), unit(row("one")))
    assert response.headers["x-embedding-truncated"] == "1"
    assert response.headers["x-embedding-tokens"] == str(16 + 3)
    left = ask(client, "/embed", {"inputs": long, "truncate": True, "truncation_direction": "Left"})
    assert same(left, unit(row("two")))
    assert ask(client, "/embed", {"inputs": long, "truncation_direction": "left"}) == left
    assert ask(client, "/embed", {"inputs": long, "truncation_direction": "Right"}) == [response.json()[0]]


def test_text_of_20_000_characters_is_cut(client: Client) -> None:
    assert same(ask(client, "/", {"inputs": "one " * 5_000}), unit(row("one")))


def test_too_long_text_is_rejected_if_the_request_forbids_cutting(client: Client) -> None:
    body = {"inputs": ["one", "one " * 20], "truncate": False, "truncation_direction": "Right"}
    status, error_type, document = refusal(client, "/embed", body)
    assert (status, error_type) == (422, "Validation")
    assert (document["index"], document["tokens"], document["limit"]) == (1, 22, 16)
    assert "truncate" not in document["error"], "the hint is about a native option"


@pytest.mark.parametrize("name", ["query", "Query", "search_query"])
def test_prompt_name_selects_the_prompt_which_is_not_put_twice(client: Client, name: str) -> None:
    body = {"inputs": ["one", f"{QUERY}one"], "prompt_name": name, "model": "tiny/prompted"}
    assert same(ask(client, "/embed", body), PROMPTED, PROMPTED)


@pytest.mark.parametrize("name", ["document", "passage", "search_document"])
def test_passages_get_the_prompt_for_documents(client: Client, name: str) -> None:
    body = {"inputs": "one", "prompt_name": name, "model": "tiny/prompted"}
    assert same(ask(client, "/embed", body), unit(mean_of(["four", "one"])))
    assert same(ask(client, "/embed", {**body, "model": "tiny/plain"}), unit(row("one"))), "it has no prompts"


def test_unknown_prompt_is_rejected_with_those_that_exist(client: Client) -> None:
    status, error_type, document = refusal(client, "/tei", {"inputs": "one", "prompt_name": "haiku"})
    assert (status, error_type, document["field"]) == (422, "Validation", "prompt_name")
    assert {"query", "document", "passage"} <= set(document["choices"])
    assert "'haiku'" in document["error"]
    assert "query" in document["error"]


def test_dimensions_obey_the_rule_of_trained_sizes(client: Client) -> None:
    body = {"inputs": "one", "dimensions": 2}
    assert same(ask(client, "/tei/tiny/prompted", body), unit(row("one")[:2]))
    status, error_type, document = refusal(client, "/embed", body)
    assert (status, error_type, document["field"]) == (422, "Validation", "dimensions")
    assert "allow_untrained_dimensions" not in document["error"], "TEI has no such option"


def test_text_without_content_has_the_vector_of_the_special_tokens() -> None:
    with running_app() as client:
        [only] = ask(client, "/embed", {"inputs": ""})
        assert np.linalg.norm(only) == pytest.approx(1, abs=1e-5)
        _, *blank = ask(client, "/embed", {"inputs": ["a dog", "", "  \n", "\u200b"]})
        assert blank == [pytest.approx(only, abs=1e-6)] * 3


def test_vectors_of_the_bundled_model_are_those_of_the_native_route() -> None:
    texts = ["A dog.", "Ein Hund, der schläft.", "word " * 700, "犬"]
    with running_app() as client:
        native = client.post("/embed/batch", json={"texts": texts, "normalize": True})
        found = client.post("/", json={"inputs": texts})
        assert found.json() == native.json()["embeddings"]
        assert found.headers["x-model-fingerprint"] == native.headers["x-model-fingerprint"]
        assert found.headers["x-embedding-truncated"] == "1"


# --- Similarity and tokens ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/similarity", "/", "/tei/similarity"])
def test_similarities_are_cosines_in_the_order_of_the_sentences(client: Client, path: str) -> None:
    sentences = ["two", "one", "three one", "one"]
    body = {"inputs": {"source_sentence": "one two", "sentences": sentences}, "parameters": {}}
    vectors = [unit(mean_of(text.split())) for text in sentences]
    response = client.post(path, json=body)
    assert same(response.json(), *[np.float32(vector @ unit(ONE_TWO)) for vector in vectors])
    assert response.headers["x-embedding-tokens"] == str(sum(2 + len(text.split()) for text in ["one two", *sentences]))


def test_similarities_are_cosines_even_if_the_request_forbids_to_normalise(client: Client) -> None:
    body = {"inputs": {"source_sentence": "one two", "sentences": ["one"]}, "normalize": False}
    assert same(ask(client, "/similarity", body), np.float32(unit(row("one")) @ unit(ONE_TWO)))


def test_text_in_place_of_sentences_gets_a_hint(client: Client) -> None:
    status, _, document = refusal(client, "/similarity", {"inputs": "one"})
    assert status == 422
    assert document["error"].endswith(" Send an object with 'source_sentence' and 'sentences'.")


def test_similarity_is_one_request_for_all_sentences(client: Client) -> None:
    before = client.get("/models/tiny/plain").json()["usage"]
    ask(client, "/similarity", {"inputs": {"source_sentence": "one", "sentences": ["two"] * 40}})
    after = client.get("/models/tiny/plain").json()["usage"]
    assert {name: after[name] - before[name] for name in after} == {"requests": 1, "texts": 41, "tokens": 41 * 3}


def test_many_sentences_are_compared_with_the_same_source(client: Client) -> None:
    """They are embedded in several slices, of which only the first contains the source."""
    words = ["one", "two", "three"]
    found = ask(client, "/similarity", {"inputs": {"source_sentence": "one", "sentences": words * 300}})
    assert same(found, *[np.float32(unit(row(word)) @ unit(row("one"))) for word in words] * 300)


def test_similarity_takes_prompts(client: Client) -> None:
    inputs = {"source_sentence": "one", "sentences": [f"{QUERY}one", "five"]}
    body = {"inputs": inputs, "parameters": {"prompt_name": "query"}}
    five = unit(mean_of([*QUERY.split(), "five"]))
    assert same(ask(client, "/tei/tiny/prompted/similarity", body), np.float32(1), np.float32(five @ PROMPTED))


@pytest.mark.parametrize("path", ["/tokenize", "/tei/tokenize"])
def test_tokens_are_as_tei_lists_them(client: Client, path: str) -> None:
    begin = {"id": SPECIAL.index("[CLS]"), "text": "[CLS]", "special": True, "start": None, "stop": None}
    end = {**begin, "id": SPECIAL.index("[SEP]"), "text": "[SEP]"}
    unknown = {"id": SPECIAL.index("[UNK]"), "text": "Öl", "special": False, "start": 0, "stop": 2}
    one = {"id": 5, "text": "one", "special": False, "start": 3, "stop": 6}
    response = client.post(path, json={"inputs": ["Öl one", ""]})
    assert response.json() == [[begin, unknown, one, end], [begin, end]]
    assert re.fullmatch("[0-9a-f]{16}", response.headers["x-model-fingerprint"])
    assert ask(client, path, {"inputs": "Öl one", "add_special_tokens": False}) == [[unknown, one]]
    assert ask(client, path, {"inputs": "Öl one", "add_special_tokens": None}) == [[begin, unknown, one, end]]


def test_tokens_of_a_prompt_are_at_the_beginning_of_the_text(client: Client) -> None:
    body = {"inputs": ["one"], "prompt_name": "document", "add_special_tokens": False}
    [tokens] = ask(client, "/tei/tiny/prompted/tokenize", body)
    assert [(token["text"], token["start"], token["stop"]) for token in tokens] == [("four", 0, 4), ("one", 5, 8)]


def test_tokens_are_not_cut(client: Client) -> None:
    assert len(ask(client, "/tokenize", {"inputs": "one " * 30})[0]) == 32


def test_request_for_tokens_has_as_many_characters_as_the_largest_native_one(client: Client) -> None:
    assert len(ask(client, "/tokenize", {"inputs": ["a" * 2, "a" * 3_998]})) == 2
    status, error_type, document = refusal(client, "/tokenize", {"inputs": ["a" * 2, "a" * 3_999]})
    assert (status, error_type, document["limit"]) == (422, "Validation", 4_000)


def test_info_has_what_clients_read(client: Client) -> None:
    ask(client, "/tei", {"inputs": "one"})  # so the model is loaded
    response = client.get("/info")
    found = response.json()
    assert found["model_id"] == "tiny/plain"
    assert found["max_client_batch_size"] == 32
    assert found["max_input_length"] == 16
    assert found["model_type"] == {"embedding": {"pooling": "mean"}}
    assert found["auto_truncate"] is True
    assert found["version"] == client.get("/schema/openapi.json").json()["info"]["version"]
    assert response.headers["x-model-fingerprint"] == client.get("/models/tiny/plain").json()["stamp"]["fingerprint"]
    other = client.get("/tei/BAAI/bge-small-en-v1.5/info")
    assert other.json()["model_type"] == {"embedding": {"pooling": "cls"}}
    assert "x-model-fingerprint" not in other.headers, "it is not loaded"


# --- Errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/embed", "/", "/tei/embed", "/tokenize"])
@pytest.mark.parametrize(
    "ids", [pytest.param([101, 7592, 102], id="ids"), pytest.param([[101, 102], [101, 102]], id="lists of ids")]
)
def test_token_ids_are_rejected_with_a_sentence(client: Client, path: str, ids: Json) -> None:
    status, error_type, document = refusal(client, path, {"inputs": ids})
    assert (status, error_type) == (422, "Validation")
    assert (document["field"], document["index"]) == ("inputs", 0)
    assert "Send text as strings: token ids are not accepted." in document["error"]


def test_too_many_texts_are_rejected_in_the_words_of_tei(client: Client) -> None:
    assert len(ask(client, "/embed", {"inputs": ["one"] * MAX_TEXTS})) == 2048
    for path in ("/embed", "/tei", "/tokenize"):
        status, error_type, document = refusal(client, path, {"inputs": ["one"] * (MAX_TEXTS + 1)})
        assert (status, error_type) == (422, "Validation")
        assert document["error"] == "batch size 2049 > maximum allowed batch size 2048"


@pytest.mark.parametrize(
    ("path", "inputs"),
    [
        pytest.param("/embed", [], id="embed"),
        pytest.param("/", {"source_sentence": "one", "sentences": []}, id="similarity"),
        pytest.param("/tokenize", [], id="tokenize"),
    ],
)
def test_empty_list_is_rejected_as_by_tei(client: Client, path: str, inputs: Json) -> None:
    status, error_type, document = refusal(client, path, {"inputs": inputs})
    assert (status, error_type, document["code"]) == (400, "Empty", "empty-input")
    assert "cannot be empty" in document["error"]


def test_unknown_model_is_a_404_with_the_closest_names(client: Client) -> None:
    for path, body in (("/tei/tiny/plan", {}), ("/embed", {"model": "tiny/plan"}), ("/tei/tiny/plan/tokenize", {})):
        status, error_type, document = refusal(client, path, {"inputs": "one", **body})
        assert (status, error_type) == (404, "Validation")
        assert "tiny/plain" in document["closest"]
        assert "GET /models" not in document["error"]
    unlike = refusal(client, "/tei/zzzz", {"inputs": "one"})[2]
    assert unlike["error"] == "No model named 'zzzz' is offered. GET /v1/models lists all."


def test_failures_of_a_model_are_a_424(client: Client) -> None:
    for body in ({"inputs": "poison"}, {"inputs": ["one", "nan"]}, {"inputs": "one", "model": "tiny/broken"}):
        assert refusal(client, "/embed", body)[:2] == (424, "Backend")


def test_deadline_is_a_504(client: Client) -> None:
    headers = {"X-Request-Timeout": "1e-9", "Cache-Control": "no-cache"}
    response = client.post("/tei", json={"inputs": "one"}, headers=headers)
    assert (response.status_code, response.json()["error_type"]) == (504, "Backend")


def test_no_error_is_a_503(client: Client) -> None:
    """A popular client repeats a 503 at once, for ever."""
    assert {status_of(code, 503) for code in known_codes()} == {424, 429, 422, 404}
    assert members_of({"code": "overloaded", "status": 429, "detail": "x"})["error_type"] == "Overloaded"
    assert refusal(client, "/tei", {"inputs": 1})[0] == 422


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/tei/a/b/c/d", 404),
        ("DELETE", "/tei", 405),
        ("PUT", "/", 405),
        ("GET", "/similarity", 405),
        ("POST", "/info", 405),
    ],
)
def test_wrong_addresses_and_methods_are_answered_as_by_tei(
    client: Client, method: str, path: str, status: int
) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert response.json()["error_type"] == "Validation"
    assert response.json()["error"] == response.json()["detail"]


def test_options_state_all_methods_of_the_root(client: Client) -> None:
    """Its handlers belong to two dialects."""
    assert client.options("/").headers["allow"] == "GET, OPTIONS, POST"


def test_headers_and_keys_are_checked_in_the_dialect(settings: dict[str, str]) -> None:
    key = "some-key-of-32-characters-or-more"
    limits = {"ENABLE_RATE_LIMIT": "true", "RATE_LIMIT_REQUESTS": "2", "RATE_LIMIT_WINDOW": "86400"}
    with running_app(**settings, **limits, API_KEYS=f"somebody:{key}", CLOSED_ROUTES="models") as client:
        for path in ("/", "/tei/tiny/plain/embed", "/similarity"):
            status, error_type, _ = refusal(client, path, {"inputs": "one"})
            assert (status, error_type) == (401, "Validation")
        assert client.get("/info").status_code == 401
        client.headers["Authorization"] = f"Bearer Bearer {key}"
        assert client.get("/info").status_code == 200
        assert client.post("/", content=b"x", headers={"Content-Type": "text/csv"}).json()["error_type"] == "Validation"
        response = client.post("/tei", json={"inputs": "one"})
        assert response.status_code == 200
        assert "ratelimit" in response.headers
        response = client.post("/tei", json={"inputs": "one"})
        assert (response.status_code, response.json()["error_type"]) == (429, "Overloaded")
        assert int(response.headers["retry-after"]) > 0
        shared = client.post("/embed", json={"text": "one"})
        assert (shared.status_code, shared.json()["error_type"]) == (429, "Overloaded")
        assert shared.headers["content-type"] == "application/problem+json"


def test_tokens_are_charged_once_they_were_cut(settings: dict[str, str]) -> None:
    limits = {"ENABLE_RATE_LIMIT": "true", "RATE_LIMIT_REQUESTS": "9", "RATE_LIMIT_TOKENS": "100"}
    with running_app(**settings, **limits) as client:
        response = client.post("/similarity", json={"inputs": {"source_sentence": "one " * 50, "sentences": ["one"]}})
        assert response.status_code == 200
        assert '"tokens";r=81;' in response.headers["ratelimit"]


# --- The paths that TEI shares with the native API ----------------------------------------------------------------

NATIVE_ERRORS = [
    pytest.param(b'{"input": "one"}', "Object contains unknown field 'input'", id="a key of another API"),
    pytest.param(b"{}", "Object missing required field 'text'", id="no key"),
    pytest.param(b'{"text": 1}', "text: Expected a string", id="a wrong type"),
    pytest.param(b'{"text": "inputs"}x', "The body is not JSON", id="no JSON"),
    pytest.param(b'{"text": "\\ud800"}', "text: it contains half of a surrogate pair", id="no text"),
    pytest.param(b'[{"inputs": "one"}]', "Expected an object", id="the key deeper"),
    pytest.param(b'{"text": {"inputs": "one"}}', "text: Expected a string", id="the key in a field"),
]


@pytest.mark.parametrize(("content", "detail"), NATIVE_ERRORS)
def test_native_errors_stay_native(client: Client, content: bytes, detail: str) -> None:
    response = client.post("/embed", content=content)
    assert (response.status_code, response.headers["content-type"]) == (400, "application/problem+json")
    document = response.json()
    assert document["detail"].startswith(detail)
    assert not {"error", "error_type"} & set(document)


def test_native_failures_after_decoding_stay_native(client: Client) -> None:
    for body, status in (
        ({"text": "poison"}, 500),
        ({"text": "one", "model_name": "tiny/broken"}, 503),
        ({"text": ""}, 400),
    ):
        response = client.post("/embed", json=body)
        assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
        assert "error_type" not in response.json()
    assert "error_type" not in client.post("/tokenize", json={"texts": []}).json()


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        pytest.param(b'{"inputs": "\\ud800"}', "inputs: it contains half of a surrogate pair", id="no text"),
        pytest.param(b'{"inputs": "one", }', "The body is not JSON", id="no JSON"),
        pytest.param(b'{"inputs": "one", "truncate": 1}', "truncate: Expected true, false or null", id="a wrong type"),
        pytest.param(b'{"inputs": null}', "inputs: Expected a string or an array", id="null"),
    ],
)
def test_body_with_inputs_has_the_errors_of_tei(client: Client, content: bytes, detail: str) -> None:
    response = client.post("/embed", content=content)
    assert (response.status_code, response.headers["content-type"]) == (422, "application/json")
    assert response.json()["error"].startswith(detail)


@pytest.mark.parametrize("path", ["/embed", "/tokenize"])
def test_what_is_rejected_before_the_body_is_read_serves_both_worlds(client: Client, path: str) -> None:
    wrong_type = client.post(path, content=b"x", headers={"Content-Type": "text/plain"})
    too_large = client.post(path, content=b" " * 10_000_001)
    wrong_method = client.get(path)
    for response, status in (wrong_type, 415), (too_large, 413), (wrong_method, 405):
        document = response.json()
        assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
        assert (document["error"], document["error_type"]) == (document["detail"], "Validation")


def test_metrics_count_a_request_as_tei_only_if_it_is_one(settings: dict[str, str]) -> None:
    with running_app(**settings) as client:
        client.post("/embed", json={"text": "one"})
        client.post("/embed", json={"txt": "one"})
        client.get("/embed")
        client.get("/")
        assert "tei" not in client.get("/metrics").json()["dialects"]
        client.post("/embed", json={"inputs": "one"})
        client.post("/tokenize", json={"inputs": []})
        client.post("/", json={"inputs": "one"})
        client.get("/tei/nothing/at/all/here")
        found = client.get("/metrics").json()["dialects"]["tei"]
        assert found == {"requests": 4, "errors": 2}


def test_openapi_document_has_tei_under_its_tag(client: Client) -> None:
    paths = client.get("/schema/openapi.json").json()["paths"]
    tagged = {
        path for path, operations in paths.items() for found in operations.values() if found.get("tags") == ["TEI"]
    }
    assert tagged == {"/", "/tei", "/tei/embed", "/tei/tokenize", "/similarity", "/info"}
    content = paths["/embed"]["post"]["responses"]["422"]["content"]["application/json"]
    assert all(example["value"]["error_type"] for example in content["examples"].values())
