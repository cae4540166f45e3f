"""Clients of OpenAI's dialect whose code was only read: their requests, byte for byte."""

import base64
import json

import numpy as np
import pytest

from tests.clients.replay import (
    AIOHTTP,
    ALIAS,
    APACHE,
    JSON,
    KEYS,
    NODE_FETCH,
    PYTHON_HTTPX,
    PYTHON_REQUESTS,
    base64_of,
    floats_of,
    replay,
    request,
)
from tests.clients.support import BUNDLED, FEW, MANY, TINY, native, same
from tests.support.servers import ROOT, ServerProcess

DUMMY = "Authorization: Bearer sk-x"
TEXTS = [*FEW[:3]]


@pytest.mark.slow
def test_open_webui_sends_each_text_alone_and_all_at_once(aliased_server: ServerProcess) -> None:
    texts = MANY[:200]
    bodies = [json.dumps({"input": [text], "model": TINY, "prefix": "passage: "}) for text in texts]
    user = ("X-OpenWebUI-User-Name: Admin", "X-OpenWebUI-User-Id: 1", "X-OpenWebUI-User-Role: admin")
    headers = (*AIOHTTP, JSON, DUMMY, *user)
    answers = replay(aliased_server, *(request("POST", "/v1/embeddings", body, headers) for body in bodies))
    assert same(np.vstack([floats_of(answer) for answer in answers]), native(aliased_server, texts, model=TINY))


def test_anything_llm_sends_500_texts_at_once(aliased_server: ServerProcess) -> None:
    texts = MANY[:500]
    stainless = ("X-Stainless-Lang: js", "X-Stainless-Retry-Count: 0", "X-Stainless-Timeout: 600")
    body = json.dumps({"model": TINY, "input": texts, "encoding_format": "base64"}, separators=(",", ":"))
    [answer] = replay(aliased_server, request("POST", "/v1/embeddings", body, (*NODE_FETCH, JSON, DUMMY, *stainless)))
    assert same(base64_of(answer), native(aliased_server, texts, model=TINY))


def test_librechat_sends_200_pieces_of_token_ids(aliased_server: ServerProcess) -> None:
    lines = (ROOT / "vocabularies" / "cl100k_base.tiktoken").read_text().split("\n")
    ids = {piece: int(number) for piece, number in (line.split() for line in lines if line)}
    words = ["The", " cat", " sat", " on", " the", " mat", " and", " a", " dog", " ran"]
    numbers = [ids[base64_of_text(word)] for word in words]
    pieces = [[numbers[0], *(numbers[1 + index // 9**place % 9] for place in range(3))] for index in range(200)]
    texts = ["The" + "".join(words[1 + index // 9**place % 9] for place in range(3)) for index in range(200)]
    body = json.dumps({"input": pieces, "model": ALIAS, "encoding_format": "base64"}, separators=(",", ":"))
    stainless = ("X-Stainless-Lang: python", "x-stainless-retry-count: 0", "x-stainless-read-timeout: 600")
    [answer] = replay(aliased_server, request("POST", "/v1/embeddings", body, (*PYTHON_HTTPX, JSON, DUMMY, *stainless)))
    assert same(base64_of(answer), native(aliased_server, texts))


def test_dify_checks_the_model_by_a_ping(aliased_server: ServerProcess) -> None:
    headers = (*PYTHON_REQUESTS, JSON, DUMMY)
    ping = json.dumps({"input": "ping", "model": BUNDLED, "encoding_format": "float"})
    texts = json.dumps({"input": TEXTS, "model": BUNDLED, "encoding_format": "float"})
    check, answer = replay(
        aliased_server, *(request("POST", "/v1/embeddings", body, headers) for body in (ping, texts))
    )
    assert (check.status, check.json["model"]) == (200, BUNDLED)
    assert check.json["usage"]["total_tokens"] == 3
    assert same(floats_of(answer), native(aliased_server, TEXTS))


def test_spring_ai_asks_for_base64(aliased_server: ServerProcess) -> None:
    body = json.dumps({"input": TEXTS, "model": ALIAS, "encoding_format": "base64"}, separators=(",", ":"))
    stainless = ("X-Stainless-Lang: java", "X-Stainless-Retry-Count: 0", "X-Stainless-Read-Timeout: 600")
    headers = ("User-Agent: OpenAIOkHttpClientImpl/Java 4.101.0", DUMMY, *stainless, JSON, "Accept-Encoding: gzip")
    [answer] = replay(aliased_server, request("POST", "/v1/embeddings", body, headers))
    assert same(base64_of(answer), native(aliased_server, TEXTS))


def test_microsoft_extensions_ai_asks_for_base64(aliased_server: ServerProcess) -> None:
    body = json.dumps({"input": TEXTS, "model": BUNDLED, "encoding_format": "base64"}, separators=(",", ":"))
    headers = ("Accept: application/json", "User-Agent: OpenAI/2.8.0 MEAI/10.0.0 (.NET 10.0.0; Linux)", DUMMY, JSON)
    [answer] = replay(aliased_server, request("POST", "/v1/embeddings", body, headers))
    assert same(base64_of(answer), native(aliased_server, TEXTS))


def test_azure_clients_name_the_model_in_the_path_and_send_api_key(counting_server: ServerProcess) -> None:
    path = f"/openai/deployments/{ALIAS}/embeddings?api-version=2024-10-21"
    body = json.dumps({"input": TEXTS, "encoding_format": "base64"}, separators=(",", ":"))
    headers = ("Accept: application/json", JSON)
    answer, refused = replay(
        counting_server, *(request("POST", path, body, (*headers, f"api-key: {key}")) for key in (KEYS[0], "wrong"))
    )
    assert same(base64_of(answer), native(counting_server, TEXTS, key=KEYS[0]))
    assert refused.status == 401
    assert "key" in refused.json["error"]["message"]


def test_elasticsearch_sends_up_to_2048_texts_and_reads_floats(aliased_server: ServerProcess) -> None:
    headers = (*APACHE, JSON, DUMMY)
    fits, too_many = (
        request("POST", "/v1/embeddings", json.dumps({"input": MANY[:count], "model": TINY}), headers)
        for count in (2048, 2049)
    )
    answer, refused = replay(aliased_server, fits, too_many)
    assert same(floats_of(answer), native(aliased_server, MANY[:2048], model=TINY))
    assert refused.status == 400  # on 413 it would send halves for ever
    assert "2048" in refused.json["error"]["message"]


def test_elasticsearch_sees_the_quota_on_429(counting_server: ServerProcess) -> None:
    headers = (*APACHE, JSON, f"Authorization: Bearer {KEYS[1]}")
    data = request("POST", "/v1/embeddings", json.dumps({"input": TEXTS, "model": BUNDLED}), headers)
    statuses = {answer.status: answer for answer in replay(counting_server, *[data] * 5)}
    assert statuses.keys() == {200, 429}
    assert statuses[429].json["error"]["message"]
    assert int(statuses[429].headers["retry-after"]) > 0


def test_opensearch_connector_fills_its_template(aliased_server: ServerProcess) -> None:
    body = '{ "input": ' + json.dumps(TEXTS) + f', "model": "{BUNDLED}" }}'
    [answer] = replay(aliased_server, request("POST", "/v1/embeddings", body, (*APACHE, JSON, DUMMY)))
    assert same(floats_of(answer), native(aliased_server, TEXTS))


def test_mem0_sorts_by_index(aliased_server: ServerProcess) -> None:
    body = json.dumps({"input": TEXTS, "model": BUNDLED, "encoding_format": "float"}, separators=(",", ":"))
    [answer] = replay(aliased_server, request("POST", "/v1/embeddings", body, (*PYTHON_HTTPX, JSON, DUMMY)))
    assert [item["index"] for item in answer.json["data"]] == [0, 1, 2]
    assert same(floats_of(answer), native(aliased_server, TEXTS))


def test_litellm_sends_voyages_request_without_a_content_type(aliased_server: ServerProcess) -> None:
    body = json.dumps({"model": BUNDLED, "input": TEXTS})
    [answer] = replay(aliased_server, request("POST", "/v1/embeddings", body, (*PYTHON_HTTPX, DUMMY)))
    assert same(floats_of(answer), native(aliased_server, TEXTS))
    assert answer.json["usage"]["total_tokens"] > 0


def base64_of_text(text: str) -> str:
    """Return *text* as the vocabulary's file writes it."""
    return base64.b64encode(text.encode()).decode()
