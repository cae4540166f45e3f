"""`GET /metrics` of a running app: what requests change in it, and what they cannot change."""

import re
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from litestar import Litestar
from litestar.testing import TestClient

from engine.result_lookup import MAX_HELD_TEXTS
from tests.support.apps import running_app
from tests.support.tiny import TinyModel

Client = TestClient[Litestar]
TEXT = "/metrics/prometheus"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
MAX_TOKENS = 8


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name in ("tiny/one", "tiny/two"):
        TinyModel(name, max_tokens=MAX_TOKENS).write(tmp_path)
    (TinyModel("tiny/broken").write(tmp_path) / "model.onnx").write_bytes(b"not a model")
    return tmp_path


@pytest.fixture
def client(models: Path) -> Iterator[Client]:
    with running_app(MODELS_DIR=str(models), REQUIRED_MODELS="tiny/one") as client:
        yield client


def embed(client: Client, text: str = "one", **body: Any) -> HTTPStatus:
    return HTTPStatus(client.post("/embed", json={"text": text, **body}).status_code)


def metrics(client: Client) -> Any:
    return client.get("/metrics").json()


def samples(client: Client) -> dict[str, float]:
    """Return the value of each series, by its name with labels in alphabetical order."""
    lines = re.findall(r"^([a-z]\S*?)(?:\{(.*)\})? (\S+)$", client.get(TEXT).text, re.MULTILINE)
    return {
        name + ("{" + ",".join(sorted(labels.split(","))) + "}" if labels else ""): float(value)
        for name, labels, value in lines
    }


@pytest.mark.timeout(120)
def test_callers_cannot_create_series(client: Client) -> None:
    """Neither with names of models, nor with addresses or methods."""

    def invent(number: int) -> None:
        client.post("/embed", json={"text": "one", "model_name": f"invented-{number}"})
        client.post(f"/invented-{number}/v1/embeddings", headers={"X-Dialect": f"invented-{number}"})
        client.request(f"INVENTED{number}", "/embed")

    assert embed(client) == HTTPStatus.OK
    invent(0)
    samples(client)  # its own answer has a series, too
    before = set(samples(client))
    for number in range(1, 1000):
        invent(number)
    found = samples(client)
    assert set(found) == before
    assert found['fast_embedding_requests_total{dialect="native",method="POST",route="/embed",status="400"}'] == 1000


def test_each_part_of_a_request_is_counted(client: Client) -> None:
    assert embed(client) == HTTPStatus.OK
    found = samples(client)
    for name in (
        "cache_lookup_seconds",
        "tokenize_seconds",
        "queue_wait_seconds",
        "request_run_seconds",
        "request_texts",
    ):
        assert found[f"fast_embedding_{name}_count"] == 1, name
    assert found["fast_embedding_request_tokens_sum"] == 3
    assert found['fast_embedding_model_run_seconds_count{model="tiny/one"}'] == 1
    assert found["fast_embedding_run_texts_sum"] == 1
    assert found["fast_embedding_run_padding_ratio_sum"] == 0
    busy = sum(value for name, value in found.items() if name.startswith("fast_embedding_lane_busy_seconds_total"))
    assert busy >= found['fast_embedding_model_run_seconds_sum{model="tiny/one"}'] > 0
    answer = metrics(client)
    assert answer["stages"]["run"]["count"] == answer["stages"]["queue"]["count"] == 1
    assert answer["statuses"]["200"] > 0


def test_request_with_kept_results_neither_waits_nor_runs(client: Client) -> None:
    for _ in range(2):
        embed(client)
    stages = {name: found["count"] for name, found in metrics(client)["stages"].items()}
    assert (stages["tokenize"], stages["queue"], stages["run"]) == (1, 1, 1)
    assert stages["cache"] == 2


def test_each_kind_of_work_that_may_wait_is_reported(client: Client) -> None:
    backlog, results = metrics(client)["backlog"], metrics(client)["result_cache"]
    assert backlog.keys() == {"decode", "lookup", "tokenize", "interactive", "bulk"}
    assert (results["held_texts"], results["held_limit_texts"]) == (0, MAX_HELD_TEXTS)


def test_padding_is_the_share_of_tokens_that_no_text_has(client: Client) -> None:
    texts = ["one", "one two three four five six"]  # 3 and 8 tokens
    client.post("/embed/batch", json={"texts": texts})
    found = samples(client)
    runs = found["fast_embedding_run_padding_ratio_count"]
    padded, real = found["fast_embedding_micro_batch_padded_tokens_total"], 3 + 8
    assert found["fast_embedding_run_padding_ratio_sum"] == pytest.approx(0 if runs == 2 else (padded - real) / padded)


def test_texts_that_were_cut_are_counted(client: Client) -> None:
    client.post("/embed/batch", json={"texts": ["one", "one " * 20, "two " * 20]})
    assert metrics(client)["models"]["tiny/one"]["truncated"] == 2
    assert samples(client)['fast_embedding_model_truncated_texts_total{model="tiny/one"}'] == 2


def test_loads_and_failures_are_counted(client: Client) -> None:
    assert embed(client, model_name="tiny/two") == HTTPStatus.OK
    for _ in range(2):  # the second one is refused in the pause after the first
        assert embed(client, model_name="tiny/broken") == HTTPStatus.SERVICE_UNAVAILABLE
    found = metrics(client)["models"]
    assert (found["tiny/two"]["loads"], found["tiny/two"]["load_failures"]) == (1, 0)
    assert found["tiny/two"]["load_seconds"] > 0
    assert found["tiny/two"]["memory_bytes"] > 0
    assert (found["tiny/broken"]["loads"], found["tiny/broken"]["load_failures"]) == (0, 1)
    assert found["tiny/broken"]["memory_bytes"] == 0
    assert 'fast_embedding_model_memory_bytes{model="tiny/broken"}' not in samples(client)


def test_evictions_are_counted_by_reason(models: Path) -> None:
    TinyModel("tiny/three").write(models)
    with running_app(MODELS_DIR=str(models), REQUIRED_MODELS="tiny/one", MAX_CACHED_MODELS="2") as client:
        for name in ("tiny/two", "tiny/three"):
            assert embed(client, model_name=name) == HTTPStatus.OK
        assert metrics(client)["models"]["tiny/two"]["evictions"] == {"capacity": 1}
        evictions = {
            name: value for name, value in samples(client).items() if "model_evictions" in name and "tiny/two" in name
        }
        assert sorted(evictions.values()) == [0, 0, 0, 1]
        assert evictions['fast_embedding_model_evictions_total{model="tiny/two",reason="capacity"}'] == 1


def test_rejections_are_counted_by_quota(models: Path) -> None:
    limits = {"ENABLE_RATE_LIMIT": "true", "RATE_LIMIT_REQUESTS": "1", "RATE_LIMIT_WINDOW": "86400"}
    with running_app(MODELS_DIR=str(models), REQUIRED_MODELS="tiny/one", **limits) as client:
        statuses = [embed(client) for _ in range(3)]
        assert statuses == [200, 429, 429]
        assert metrics(client)["rate_limited"] == {"requests": 2}
        found = samples(client)
    assert found['fast_embedding_rate_limited_total{policy="requests"}'] == 2
    assert found['fast_embedding_rate_limited_total{policy="tokens"}'] == 0
    assert found['fast_embedding_requests_total{dialect="native",method="POST",route="/embed",status="429"}'] == 2
    name = "fast_embedding_request_duration_seconds_count"
    for outcome, number in (("refused", 2), ("served", 1)):
        assert found[f'{name}{{dialect="native",method="POST",outcome="{outcome}",route="/embed"}}'] == number


def test_request_for_metrics_is_in_flight_itself(client: Client) -> None:
    for _ in range(2):
        assert metrics(client)["in_flight"] == 1


def test_request_with_a_trace_is_an_exemplar_in_open_metrics_only(client: Client) -> None:
    headers = {"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"}
    client.post("/embed", json={"text": "one"}, headers=headers)
    marked = f'# {{trace_id="{TRACE_ID}"}}'
    text = client.get(TEXT, headers={"Accept": "application/openmetrics-text"}).text
    [line] = [line for line in text.splitlines() if marked in line]
    assert line.startswith("fast_embedding_request_duration_seconds_bucket{")
    assert marked not in client.get(TEXT).text


def test_metrics_that_are_disabled_answer_403_whatever_is_accepted(models: Path) -> None:
    with running_app(MODELS_DIR=str(models), REQUIRED_MODELS="tiny/one", ENABLE_METRICS="false") as client:
        for path in ("/metrics", TEXT):
            for accept in ("*/*", "image/png"):
                response = client.get(path, headers={"Accept": accept})
                assert (response.status_code, response.json()["code"]) == (403, "metrics-disabled")


def test_text_is_the_same_at_both_addresses(client: Client) -> None:
    def series(path: str) -> set[str]:
        text = client.get(path, headers={"Accept": "text/plain"}).text
        return {line.rpartition(" ")[0] for line in text.splitlines() if "/metrics" not in line}

    for path in ("/metrics", TEXT):
        client.get(path, headers={"Accept": "text/plain"})
    assert series("/metrics") == series(TEXT)
