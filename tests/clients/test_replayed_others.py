"""Clients of Ollama's, Cohere's and text-embeddings-inference's dialects whose code was only read: their requests."""

import json

import numpy as np
import pytest

from tests.clients.replay import (
    AIOHTTP,
    APACHE,
    JSON,
    KEYS,
    NODE_FETCH,
    PYTHON_HTTPX,
    PYTHON_REQUESTS,
    Answer,
    replay,
    request,
)
from tests.clients.support import BUNDLED, FEW, MANY, TINY, UNKNOWN, Rows, native, same
from tests.support.servers import ServerProcess

TEXTS = [*FEW[:3]]
OLLAMA_PYTHON = (
    "Accept-Encoding: gzip, deflate",
    "Connection: keep-alive",
    JSON,
    "Accept: application/json",
    "User-Agent: ollama-python/0.6.3 (x86_64 linux) Python/3.11.2",
)
OLLAMA_NODE = (
    JSON,
    "Accept: application/json",
    "User-Agent: ollama-js/0.6.4 (x64 linux Node.js/v20.20.2)",
    *NODE_FETCH,
)


def embeddings_of(answer: Answer) -> Rows:
    """Return the vectors of Ollama's answer."""
    assert answer.status == 200, answer.body
    return np.array(answer.json["embeddings"], np.float32)


# --- Ollama ---


@pytest.mark.slow
def test_open_webui_sends_each_text_alone_and_all_at_once(aliased_server: ServerProcess) -> None:
    texts = MANY[:200]
    bodies = [json.dumps({"input": [text], "model": TINY, "prefix": "passage: "}) for text in texts]
    headers = (*AIOHTTP, JSON, "Authorization: Bearer ")
    answers = replay(aliased_server, *(request("POST", "/api/embed", body, headers) for body in bodies))
    assert same(np.vstack([embeddings_of(answer) for answer in answers]), native(aliased_server, texts, model=TINY))


def test_open_webui_shows_the_text_of_error(aliased_server: ServerProcess) -> None:
    body = json.dumps({"input": TEXTS[:1], "model": UNKNOWN})
    [answer] = replay(aliased_server, request("POST", "/api/embed", body, (*AIOHTTP, JSON)))
    assert answer.status == 404
    assert UNKNOWN in answer.json["error"]


def test_anything_llm_asks_whether_the_server_is_alive_and_sends_each_text_alone(aliased_server: ServerProcess) -> None:
    body = json.dumps({"model": "all-minilm", "input": TEXTS[0], "options": {"num_ctx": 8192}}, separators=(",", ":"))
    [alive] = replay(aliased_server, request("GET", "/", headers=NODE_FETCH))
    [answer] = replay(aliased_server, request("POST", "/api/embed", body, OLLAMA_NODE))
    assert alive.status == 200
    assert same(embeddings_of(answer), native(aliased_server, TEXTS[:1]))


def test_pgai_reads_the_context_length_and_sends_2048_texts(aliased_server: ServerProcess) -> None:
    name = json.dumps({"model": TINY}, separators=(",", ":"))
    [shown] = replay(aliased_server, request("POST", "/api/show", name, OLLAMA_PYTHON))
    facts = shown.json["model_info"]
    assert facts[f"{facts['general.architecture']}.context_length"] > 0
    body = json.dumps({"model": TINY, "input": MANY[:2048], "options": {}, "keep_alive": None}, separators=(",", ":"))
    [answer] = replay(aliased_server, request("POST", "/api/embed", body, OLLAMA_PYTHON))
    assert same(embeddings_of(answer), native(aliased_server, MANY[:2048], model=TINY))
    assert answer.json["prompt_eval_count"] > 2048


def test_pgai_pulls_a_model_that_is_not_shown(aliased_server: ServerProcess) -> None:
    [unknown] = replay(aliased_server, request("POST", "/api/show", '{"model":"no-such-model"}', OLLAMA_PYTHON))
    assert unknown.status == 404
    assert "no-such-model" in unknown.json["error"]
    pull = '{"model":"no-such-model","stream":false}'
    [failed] = replay(aliased_server, request("POST", "/api/pull", pull, OLLAMA_PYTHON))
    assert failed.status in {400, 404}
    assert "no-such-model" in failed.json["error"]
    [done] = replay(
        aliased_server, request("POST", "/api/pull", '{"model":"all-minilm","stream":false}', OLLAMA_PYTHON)
    )
    assert done.json["status"] == "success"


# --- Cohere ---


@pytest.mark.parametrize("path", ["/v1/embed", "/v2/embed"])
def test_elasticsearch_with_cohere_reads_floats_by_type(aliased_server: ServerProcess, path: str) -> None:
    fields = {"model": BUNDLED, "texts": FEW, "input_type": "search_document", "embedding_types": ["float"]}
    headers = (*APACHE, JSON, "Authorization: Bearer sk-x", "Request-Source: unspecified:elasticsearch")
    [answer] = replay(aliased_server, request("POST", path, json.dumps(fields, separators=(",", ":")), headers))
    assert answer.status == 200, answer.body
    assert same(np.array(answer.json["embeddings"]["float"], np.float32), native(aliased_server, FEW))


# --- text-embeddings-inference ---


def test_elasticsearch_with_hugging_face_sends_to_the_url_as_typed(aliased_server: ServerProcess) -> None:
    body = json.dumps({"inputs": TEXTS}, separators=(",", ":"))
    headers = (*APACHE, JSON, "Authorization: Bearer hf_x")
    answers = replay(
        aliased_server, *(request("POST", path, body, headers) for path in ("/embed", "/tei", "/tei/embed"))
    )
    for answer in answers:
        assert same(np.array(answer.json, np.float32), native(aliased_server, TEXTS))


def test_continue_batches_by_the_number_of_the_info_route(aliased_server: ServerProcess) -> None:
    headers = ("Accept: */*", JSON, "Accept-Encoding: gzip, deflate, br", "User-Agent: node-fetch", "Connection: close")
    [info] = replay(aliased_server, request("GET", "/info", headers=headers))
    assert info.json["model_id"] == BUNDLED
    texts = MANY[: info.json["max_client_batch_size"]]
    assert len(texts) > 1
    body = json.dumps({"inputs": texts}, separators=(",", ":"))
    [answer] = replay(aliased_server, request("POST", "/embed", body, headers))
    assert same(np.array(answer.json, np.float32), native(aliased_server, texts))


def test_llama_index_sends_bearer_twice(counting_server: ServerProcess) -> None:
    body = json.dumps({"inputs": TEXTS, "truncate": True}, separators=(",", ":"))
    headers = (*PYTHON_HTTPX, JSON, f"Authorization: Bearer Bearer {KEYS[2]}")
    [answer] = replay(counting_server, request("POST", "/embed", body, headers))
    assert same(np.array(answer.json, np.float32), native(counting_server, TEXTS, key=KEYS[2]))


def test_huggingface_hub_sends_one_text_to_the_root(aliased_server: ServerProcess) -> None:
    [answer] = replay(aliased_server, request("POST", "/", json.dumps({"inputs": TEXTS[0]}), (*PYTHON_REQUESTS, JSON)))
    assert same(np.array(answer.json, np.float32), native(aliased_server, TEXTS[:1]))
