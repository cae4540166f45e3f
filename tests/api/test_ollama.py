"""Ollama's API over HTTP, in this process, with tiny models."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from litestar import Litestar
from litestar.testing import TestClient
from numpy.typing import NDArray
from structlog.testing import capture_logs

from tests.support.apps import running_app
from tests.support.tiny import MAX_TOKENS, WORDS, TinyModel, mean_of

Json = dict[str, Any]
Client = TestClient[Litestar]
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
KEY = "some-key-of-32-characters-or-more"
LONG = " ".join(WORDS[:4] * MAX_TOKENS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    TinyModel("acme/plain", dim=12).write(folder)
    TinyModel("acme/nested", dim=8, matryoshka=(2, 4)).write(folder)
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Client]:
    with running_app(
        MODELS_DIR=str(folder), REQUIRED_MODELS="acme/plain", MODEL_ALIASES="ours=acme/nested", MODEL_CACHE_TTL="600"
    ) as client:
        ask(client, "/api/embed")
        yield client


def unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return vector / np.linalg.norm(vector)


def ask(client: Client, path: str, **body: object) -> Json:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return dict(response.json())


def rejection(client: Client, status: int, path: str, **body: object) -> Json:
    """Return the answer, which must have the members of Ollama's errors and of a problem document."""
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    problem = dict(response.json())
    assert isinstance(problem["error"], str)
    assert problem["status_code"] == status
    assert "status" not in problem  # the client for Go has a text of this name
    assert problem["request_id"] == response.headers["x-request-id"]
    return problem


def native(client: Client, texts: list[str], **options: object) -> list[list[float]]:
    response = client.post("/embed/batch", json={"texts": texts, **options})
    return list(response.json()["embeddings"])


# --- POST /api/embed ---


def test_texts_get_the_vectors_of_the_native_route_at_length_1(client: Client) -> None:
    texts = ["one", "two three", "warm four zero"]
    response = client.post("/api/embed", json={"model": "acme/plain", "input": texts})
    answer = response.json()
    assert answer["embeddings"] == native(client, texts, normalize=True)
    assert np.linalg.norm(answer["embeddings"], axis=1) == pytest.approx(1.0)
    assert list(answer) == ["model", "embeddings", "total_duration", "load_duration", "prompt_eval_count"]
    assert answer["model"] == "acme/plain"
    assert answer["prompt_eval_count"] == int(response.headers["x-embedding-tokens"]) == 3 + 4 + 5
    assert answer["total_duration"] > 0
    assert answer["load_duration"] == 0
    fingerprint = client.get("/models/acme/plain").json()["stamp"]["fingerprint"]
    assert response.headers["x-model-fingerprint"] == fingerprint


def test_one_text_gets_a_list_with_one_vector_and_the_name_that_was_sent(client: Client) -> None:
    answer = ask(client, "/api/embed/", model="ACME/plain:latest", input="one")
    assert (answer["model"], len(answer["embeddings"]), len(answer["embeddings"][0])) == ("ACME/plain:latest", 1, 12)


def test_model_may_be_absent_or_null(client: Client) -> None:
    assert ask(client, "/api/embed", input="one")["model"] == "acme/plain"
    assert ask(client, "/api/embed", model=None, input=["one"])["model"] == "acme/plain"


@pytest.mark.parametrize("body", [{}, {"input": None}, {"input": ""}, {"input": []}], ids=str)
def test_no_input_loads_the_model_and_answers_with_no_vectors(folder: Path, body: Json) -> None:
    with running_app(MODELS_DIR=str(folder), REQUIRED_MODELS="acme/plain") as client:
        response = client.post("/api/embed", json={"model": "acme/nested", **body})
        assert response.status_code == 200
        answer = response.json()
        assert (answer["embeddings"], answer["prompt_eval_count"]) == ([], 0)
        assert 0 < answer["load_duration"] < answer["total_duration"]
        assert "acme/nested" in client.get("/models").json()["cached_models"]
        assert response.headers["x-model-fingerprint"]
        assert ask(client, "/api/embed", model="acme/nested", **body)["load_duration"] == 0


def test_blank_texts_in_a_list_get_the_vector_of_the_special_tokens() -> None:
    """The bundled model: the tiny ones have a vector of zeros for these tokens."""
    with running_app() as client:
        answer = ask(client, "/api/embed", model="all-minilm", input=["", "one", "\u200b", " "])
        prompt = ask(client, "/api/embeddings", prompt=" ")["embedding"]
    empty, one, *others = answer["embeddings"]
    assert others == [empty, empty]
    assert prompt == pytest.approx(empty, abs=1e-6)
    assert one != empty
    assert answer["prompt_eval_count"] == 2 + 3 + 2 + 2


@pytest.mark.parametrize(
    ("value", "error"),
    [
        pytest.param(["one", 2], "invalid input type: input[1]: Expected a string, got a whole number.", id="number"),
        pytest.param([["one"]], "invalid input type: input[0]: Expected a string, got an array.", id="list"),
        pytest.param(
            {"a": 1}, "invalid input type: input: Expected a string, an array or null, got an object.", id="{}"
        ),
        pytest.param(3, "invalid input type: input: Expected a string, an array or null, got a whole number.", id="3"),
    ],
)
def test_items_of_another_type_are_rejected(client: Client, value: object, error: str) -> None:
    problem = rejection(client, 400, "/api/embed", input=value)
    assert (problem["code"], problem["error"]) == ("invalid-input", error)


@pytest.mark.parametrize("truncate", [{}, {"truncate": None}, {"truncate": True}], ids=str)
def test_long_text_is_cut(client: Client, truncate: Json) -> None:
    response = client.post("/api/embed", json={"input": [LONG, "one"], **truncate})
    assert response.status_code == 200
    assert response.headers["x-embedding-truncated"] == "1"
    assert response.json()["prompt_eval_count"] == MAX_TOKENS + 3
    cut = native(client, [" ".join(LONG.split()[: MAX_TOKENS - 2])], normalize=True)
    assert response.json()["embeddings"][:1] == cut


def test_long_text_is_rejected_if_it_must_not_be_cut(client: Client) -> None:
    problem = rejection(client, 400, "/api/embed", input=["one", LONG], truncate=False)
    assert problem["error"].startswith("the input length exceeds the context length: text 1 has ")
    assert (problem["index"], problem["limit"]) == (1, MAX_TOKENS)
    huge = rejection(client, 400, "/api/embed", input="one " * 100_000, truncate=False)  # not even tokenised
    assert huge["error"].startswith("the input length exceeds the context length: text 0 has 400000 characters")
    assert len(ask(client, "/api/embed", input=["one"], truncate=False)["embeddings"]) == 1


def test_text_may_be_longer_than_max_text_length(client: Client) -> None:
    assert len(ask(client, "/api/embed", input="one " * 20_000)["embeddings"]) == 1


def test_there_may_be_more_texts_than_max_batch_size_and_they_keep_their_order(client: Client) -> None:
    texts = [f"{WORDS[number % 7]} {WORDS[number % 5]}" for number in range(3000)]
    vectors = ask(client, "/api/embed", input=texts)["embeddings"]
    expected = [unit(mean_of(text.split(), 12)) for text in texts]
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_dimensions_are_sizes_that_the_model_was_trained_for(client: Client) -> None:
    whole = mean_of(["one"], 8)
    for wanted, kept in ((2, 2), (4, 4), (8, 8), (1024, 8), (0, 8), (-1, 8), (None, 8)):
        [vector] = ask(client, "/api/embed", model="ours", input="one", dimensions=wanted)["embeddings"]
        assert vector == pytest.approx(unit(whole[:kept]), abs=1e-6)
    problem = rejection(client, 400, "/api/embed", model="ours", input="one", dimensions=3)
    assert problem["error"] == "dimensions: 3 is not supported by 'acme/nested', which was trained for 2, 4."
    problem = rejection(client, 400, "/api/embed", model="acme/plain", input="one", dimensions=3)
    assert problem["error"].endswith("which was not trained for shorter vectors.")


def test_other_fields_are_ignored_whatever_they_hold(client: Client) -> None:
    further: Json = {"options": {"mirostat": None, "num_ctx": "x"}, "keep_alive": 0.0, "raw": [1], "user": None}
    assert ask(client, "/api/embed", input="one", **further)["embeddings"] == native(client, ["one"], normalize=True)


def test_a_body_without_content_type_is_json(client: Client) -> None:
    response = client.post("/api/embed", content=b'{"input": "one"}')
    assert response.status_code == 200


def test_unknown_model_is_a_404_in_ollamas_words_with_the_closest_names(client: Client) -> None:
    for path in ("/api/embed", "/api/embeddings", "/api/show", "/api/pull"):
        problem = rejection(client, 404, path, model="all-minilm:l12-v2", input="one", prompt="one")
        assert problem["error"].startswith("model 'all-minilm:l12-v2' not found. Did you mean 'all-minilm'")
        assert problem["code"] == "unknown-model"
    assert rejection(client, 404, "/api/embed", model="zzzz")["error"] == (
        "model 'zzzz' not found. GET /api/tags lists all."
    )


def test_errors_before_and_outside_of_the_routes_are_ollamas(client: Client) -> None:
    for method, path, status in (("GET", "/api/embed", 405), ("POST", "/api/chat", 404), ("POST", "/api/", 404)):
        response = client.request(method, path)
        assert (response.status_code, response.json()["error"]) == (status, response.json()["detail"])
        assert response.headers["content-type"] == "application/json"
    response = client.post("/api/embed", content=b"one", headers={"Content-Type": "text/plain"})
    assert (response.status_code, response.json()["code"]) == (415, "not-json")
    assert response.json()["error"].startswith("Send the body as JSON")


def test_curl_needs_no_content_type(client: Client) -> None:
    """The examples of Ollama's own documentation have none, so curl says that the body is a form."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    content = b'{"input": "one"}'
    assert client.post("/api/embed", content=content, headers=headers).status_code == 200
    assert client.post("/embed", content=b'{"text": "one"}', headers=headers).status_code == 415


def test_millions_of_texts_that_cannot_end_in_time_are_rejected_before_they_are_tokenised(client: Client) -> None:
    body = b'{"input": [' + b",".join([b'"a"'] * 2_000_000) + b"]}"
    before = client.get("/metrics").json()["backlog"]
    response = client.post("/api/embed", content=body, headers={"X-Request-Timeout": "2"})
    assert response.status_code == 504
    assert response.json()["error"].startswith("input: 2000000 texts would take ")
    assert response.json()["error"].endswith("Send fewer texts at once.")
    assert client.get("/metrics").json()["backlog"].keys() == before.keys()


# --- POST /api/embeddings ---


def test_prompt_gets_the_vector_as_the_model_returns_it(client: Client) -> None:
    answer = ask(client, "/api/embeddings", model="acme/plain", prompt="two three", options={}, keep_alive=None)
    assert list(answer) == ["embedding"]
    assert [answer["embedding"]] == native(client, ["two three"], normalize=False)
    assert np.linalg.norm(answer["embedding"]) != pytest.approx(1.0)


@pytest.mark.parametrize("body", [{}, {"prompt": ""}, {"prompt": None}], ids=str)
def test_empty_prompt_gets_an_empty_vector(client: Client, body: Json) -> None:
    assert ask(client, "/api/embeddings", **body) == {"embedding": []}


def test_long_prompt_is_cut(client: Client) -> None:
    assert len(ask(client, "/api/embeddings", prompt=LONG)["embedding"]) == 12


# --- Models ---


def test_tags_have_every_name_of_every_model_with_a_tag(client: Client) -> None:
    assert client.head("/api/tags").status_code == 200
    ask(client, "/api/embed", model="acme/nested")
    models = client.get("/api/tags").json()["models"]
    assert all(entry["name"] == entry["model"] for entry in models)
    by_name = {entry["name"]: entry for entry in models}
    assert len(by_name) == len(models)
    real = [model["name"] for model in client.get("/models").json()["available_models"]]
    assert {f"{name}:latest" for name in real} <= set(by_name)
    assert {
        "ours:latest",
        "all-minilm:latest",
        "all-minilm:22m",
        "nomic-embed-text:latest",
        "qwen3-embedding:0.6b",
    } <= set(by_name)
    nested, alias = by_name["acme/nested:latest"], by_name["ours:latest"]
    assert {**nested, "name": "ours:latest", "model": "ours:latest"} == alias
    assert nested["digest"] == client.get("/models/acme/nested").json()["stamp"]["fingerprint"]
    assert (nested["dimension"], nested["context_length"]) == (8, MAX_TOKENS)
    assert nested["details"]["families"] == [nested["details"]["family"]]
    assert abs(datetime.fromisoformat(nested["modified_at"]) - datetime.now(UTC)) < timedelta(hours=1)
    hub = by_name["mxbai-embed-large:latest"]
    assert (hub["dimension"], hub["context_length"], len(hub["digest"])) == (1024, 512, 64)
    assert hub["size"] > 100_000_000
    assert len({entry["digest"] for entry in models}) == len(real)
    again = {entry["name"]: entry["digest"] for entry in client.get("/api/tags/").json()["models"]}
    assert again == {name: entry["digest"] for name, entry in by_name.items()}


def test_every_name_of_the_tags_is_accepted(client: Client) -> None:
    for entry in client.get("/api/tags").json()["models"]:
        info = ask(client, "/api/show", model=entry["name"])["model_info"]
        assert info["fastembed.embedding_length"] == entry["dimension"]


@pytest.mark.parametrize("field", ["model", "name"])
def test_show_has_what_clients_read_before_they_embed(client: Client, field: str) -> None:
    answer = ask(client, "/api/show", **{field: "ours"})
    architecture = answer["model_info"]["general.architecture"]
    assert answer["model_info"][f"{architecture}.context_length"] == MAX_TOKENS
    assert answer["model_info"][f"{architecture}.embedding_length"] == 8
    assert answer["capabilities"] == ["embedding"]
    assert answer["details"]["format"] == "onnx"


def test_running_models_have_the_time_of_their_eviction(client: Client) -> None:
    ask(client, "/api/embed", model="acme/nested", input="one")
    running = {entry["name"]: entry for entry in client.get("/api/ps").json()["models"]}
    assert set(running) == {f"{name}:latest" for name in client.get("/models").json()["cached_models"]}
    assert running["acme/plain:latest"]["expires_at"] == "2200-01-01T00:00:00Z"
    last_used = datetime.fromisoformat(client.get("/models/acme/nested").json()["last_used"])
    expires = datetime.fromisoformat(running["acme/nested:latest"]["expires_at"])
    assert expires - last_used == timedelta(seconds=600)
    assert running["acme/nested:latest"]["size_vram"] == 0


def test_pull_of_a_known_model_succeeds_and_downloads_nothing(client: Client) -> None:
    before = client.get("/metrics").json()["model_loads"]
    for body in ({"model": "nomic-embed-text"}, {"name": "acme/nested", "stream": True}, {"model": "ours"}):
        response = client.post("/api/pull", json={**body, "insecure": False})
        assert response.headers["content-type"] == "application/x-ndjson"
        statuses = [json.loads(line)["status"] for line in response.text.splitlines()]
        assert (statuses[0], statuses[-1]) == ("pulling manifest", "success")
        assert ("the first request" in response.text) is ("nomic" in response.text + str(body))
    assert ask(client, "/api/pull", name="all-minilm", stream=False) == {"status": "success"}
    assert client.get("/metrics").json()["model_loads"] == before


def test_version_is_ours(client: Client) -> None:
    version = client.get("/api/version").json()["version"]
    assert version == client.get("/schema/openapi.json").json()["info"]["version"]
    assert client.head("/api/version").status_code == 200


# --- GET / ---


def test_root_answers_with_name_version_docs_and_models(client: Client) -> None:
    answer = client.get("/").json()
    assert (answer["name"], answer["docs"]) == ("Fast Embedding API", "/docs")
    assert answer["version"] == client.get("/api/version").json()["version"]
    assert answer["models"] == [model["name"] for model in client.get("/models").json()["available_models"]]
    assert client.get(answer["docs"]).status_code == 200
    head = client.head("/")
    assert (head.status_code, head.content) == (200, b"")


def test_root_is_open_and_lists_models_only_to_callers_that_may_see_them(folder: Path) -> None:
    own = {"MODELS_DIR": str(folder), "REQUIRED_MODELS": "acme/plain", "API_KEYS": f"somebody:{KEY}"}
    for closed, shown in (("models", False), ("docs", True)):
        with running_app(**own, CLOSED_ROUTES=closed) as client:
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"X-API-Key": KEY, "Authorization": "Bearer no"}):
                answer = client.get("/", headers=headers)
                assert (answer.status_code, "models" in answer.json()) == (200, shown)
                assert "www-authenticate" not in answer.headers
            for headers in ({"Authorization": f"Bearer {KEY}"}, {"X-API-Key": KEY}, {"api-key": KEY}):
                assert "acme/plain" in client.get("/", headers=headers).json()["models"]
            assert client.get("/api/tags").status_code == (200 if shown else 401)
            assert client.get("/api/version").status_code == 200


def test_routes_that_use_models_need_a_key_in_ollamas_words(folder: Path) -> None:
    with running_app(MODELS_DIR=str(folder), REQUIRED_MODELS="acme/plain", API_KEYS=f"somebody:{KEY}") as client:
        for path in ("/api/embed", "/api/embeddings", "/api/pull"):
            problem = rejection(client, 401, path, input="one", prompt="one")
            assert problem["error"] == problem["detail"]
            assert client.post(path, json={}, headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
        assert client.post("/api/show", json={}).status_code == 200


def test_root_obeys_allowed_hosts(folder: Path) -> None:
    with running_app(MODELS_DIR=str(folder), REQUIRED_MODELS="acme/plain", ALLOWED_HOSTS="api.example.com") as client:
        assert client.get("/", headers={"Host": "api.example.com:8000"}).status_code == 200
        assert client.get("/", headers={"Host": "evil.example"}).status_code == 421


def test_options_lists_all_methods_of_an_address(client: Client) -> None:
    """GET / is this dialect's, POST / another one's."""
    assert client.options("/").headers["allow"] == "GET, OPTIONS, POST"
    assert client.options("/api/tags").headers["allow"] == "GET, OPTIONS"


def test_polls_are_logged_at_debug_only(client: Client) -> None:
    with capture_logs() as events:
        for path in ("/", "/api/version"):
            client.get(path)
            client.head(path)
        client.get("/api/tags")
    answered = [(event["route"], event["log_level"]) for event in events if event["event"] == "request_answered"]
    assert answered == [*[("/", "debug")] * 2, *[("/api/version", "debug")] * 2, ("/api/tags", "info")]


def test_rejected_models_are_403_and_not_listed(folder: Path) -> None:
    with running_app(MODELS_DIR=str(folder), REQUIRED_MODELS="acme/plain", ALLOWED_MODELS="acme/plain") as client:
        names = [entry["name"] for entry in client.get("/api/tags").json()["models"]]
        assert names == ["acme/plain:latest"]
        assert client.get("/").json()["models"] == ["acme/plain"]
        for path in ("/api/embed", "/api/show", "/api/pull"):
            assert "ALLOWED_MODELS" in rejection(client, 403, path, model="all-minilm")["error"]


def test_requests_count_for_the_dialect_and_its_errors(client: Client) -> None:
    before = client.get("/metrics").json()["dialects"].get("ollama", {"requests": 0, "errors": 0})
    ask(client, "/api/embed", input="one")
    rejection(client, 404, "/api/embed", model="zzzz")
    after = client.get("/metrics").json()["dialects"]["ollama"]
    assert {key: after[key] - before[key] for key in after} == {"requests": 2, "errors": 1}
