"""The HTTP contract, against a real server process, or against one that runs: `pytest test_api.py --base-url=URL`."""

import http.client
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import numpy as np
import pytest
from jsonschema import Draft202012Validator
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
REFERENCE = HERE / "tests" / "reference" / "all-MiniLM-L6-v2.json"
ENTRIES: dict[str, dict[str, Any]] = {
    entry["name"]: entry
    for entry in json.loads(REFERENCE.read_text(encoding="utf-8"))["texts"]
    if entry["text"].strip()
}
BUNDLED = "sentence-transformers/all-MiniLM-L6-v2"
HUB_MODEL = "BAAI/bge-small-en-v1.5"
DIM, MAX_TOKENS = 384, 256
MAX_TEXT_LENGTH, MAX_BATCH_SIZE, MAX_REQUEST_SIZE = 8192, 32, 10_000_000
TOLERANCE = 1e-5
LEAST_COSINE = 0.9999

GET_PATHS = ["/health", "/health/live", "/health/ready", "/models", f"/models/{BUNDLED}", "/metrics"]
Json = dict[str, Any]


def embed(client: httpx.Client, text: str, **more: object) -> Json:
    response = client.post("/embed", json={"text": text, **more})
    assert response.status_code == 200, response.text
    return dict(response.json())


def embed_batch(client: httpx.Client, texts: list[str], **more: object) -> Json:
    response = client.post("/embed/batch", json={"texts": texts, **more})
    assert response.status_code == 200, response.text
    return dict(response.json())


def get(client: httpx.Client, path: str) -> Json:
    response = client.get(path)
    assert response.status_code == 200, response.text
    return dict(response.json())


def problem(response: httpx.Response, status: int, code: str) -> Json:
    """The problem details of *response*, after a look at all that every one of them must hold."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    told: Json = response.json()
    assert told["status"] == told["status_code"] == status
    assert told["code"] == code
    assert told["request_id"] == response.headers["x-request-id"]
    assert told["type"].endswith(f":{code}")
    assert told["title"]
    assert told["detail"].strip()
    assert not re.search(r"Traceback|File \"|/site-packages|/home/|/tmp/", response.text)
    return told


def array(vector: object) -> NDArray[np.float32]:
    return np.asarray(vector, dtype=np.float32)


# --- POST /embed, POST /embed/batch -------------------------------------------------------------------------------


def test_embed_answers_with_the_vector_and_what_was_done_to_the_text(client: httpx.Client) -> None:
    text = "How do I reset my password? 🙂"
    answer = embed(client, text)
    assert set(answer) == {
        "embedding",
        "model_name",
        "dimension",
        "text_length",
        "tokens",
        "truncated",
        "processing_time_ms",
    }
    assert array(answer["embedding"]).shape == (DIM,)
    assert np.linalg.norm(array(answer["embedding"])) == pytest.approx(1, abs=TOLERANCE)
    assert (answer["model_name"], answer["dimension"], answer["text_length"]) == (BUNDLED, DIM, len(text))
    assert answer["truncated"] is False
    assert answer["processing_time_ms"] > 0


def test_batch_answers_with_one_entry_per_text(client: httpx.Client) -> None:
    answer = embed_batch(client, ["one text", "and another one"])
    assert set(answer) == {
        "embeddings",
        "model_name",
        "dimension",
        "count",
        "tokens",
        "truncated",
        "processing_time_ms",
    }
    assert array(answer["embeddings"]).shape == (2, DIM)
    assert (answer["model_name"], answer["dimension"], answer["count"]) == (BUNDLED, DIM, 2)
    assert answer["tokens"] == [4, 5]
    assert answer["truncated"] == [False, False]
    assert answer["processing_time_ms"] > 0


def test_vectors_and_token_counts_are_those_of_sentence_transformers(client: httpx.Client) -> None:
    entries = list(ENTRIES.values())
    for start in range(0, len(entries), MAX_BATCH_SIZE):
        part = entries[start : start + MAX_BATCH_SIZE]
        answer = embed_batch(client, [entry["text"] for entry in part])
        cosines = np.einsum("ij,ij->i", array(answer["embeddings"]), array([entry["vector"] for entry in part]))
        assert min(cosines) >= LEAST_COSINE
        assert answer["tokens"] == [entry["tokens"] for entry in part]


def test_batch_keeps_the_order_asked_and_equals_its_texts_alone(client: httpx.Client) -> None:
    texts = [entry["text"] for entry in list(ENTRIES.values())[::2]]
    forwards = embed_batch(client, texts)
    backwards = embed_batch(client, texts[::-1])
    alone = [embed(client, text) for text in texts]
    wanted = array([answer["embedding"] for answer in alone])
    np.testing.assert_allclose(array(forwards["embeddings"]), wanted, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(array(backwards["embeddings"])[::-1], wanted, rtol=0, atol=TOLERANCE)
    assert forwards["tokens"] == backwards["tokens"][::-1] == [answer["tokens"] for answer in alone]
    assert forwards["truncated"] == backwards["truncated"][::-1] == [answer["truncated"] for answer in alone]


def test_same_text_twice_in_a_batch_gets_the_same_vector_twice(client: httpx.Client) -> None:
    first, _, third = embed_batch(client, ["again", "something else", "again"])["embeddings"]
    np.testing.assert_allclose(array(third), array(first), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "tokens", "is_truncated"),
    [
        pytest.param("tokens-255", 255, False, id="one-under-the-limit"),
        pytest.param("tokens-256", 256, False, id="exactly-the-limit"),
        pytest.param("tokens-257", 257, True, id="one-over-the-limit"),
        pytest.param("far-too-long", 708, True, id="far-over-the-limit"),
    ],
)
def test_tokens_are_counted_before_the_cut_and_a_cut_is_told(
    client: httpx.Client, name: str, tokens: int, *, is_truncated: bool
) -> None:
    answer = embed(client, ENTRIES[name]["text"])
    assert (answer["tokens"], answer["truncated"]) == (tokens, is_truncated)
    batch = embed_batch(client, ["short", ENTRIES[name]["text"]])
    assert (batch["tokens"], batch["truncated"]) == ([3, tokens], [False, is_truncated])


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({}, id="no-name"),
        pytest.param({"model_name": None}, id="null"),
        pytest.param({"model_name": BUNDLED}, id="its-name"),
        pytest.param({"model_name": BUNDLED.upper()}, id="capitals"),
        pytest.param({"model_name": BUNDLED.lower()}, id="small-letters"),
    ],
)
def test_model_name_may_be_left_out_and_its_case_does_not_matter(client: httpx.Client, body: Json) -> None:
    assert embed(client, "warm", **body)["model_name"] == BUNDLED
    assert embed_batch(client, ["warm"], **body)["model_name"] == BUNDLED


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param("/embed", {"text": "x" * MAX_TEXT_LENGTH}, id="longest-text"),
        pytest.param("/embed", {"text": "🙂" * MAX_TEXT_LENGTH}, id="longest-text-in-characters-not-bytes"),
        pytest.param("/embed", {"text": "\x00\u200b"}, id="control-characters"),
        pytest.param("/embed/batch", {"texts": ["text"] * MAX_BATCH_SIZE}, id="most-texts"),
        pytest.param("/embed/batch", {"texts": ["text"]}, id="fewest-texts"),
    ],
)
def test_input_within_the_limits_is_taken(client: httpx.Client, path: str, body: Json) -> None:
    assert client.post(path, json=body).status_code == 200


def test_escaped_pair_of_surrogates_is_one_character(client: httpx.Client) -> None:
    body = rb'{"text": "\ud83d\ude42"}'
    response = client.post("/embed", content=body, headers={"Content-Type": "application/json"})
    assert response.json()["text_length"] == 1


def test_floats_are_written_no_longer_than_float32_needs(client: httpx.Client) -> None:
    written = client.post("/embed", json={"text": "How long is a number?"})
    numbers: list[str] = json.loads(written.text, parse_float=str)["embedding"]
    needed = [np.format_float_scientific(np.float32(number), unique=True) for number in numbers]
    assert [digits(number) for number in numbers] == [digits(number) for number in needed]
    assert len(written.content) < 14 * DIM


def digits(number: str) -> int:
    """Significant digits of a number as it is written."""
    mantissa = re.split("[eE]", number.lstrip("-"))[0].replace(".", "")
    return len(mantissa.lstrip("0").rstrip("0"))


def test_32_threads_of_mixed_requests_get_the_vectors_of_single_ones(client: httpx.Client) -> None:
    texts = [f"{entry['text']} {number}" for number, entry in enumerate(list(ENTRIES.values())[:32])]
    wanted = array([embed(client, text)["embedding"] for text in texts])

    def ask(number: int) -> tuple[list[int], NDArray[np.float32]]:
        if number % 4:
            return [number % 32], array([embed(client, texts[number % 32])["embedding"]])
        indexes = [(number + step) % 32 for step in range(0, 32, 5)]
        return indexes, array(embed_batch(client, [texts[index] for index in indexes])["embeddings"])

    with ThreadPoolExecutor(32) as threads:
        for indexes, vectors in threads.map(ask, range(96)):
            np.testing.assert_allclose(vectors, wanted[indexes], rtol=0, atol=TOLERANCE)


# --- GET ----------------------------------------------------------------------------------------------------------


def test_health_tells_the_state_and_the_cache(client: httpx.Client) -> None:
    answer = get(client, "/health")
    assert set(answer) == {"status", "cache_info", "uptime_seconds"}
    assert answer["status"] == "healthy"
    assert answer["uptime_seconds"] > 0
    assert answer["cache_info"] == {
        "cached_models": [BUNDLED],
        "num_cached": 1,
        "max_cached": 5,
        "cache_ttl": 3600,
        "cleanup_interval": 60,
    }
    assert get(client, "/health/live") == {"status": "live"}
    assert get(client, "/health/ready") == {"status": "ready"}


def test_models_lists_what_may_be_used(client: httpx.Client) -> None:
    answer = get(client, "/models")
    assert set(answer) == {"required_models", "cached_models", "allowed_models", "available_models"}
    assert answer["required_models"] == answer["cached_models"] == [BUNDLED]
    assert answer["allowed_models"] is None
    entries = {entry["name"]: entry for entry in answer["available_models"]}
    assert len(entries) == len(answer["available_models"])
    bundled = entries[BUNDLED]
    assert (bundled["dimension"], bundled["max_tokens"], bundled["source"]) == (DIM, MAX_TOKENS, "bundled")
    assert (bundled["license"], bundled["is_cached"]) == ("apache-2.0", True)
    assert bundled["size"] > 1_000_000
    assert bundled["description"]
    hub = entries[HUB_MODEL]
    assert (hub["dimension"], hub["source"], hub["is_cached"]) == (384, "hub", False)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(BUNDLED, id="plain"),
        pytest.param(quote(BUNDLED, safe=""), id="percent-encoded"),
        pytest.param(BUNDLED.upper(), id="capitals"),
    ],
)
def test_model_in_memory_is_told_in_full(client: httpx.Client, name: str) -> None:
    embed(client, "warm")
    answer = get(client, f"/models/{name}")
    assert set(answer) == {
        "model_name",
        "is_cached",
        "load_time",
        "loaded_at",
        "last_used",
        "dimension",
        "max_tokens",
        "size",
        "description",
        "license",
        "source",
        "usage",
    }
    assert (answer["model_name"], answer["is_cached"], answer["source"]) == (BUNDLED, True, "bundled")
    assert answer["load_time"] > 0
    loaded_at, last_used = (datetime.fromisoformat(answer[name]) for name in ("loaded_at", "last_used"))
    assert loaded_at.tzinfo is not None
    assert loaded_at <= last_used


@pytest.mark.parametrize(
    "name", [pytest.param(HUB_MODEL, id="plain"), pytest.param(quote(HUB_MODEL, ""), id="encoded")]
)
def test_model_out_of_memory_is_told_without_loading_it(client: httpx.Client, name: str) -> None:
    answer = get(client, f"/models/{name}")
    assert (answer["model_name"], answer["is_cached"], answer["source"]) == (HUB_MODEL, False, "hub")
    assert answer["load_time"] is answer["loaded_at"] is answer["last_used"] is None
    assert answer["usage"] == {"requests": 0, "texts": 0, "tokens": 0}


def test_usage_of_a_model_grows_with_what_it_did(client: httpx.Client) -> None:
    before = get(client, f"/models/{BUNDLED}")["usage"]
    embed(client, "one text")
    embed_batch(client, ["one text", "and another one"])
    after = get(client, f"/models/{BUNDLED}")["usage"]
    assert {name: after[name] - before[name] for name in after} == {"requests": 2, "texts": 3, "tokens": 13}


def test_metrics_count_what_was_sent(client: httpx.Client) -> None:
    before = get(client, "/metrics")
    embed(client, "one text")
    embed_batch(client, ["one text", "and another one"])
    problem(client.post("/embed", json={"text": ""}), 400, "invalid-input")
    problem(client.get("/nothing"), 404, "not-found")
    after = get(client, "/metrics")

    def grown(*keys: str) -> float:
        return number(after, *keys) - number(before, *keys)

    assert grown("total_requests") == 5  # the first look at the metrics is one of them
    assert grown("total_embeddings") == 3
    assert grown("errors", "invalid-input") == 1
    assert grown("errors", "not-found") == 1
    assert grown("endpoints", "POST /embed", "requests") == 2
    assert grown("endpoints", "POST /embed/batch", "requests") == 1
    assert grown("models", BUNDLED, "requests") == 2
    assert grown("models", BUNDLED, "texts") == 3
    assert grown("models", BUNDLED, "tokens") == 13
    assert grown("micro_batches", "texts") == 3
    assert grown("uptime_seconds") > 0


def number(content: Json, *keys: str) -> float:
    """What stands under these keys; 0 where there is nothing yet."""
    for key in keys[:-1]:
        content = content.get(key, {})
    return float(content.get(keys[-1], 0))


def test_metrics_tell_latencies_queue_and_cache(client: httpx.Client) -> None:
    embed(client, "warm")
    answer = get(client, "/metrics")
    latency = answer["endpoints"]["POST /embed"]["latency_ms"]
    assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"]
    assert (answer["queue"]["waiting_requests"], answer["queue"]["waiting_texts"]) == (0, 0)
    assert answer["queue"]["lanes"] >= 1
    assert answer["cache_info"] == get(client, "/health")["cache_info"]


def test_metrics_name_endpoints_by_method_and_route_from_a_closed_set(client: httpx.Client) -> None:
    for path in ("/models/a", "/models/b/c", "/nothing", "/nothing/else"):
        client.get(path)
    client.head("/health")
    client.request("PUT", "/embed")
    endpoints = set(get(client, "/metrics")["endpoints"])
    assert "GET /models/{name}" in {re.sub(r"\{name:path\}", "{name}", name) for name in endpoints}
    odd = {name for name in endpoints if not re.fullmatch(r"\(no route\)|[A-Z]+ /[a-z./{}:]*", name)}
    assert not odd


@pytest.mark.parametrize("path", GET_PATHS)
def test_head_answers_as_get_does_without_a_body(client: httpx.Client, path: str) -> None:
    response = client.head(path)
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"] == "application/json"
    assert int(response.headers["content-length"]) > 0


# --- Errors -------------------------------------------------------------------------------------------------------

BAD_BODIES = [
    pytest.param("/embed", b"", None, None, None, id="no-body"),
    pytest.param("/embed", b'{"text": "a",}', None, None, None, id="broken-json"),
    pytest.param("/embed", b'{"text": "a"', None, None, None, id="half-a-json"),
    pytest.param("/embed", b"[" * 100_000, None, None, None, id="deeply-nested-json"),
    pytest.param("/embed", b'{"text": "\xff\xfe"}', None, None, None, id="not-utf-8"),
    pytest.param("/embed", b'{"text": NaN}', None, None, None, id="nan"),
    pytest.param("/embed", [], None, None, None, id="list-for-object"),
    pytest.param("/embed", None, None, None, None, id="null-for-object"),
    pytest.param("/embed", {}, "text", None, None, id="no-text"),
    pytest.param("/embed", {"texts": ["a"]}, None, None, None, id="texts-for-text"),
    pytest.param("/embed", {"text": None}, "text", None, None, id="null-text"),
    pytest.param("/embed", {"text": 5}, "text", None, None, id="number-for-text"),
    pytest.param("/embed", {"text": ["a"]}, "text", None, None, id="list-for-text"),
    pytest.param("/embed", {"text": ""}, "text", None, None, id="empty-text"),
    pytest.param("/embed", {"text": " \t\n\u3000"}, "text", None, None, id="blank-text"),
    pytest.param("/embed", {"text": "a" * 8193}, "text", None, 8192, id="long-text"),
    pytest.param("/embed", b'{"text": "a \\ud800 b"}', "text", None, None, id="lone-surrogate"),
    pytest.param("/embed", {"text": "a", "model": "x"}, "model", None, None, id="unknown-field"),
    pytest.param("/embed", {"text": "a", "model_name": 5}, "model_name", None, None, id="number-for-model"),
    pytest.param("/embed", b'{"text": "a", "model_name": "\\udfff"}', "model_name", None, None, id="surrogate-model"),
    pytest.param("/embed/batch", {}, "texts", None, None, id="no-texts"),
    pytest.param("/embed/batch", {"texts": "a"}, "texts", None, None, id="text-for-texts"),
    pytest.param("/embed/batch", {"texts": []}, "texts", None, 1, id="empty-texts"),
    pytest.param("/embed/batch", {"texts": ["a"] * 33}, "texts", None, 32, id="too-many-texts"),
    pytest.param("/embed/batch", {"texts": ["a", 5]}, "texts", 1, None, id="number-among-texts"),
    pytest.param("/embed/batch", {"texts": ["a", "b", " "]}, "texts", 2, None, id="blank-among-texts"),
    pytest.param("/embed/batch", {"texts": ["a" * 8193, "b"]}, "texts", 0, 8192, id="long-among-texts"),
    pytest.param("/embed/batch", b'{"texts": ["a", "\\udc00"]}', "texts", 1, None, id="surrogate-among-texts"),
    pytest.param("/embed/batch", {"texts": ["a"], "text": "a"}, "text", None, None, id="unknown-field-in-batch"),
]


@pytest.mark.parametrize(("path", "body", "field", "index", "limit"), BAD_BODIES)
def test_bad_body_is_a_400_that_names_field_index_and_limit(
    client: httpx.Client, *, path: str, body: object, field: str | None, index: int | None, limit: int | None
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = client.post(path, content=content, headers={"Content-Type": "application/json"})
    told = problem(response, 400, "invalid-input")
    if field is not None:
        assert told["field"] == field
        assert field in told["detail"]
    assert (told.get("index"), told.get("limit")) == (index, limit)
    for value in (index, limit):
        assert value is None or str(value) in told["detail"]
    assert not re.search(r"\bstr\b|\bNoneType\b|\bdict\b| \| null", told["detail"])


def test_text_that_is_refused_is_not_repeated(client: httpx.Client) -> None:
    words = "squeamish ossifrage "
    for body in ({"text": words * 500}, {"text": [words]}, {"texts": [words]}):
        assert words not in client.post("/embed", json=body).text


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan", "1e999"])
def test_bad_request_timeout_is_a_400_that_names_the_header(client: httpx.Client, value: str) -> None:
    response = client.post("/embed", json={"text": "a"}, headers={"X-Request-Timeout": value})
    told = problem(response, 400, "invalid-input")
    assert told["field"] == "X-Request-Timeout"
    assert "X-Request-Timeout" in told["detail"]


@pytest.mark.parametrize(
    ("name", "closest"),
    [
        pytest.param("bge-small-en-v1.5", "BAAI/bge-small-en-v1.5", id="without-owner"),
        pytest.param("sentence-transformers/all-MiniLM-L6", BUNDLED, id="cut-short"),
        pytest.param("qqqqqqqq", None, id="like-none"),
        pytest.param("", None, id="empty"),
        pytest.param("../../etc/passwd", None, id="address-of-a-file"),
        pytest.param("x" * 10_000, None, id="very-long"),
    ],
)
def test_unknown_model_is_a_400_with_the_closest_names(client: httpx.Client, name: str, closest: str | None) -> None:
    for path, body in (("/embed", {"text": "a"}), ("/embed/batch", {"texts": ["a"]})):
        response = client.post(path, json={**body, "model_name": name})
        told = problem(response, 400, "unknown-model")
        assert closest is None or closest in told["closest"]
        assert closest is None or closest in told["detail"]
        assert len(response.content) < 2_000


def test_unknown_model_is_a_404_where_its_name_is_the_address(client: httpx.Client) -> None:
    told = problem(client.get("/models/bge-small-en-v1.5"), 404, "unknown-model")
    assert HUB_MODEL in told["closest"]
    problem(client.get(f"/models/{quote('no/such/model', safe='')}"), 404, "unknown-model")
    problem(client.get("/models/%ff%00"), 404, "unknown-model")


@pytest.mark.parametrize("path", ["/nothing", "/embed/nothing", "/v1", "/favicon.ico"])
def test_unknown_address_is_a_404(client: httpx.Client, path: str) -> None:
    problem(client.get(path), 404, "not-found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        pytest.param("GET", "/embed", "POST", id="get-embed"),
        pytest.param("PUT", "/embed/batch", "POST", id="put-batch"),
        pytest.param("POST", "/health", "GET", id="post-health"),
        pytest.param("DELETE", f"/models/{BUNDLED}", "GET", id="delete-model"),
    ],
)
def test_wrong_method_is_a_405_that_names_the_right_ones(
    client: httpx.Client, method: str, path: str, allowed: str
) -> None:
    response = client.request(method, path)
    problem(response, 405, "method-not-allowed")
    assert allowed in response.headers["allow"].split(", ")


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"Content-Type": "text/plain"}, id="text"),
        pytest.param({"Content-Type": "application/x-www-form-urlencoded"}, id="form"),
        pytest.param({"Content-Type": "multipart/form-data; boundary=x"}, id="multipart"),
    ],
)
def test_body_that_is_not_json_is_a_415(client: httpx.Client, headers: dict[str, str]) -> None:
    problem(client.post("/embed", content=b'{"text": "a"}', headers=headers), 415, "not-json")


@pytest.mark.parametrize("media_type", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/a+json"])
def test_json_by_any_of_its_names_is_taken(client: httpx.Client, media_type: str) -> None:
    response = client.post("/embed", content=b'{"text": "a"}', headers={"Content-Type": media_type})
    assert response.status_code == 200


@pytest.fixture
def connection(base_url: str) -> Iterator[http.client.HTTPConnection]:
    """A connection on which a test decides what is sent, and when."""
    parts = urlsplit(base_url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=10)
    yield connection
    connection.close()


def begin_post(connection: http.client.HTTPConnection, path: str, **headers: str) -> None:
    connection.putrequest("POST", path)
    for name, value in {"Content-Type": "application/json", **headers}.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()


def answer_of(connection: http.client.HTTPConnection) -> httpx.Response:
    raw = connection.getresponse()
    return httpx.Response(raw.status, headers=raw.getheaders(), content=raw.read())


@pytest.mark.parametrize("path", ["/embed", "/embed/batch"])
def test_body_of_stated_length_over_the_limit_is_refused_before_it_is_sent(
    connection: http.client.HTTPConnection, path: str
) -> None:
    begin_post(connection, path, Content_Length=str(MAX_REQUEST_SIZE + 1))
    told = problem(answer_of(connection), 413, "content-too-large")
    assert told["limit"] == MAX_REQUEST_SIZE


@pytest.mark.parametrize("path", ["/embed", "/embed/batch"])
def test_chunked_body_is_refused_as_soon_as_it_passes_the_limit(
    connection: http.client.HTTPConnection, path: str
) -> None:
    begin_post(connection, path, Transfer_Encoding="chunked")
    chunk = b" " * (MAX_REQUEST_SIZE // 10)
    for part in (*[chunk] * 10, b" "):
        connection.send(b"%x\r\n%s\r\n" % (len(part), part))
    told = problem(answer_of(connection), 413, "content-too-large")  # the last chunk has not come
    assert told["limit"] == MAX_REQUEST_SIZE


def test_chunked_body_within_the_limit_is_taken(client: httpx.Client) -> None:
    pieces = iter([b'{"text": ', b'"warm"}'])
    response = client.post("/embed", content=pieces, headers={"Content-Type": "application/json"})
    assert response.status_code == 200


def test_body_at_exactly_the_limit_is_read(client: httpx.Client) -> None:
    body = b'{"text": "warm"}'.ljust(MAX_REQUEST_SIZE)
    response = client.post("/embed", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 200


def test_hub_model_without_a_hub_is_a_503_and_the_others_go_on(
    client: httpx.Client, request: pytest.FixtureRequest
) -> None:
    if request.config.getoption("--base-url"):
        pytest.skip("that server may have a hub")
    for _ in range(2):
        response = client.post("/embed", json={"text": "a", "model_name": HUB_MODEL})
        told = problem(response, 503, "model-unavailable")
        assert "hub" in told["detail"]
        assert int(response.headers["retry-after"]) >= 1
        embed(client, "the bundled model still answers")
    assert get(client, "/models")["cached_models"] == [BUNDLED]


def test_deadline_of_the_caller_is_kept(client: httpx.Client) -> None:
    texts = [ENTRIES["far-too-long"]["text"]] * MAX_BATCH_SIZE
    response = client.post("/embed/batch", json={"texts": texts}, headers={"X-Request-Timeout": "0.001"})
    problem(response, 504, "deadline-exceeded")
    assert client.post("/embed", json={"text": "a"}, headers={"X-Request-Timeout": "30"}).status_code == 200


# --- Headers ------------------------------------------------------------------------------------------------------

ASK: dict[str, Callable[[httpx.Client, dict[str, str]], httpx.Response]] = {
    "answer": lambda client, headers: client.post("/embed", json={"text": "a"}, headers=headers),
    "get": lambda client, headers: client.get("/health", headers=headers),
    "head": lambda client, headers: client.head("/models", headers=headers),
    "bad-body": lambda client, headers: client.post("/embed", json={}, headers=headers),
    "no-route": lambda client, headers: client.get("/nothing", headers=headers),
    "wrong-method": lambda client, headers: client.get("/embed", headers=headers),
    "no-model": lambda client, headers: client.get("/models/none", headers=headers),
}
each_way = pytest.mark.parametrize("way", ASK)


@each_way
def test_sane_request_id_of_the_caller_is_taken_over(client: httpx.Client, way: str) -> None:
    response = ASK[way](client, {"X-Request-ID": "order-66:a_b.C"})
    assert response.headers.get_list("x-request-id") == ["order-66:a_b.C"]


@each_way
@pytest.mark.parametrize(
    "sent", [pytest.param("a b", id="space"), pytest.param("x" * 129, id="long"), pytest.param('{"a":1}', id="quotes")]
)
def test_odd_request_id_is_replaced(client: httpx.Client, way: str, sent: str) -> None:
    [given] = ASK[way](client, {"X-Request-ID": sent}).headers.get_list("x-request-id")
    assert given != sent
    assert re.fullmatch(r"[\w.:-]{8,128}", given)


@each_way
def test_request_without_an_id_gets_one_of_its_own(client: httpx.Client, way: str) -> None:
    assert len({ASK[way](client, {}).headers["x-request-id"] for _ in range(2)}) == 2


def test_browser_of_another_origin_may_call(client: httpx.Client) -> None:
    asked = {
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type, x-request-id, x-request-timeout",
    }
    preflight = client.options("/embed", headers=asked)
    assert preflight.is_success
    assert preflight.headers["access-control-allow-origin"] == "*"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    allowed = preflight.headers["access-control-allow-headers"].lower()
    assert "*" in allowed or {"content-type", "x-request-id", "x-request-timeout"} <= set(allowed.split(", "))
    for response in (
        client.post("/embed", json={"text": "a"}, headers={"Origin": "https://app.example"}),
        client.post("/embed", json={"text": ""}, headers={"Origin": "https://app.example"}),
        client.get("/nothing", headers={"Origin": "https://app.example"}),
    ):
        assert response.headers["access-control-allow-origin"] == "*"
        assert "x-request-id" in response.headers["access-control-expose-headers"].lower()


# --- OpenAPI and README -------------------------------------------------------------------------------------------


@pytest.fixture
def document(client: httpx.Client) -> Json:
    return get(client, "/schema/openapi.json")


def operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def contents(document: Json) -> Iterator[tuple[str, str, Json]]:
    """What may be sent or answered: the place, its media type, and what is said of it."""
    for method, path, operation in operations(document):
        for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
            yield f"{method} {path} body", media_type, content
        for status, response in operation["responses"].items():
            for media_type, content in response.get("content", {}).items():
                yield f"{method} {path} {status}", media_type, content


def examples(content: Json) -> list[Any]:
    """Where OpenAPI lets examples stand: beside the schema, or within it."""
    named = [example["value"] for example in content.get("examples", {}).values()]
    return [*named, *([content["example"]] if "example" in content else []), *content["schema"].get("examples", [])]


def complaints(document: Json, schema: Json, value: object) -> list[str]:
    return [error.message for error in Draft202012Validator({**document, **schema}).iter_errors(value)]


def test_openapi_tells_of_every_endpoint(document: Json) -> None:
    assert {(method, path) for method, path, _ in operations(document)} == {
        ("POST", "/embed"),
        ("POST", "/embed/batch"),
        ("GET", "/health"),
        ("GET", "/health/live"),
        ("GET", "/health/ready"),
        ("GET", "/models"),
        ("GET", "/models/{name}"),
        ("GET", "/metrics"),
    }
    for _, _, operation in operations(document):
        assert operation["summary"]
        assert operation["description"]


def test_openapi_has_an_example_for_every_body(document: Json) -> None:
    assert [place for place, _, content in contents(document) if not examples(content)] == []


def test_openapi_says_that_errors_are_problem_details(document: Json) -> None:
    plain = [
        (place, media_type)
        for place, media_type, content in contents(document)
        if re.search(r" [45]\d\d$", place) and not place.startswith("GET /health")
        if media_type != "application/problem+json" or not content["schema"].get("$ref", "").endswith("/Problem")
    ]
    assert plain == []


def test_openapi_examples_are_valid(document: Json) -> None:
    told = [
        (place, complaint)
        for place, _, content in contents(document)
        for example in examples(content)
        for complaint in complaints(document, content["schema"], example)
    ]
    assert told == []


def test_openapi_examples_of_requests_are_answered(client: httpx.Client, document: Json) -> None:
    for method, path, operation in operations(document):
        for content in operation.get("requestBody", {}).get("content", {}).values():
            for example in examples(content):
                assert client.request(method, path, json=example).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "route"),
    [
        pytest.param("POST", "/embed", {"text": "a"}, "/embed", id="embed"),
        pytest.param("POST", "/embed/batch", {"texts": ["a", "b"]}, "/embed/batch", id="batch"),
        pytest.param("GET", "/health", None, "/health", id="health"),
        pytest.param("GET", "/health/live", None, "/health/live", id="live"),
        pytest.param("GET", "/health/ready", None, "/health/ready", id="ready"),
        pytest.param("GET", "/models", None, "/models", id="models"),
        pytest.param("GET", f"/models/{BUNDLED}", None, "/models/{name}", id="model-in-memory"),
        pytest.param("GET", f"/models/{HUB_MODEL}", None, "/models/{name}", id="model-out-of-memory"),
        pytest.param("GET", "/models/none", None, "/models/{name}", id="no-model"),
        pytest.param("GET", "/metrics", None, "/metrics", id="metrics"),
        pytest.param("POST", "/embed", {"text": ""}, "/embed", id="bad-text"),
        pytest.param("POST", "/embed/batch", {"texts": ["a", ""]}, "/embed/batch", id="bad-texts"),
        pytest.param("POST", "/embed", {"text": "a", "model_name": "bge"}, "/embed", id="unknown-model"),
    ],
)
def test_answer_is_what_openapi_says(
    client: httpx.Client, document: Json, *, method: str, path: str, body: object, route: str
) -> None:
    response = client.request(method, path, json=body)
    told = document["paths"][route][method.lower()]["responses"][str(response.status_code)]["content"]
    schema = told[response.headers["content-type"]]["schema"]
    assert complaints(document, schema, response.json()) == []


def curl_lines() -> list[str]:
    """The curl calls in README's code blocks; a backslash at a line's end joins it with the next one."""
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    blocks: list[str] = re.findall(r"```(?:bash|sh|console)\n(.*?)```", readme, flags=re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith("curl ")]


def test_readme_shows_each_endpoint_with_curl() -> None:
    shown = "\n".join(curl_lines())
    for path in ("/embed ", "/embed/batch ", "/health", "/models", f"/models/{BUNDLED}", "/metrics"):
        assert f"localhost:8000{path}" in f"{shown} \n".replace("\n", " \n")


@pytest.mark.parametrize("line", curl_lines())
def test_curl_line_of_the_readme_works_as_written(base_url: str, line: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = shlex.split(line.replace("http://localhost:8000", base_url))
    assert base_url in " ".join(command)
    done = subprocess.run([*command, "--fail", "--silent", "--show-error"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "status" in done.stdout or json.loads(done.stdout)
