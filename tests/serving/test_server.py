"""Server processes with narrow limits: settings, failing models, overload, deadlines, and what the log contains."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.raw_http import CLIENT, WHOLE, connected, many_connected, receive_answer, send
from tests.support.servers import NO_HUB, ROOT, ServerProcess, held_server, running_server
from tests.support.tiny import TinyModel, mean_of

BUNDLED = "sentence-transformers/all-MiniLM-L6-v2"
HUB_MODEL, OTHER_HUB_MODEL = "BAAI/bge-small-en-v1.5", "BAAI/bge-base-en-v1.5"
TOLERANCE = 1e-5
MARKER = "squeamish-ossifrage"
LONG_TEXT = "the old river runs slowly past green hills and quiet towns " * 30  # more tokens than the model takes
JSON = {"Content-Type": "application/json"}

pytestmark = pytest.mark.timeout(90)


def post(server: ServerProcess, path: str, body: object, **headers: str) -> httpx.Response:
    return CLIENT.post(server.url + path, json=body, headers=headers)


def embed(server: ServerProcess, text: str, **more: object) -> NDArray[np.float32]:
    response = post(server, "/embed", {"text": text, **more})
    assert response.status_code == 200, response.text
    return np.asarray(response.json()["embedding"], dtype=np.float32)


def check_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check that *response* is this problem; return the problem document."""
    problem: dict[str, Any] = response.json()
    assert (response.status_code, problem["status"], problem["code"]) == (status, status, code), response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["request_id"] == response.headers["x-request-id"]
    return problem


# --- Tiny models and narrow limits --------------------------------------------------------------------------------

NARROW = {
    "LOG_LEVEL": "DEBUG",
    "REQUIRED_MODELS": "tiny/one",
    "ALLOWED_MODELS": f"tiny/one,tiny/two,tiny/broken,tiny/wrong-dim,{HUB_MODEL},{OTHER_HUB_MODEL}",
    "HF_ENDPOINT": NO_HUB,
    "MAX_TEXT_LENGTH": "60",
    "MAX_BATCH_SIZE": "3",
    "MAX_REQUEST_SIZE": "1KiB",
    "ENABLE_METRICS": "false",
    "ENABLE_CORS": "false",
}


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in ("tiny/one", "tiny/two"):
        TinyModel(name).write(folder)
    TinyModel("tiny/wrong-dim", stated_dim=5).write(folder)
    (TinyModel("tiny/broken").write(folder) / "model.onnx").write_bytes(b"not a model")
    (TinyModel("tiny/odd").write(folder) / "model.json").write_text('{"name": 5}')
    return folder


@pytest.fixture(scope="module")
def narrow(models_dir: Path) -> Iterator[ServerProcess]:
    with running_server(MODELS_DIR=str(models_dir), HUB_CACHE_DIR=str(models_dir / "hub"), **NARROW) as server:
        yield server


def test_only_allowed_models_are_listed(narrow: ServerProcess) -> None:
    answer = CLIENT.get(f"{narrow.url}/models").json()
    allowed = sorted(NARROW["ALLOWED_MODELS"].split(","))
    assert answer["allowed_models"] == allowed
    assert sorted(entry["name"] for entry in answer["available_models"]) == allowed
    assert {entry["source"] for entry in answer["available_models"]} == {"local", "hub"}


def test_model_that_is_not_allowed_is_a_403(narrow: ServerProcess) -> None:
    check_problem(post(narrow, "/embed", {"text": "one", "model_name": BUNDLED}), 403, "model-not-allowed")
    check_problem(post(narrow, "/embed/batch", {"texts": ["one"], "model_name": BUNDLED}), 403, "model-not-allowed")
    check_problem(CLIENT.get(f"{narrow.url}/models/{BUNDLED}"), 403, "model-not-allowed")
    check_problem(CLIENT.get(f"{narrow.url}/models/tiny/none"), 404, "unknown-model")


def test_metrics_that_are_off_are_a_403(narrow: ServerProcess) -> None:
    check_problem(CLIENT.get(f"{narrow.url}/metrics"), 403, "metrics-disabled")


def test_answers_have_no_cors_headers_if_cors_is_off(narrow: ServerProcess) -> None:
    origin = {"Origin": "https://app.example"}
    preflight = {**origin, "Access-Control-Request-Method": "POST"}
    for response in (
        CLIENT.options(f"{narrow.url}/embed", headers=preflight),
        CLIENT.get(f"{narrow.url}/health", headers=origin),
    ):
        assert not [name for name in response.headers if name.startswith("access-control-")]


@pytest.mark.parametrize(
    ("path", "body", "facts"),
    [
        pytest.param("/embed", {"text": "one " * 15}, None, id="longest-text"),
        pytest.param("/embed", {"text": "a" * 61}, ("text", None, 60), id="too-long-text"),
        pytest.param("/embed/batch", {"texts": ["one"] * 3}, None, id="largest-batch"),
        pytest.param("/embed/batch", {"texts": ["one"] * 4}, ("texts", None, 3), id="too-large-batch"),
        pytest.param("/embed/batch", {"texts": ["one", "a" * 61]}, ("texts", 1, 60), id="too-long-text-in-a-batch"),
    ],
)
def test_limits_of_texts_come_from_the_settings(
    narrow: ServerProcess, path: str, body: object, facts: tuple[object, ...] | None
) -> None:
    response = post(narrow, path, body)
    if facts is None:
        assert response.status_code == 200, response.text
    else:
        problem = check_problem(response, 400, "invalid-input")
        assert (problem.get("field"), problem.get("index"), problem.get("limit")) == facts


def test_limit_of_bodies_comes_from_the_settings(narrow: ServerProcess) -> None:
    largest = b'{"text": "one"}'.ljust(1024)
    assert CLIENT.post(f"{narrow.url}/embed", content=largest, headers=JSON).status_code == 200
    for too_large in (largest + b" ", iter([largest, b" "])):
        response = CLIENT.post(f"{narrow.url}/embed", content=too_large, headers=JSON)
        assert check_problem(response, 413, "content-too-large")["limit"] == 1024


# --- Failing models -----------------------------------------------------------------------------------------------


def test_text_that_the_model_fails_on_is_a_500_and_concurrent_texts_are_answered(narrow: ServerProcess) -> None:
    together = threading.Barrier(16)

    def request(number: int) -> httpx.Response:
        together.wait(20)
        return post(narrow, "/embed", {"text": "poison one" if number % 4 == 0 else "one two"})

    with ThreadPoolExecutor(16) as threads:
        responses = list(threads.map(request, range(64)))
    for number, response in enumerate(responses):
        if number % 4 == 0:
            check_problem(response, 500, "inference-failed")
        else:
            assert response.status_code == 200, response.text
            np.testing.assert_allclose(response.json()["embedding"], mean_of(["one", "two"]), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("texts", "index", "reason"),
    [
        pytest.param(["one", "nan two", "two"], 1, "NaN", id="nan"),
        pytest.param(["one", "two", "null"], 2, "zero", id="zero-norm"),
        pytest.param(["null", "nan", "one"], 0, "zero", id="first-of-two"),
    ],
)
def test_unusable_vector_is_a_500_that_names_the_text(
    narrow: ServerProcess, texts: list[str], index: int, reason: str
) -> None:
    problem = check_problem(post(narrow, "/embed/batch", {"texts": texts}), 500, "invalid-vector")
    assert problem["index"] == index
    assert reason in problem["detail"]


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        pytest.param("tiny/broken", "broken", id="broken-files"),
        pytest.param("tiny/wrong-dim", "set dim to", id="wrong-dimension"),
        pytest.param(HUB_MODEL, "hub cannot be reached", id="no-hub"),
    ],
)
def test_failed_load_is_not_repeated_within_the_pause(narrow: ServerProcess, name: str, cause: str) -> None:
    for _ in range(3):
        response = post(narrow, "/embed", {"text": "one", "model_name": name}, **{"X-Request-Timeout": "20"})
        problem = check_problem(response, 503, "model-unavailable")
        assert cause in problem["detail"]
        assert 1 <= int(response.headers["retry-after"]) <= 30
        embed(narrow, "one")
    CLIENT.get(f"{narrow.url}/models", headers={"X-Request-ID": (after := f"after-{name.replace('/', '-')}")})
    narrow.wait_for_request(after)
    failed = [event for event in narrow.events if event["event"] == "model_load_failed" and event["model"] == name]
    assert len(failed) == 1


def test_model_is_loaded_at_its_first_request(narrow: ServerProcess) -> None:
    assert CLIENT.get(f"{narrow.url}/models/tiny/two").json()["is_cached"] is False
    embed(narrow, "one", model_name="TINY/Two")
    assert CLIENT.get(f"{narrow.url}/models/tiny/two").json()["is_cached"] is True


def test_folder_without_a_model_is_ignored_and_logged(narrow: ServerProcess) -> None:
    event = narrow.wait_for("model_folder_ignored")
    assert event["folder"] == "tiny--odd"
    assert event["reason"]


def test_idle_model_is_dropped_after_its_ttl_and_loaded_again_at_the_next_request(models_dir: Path) -> None:
    with running_server(
        MODELS_DIR=str(models_dir), REQUIRED_MODELS="tiny/one", MODEL_CACHE_TTL="0.2", CLEANUP_INTERVAL="0.1"
    ) as server:
        for times in (1, 2):
            vector = embed(server, "one two", model_name="tiny/two")
            np.testing.assert_allclose(vector, mean_of(["one", "two"]), rtol=0, atol=TOLERANCE)
            server.wait_for("model_dropped", times=times)
        dropped = [(event["model"], event["reason"]) for event in server.events if event["event"] == "model_dropped"]
        assert dropped == [("tiny/two", "ttl")] * 2  # and not tiny/one, which is required
        assert CLIENT.get(f"{server.url}/health").json()["status"] == "healthy"


# --- The log ------------------------------------------------------------------------------------------------------


def test_no_failure_writes_a_text_or_a_path_into_the_log(narrow: ServerProcess, models_dir: Path) -> None:
    texts = [f"{word} {MARKER}" for word in ("poison", "nan", "one")]
    responses = [
        post(narrow, "/embed", {"text": texts[0]}),
        post(narrow, "/embed/batch", {"texts": texts}),
        post(narrow, "/embed/batch", {"texts": [MARKER * 9]}),
        post(narrow, "/embed", {"text": MARKER, MARKER: 1}),
        post(narrow, "/embed", {"text": {MARKER: 1}}),
        post(narrow, "/embed", {"text": "one", "model_name": MARKER}),
        post(narrow, "/embed", {"text": MARKER, "model_name": "tiny/broken"}),
        post(narrow, "/embed", {"text": MARKER, "model_name": OTHER_HUB_MODEL}),
        post(narrow, "/embed", {"text": MARKER * 100}),
        post(narrow, "/embed", {"text": MARKER}, **{"X-Request-Timeout": "0.000001"}),
        post(narrow, "/embed", {"text": MARKER}, **{"X-Request-Timeout": MARKER}),
        CLIENT.post(f"{narrow.url}/embed", content=f'{{"text": "{MARKER}', headers=JSON),
        CLIENT.post(f"{narrow.url}/embed", content=f'{{"text": "{MARKER}\\ud800"}}', headers=JSON),
        CLIENT.post(f"{narrow.url}/embed", content=MARKER, headers={"Content-Type": "text/plain"}),
        CLIENT.get(f"{narrow.url}/{MARKER}?{MARKER}={MARKER}"),
        CLIENT.get(f"{narrow.url}/models/{MARKER}"),
        CLIENT.put(f"{narrow.url}/embed", json={"text": MARKER}),
    ]
    assert all(response.is_error for response in responses)
    last = post(narrow, "/embed", {"text": MARKER}, **{"X-Request-ID": "the-last-one"})
    assert last.status_code in {200, 500}
    narrow.wait_for_request("the-last-one")
    assert MARKER not in narrow.log
    for path in (models_dir, ROOT, Path.home() / ".cache"):
        assert [line for line in narrow.lines if str(path) in line] == []
    assert "Traceback" not in narrow.log


def test_each_line_of_the_log_is_an_event(narrow: ServerProcess) -> None:
    embed(narrow, "one")
    assert [line for line in narrow.lines if not line.startswith("{")] == []


def test_failure_of_a_model_is_logged_with_the_request_and_the_place_in_the_code(narrow: ServerProcess) -> None:
    post(narrow, "/embed", {"text": "poison"}, **{"X-Request-ID": "poisoned"})
    narrow.wait_for_request("poisoned")
    failures = [event for event in narrow.events if event["event"] == "request_failed"]
    [event] = [event for event in failures if event["request_id"] == "poisoned"]
    assert event["code"] == "inference-failed"
    assert event["exception"][0]["type"].startswith("onnxruntime")
    assert any("engine" in place for link in event["exception"] for place in link["at"])


# --- One lane and a short queue -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_lane() -> Iterator[ServerProcess]:
    """A service that overload hits early. It keeps no results, since hits are no work."""
    settings = {"THREAD_POOL_WORKERS": "1", "MAX_QUEUE_SECONDS": "0.1", "RESULT_CACHE_MB": "0"}
    with held_server(**settings, LOG_LEVEL="DEBUG") as server:
        yield server


@contextmanager
def runs_held(server: ServerProcess) -> Iterator[None]:
    """Hold a run on the lane and one on the express lane, so that later requests wait."""

    def count(event: str) -> int:
        return sum(line["event"] == event for line in server.events)

    def order(line: str) -> None:
        done = count("command_done")
        server.send_line(line)
        server.wait_for("command_done", times=done + 1)

    order("hold")
    with many_connected(server, 2) as connections:
        # The express lane takes small requests once the lane's run is overdue. Equal texts would be one run.
        for connection, word in zip(connections, (b"one", b"two"), strict=True):
            held = count("run_held")
            send(connection, WHOLE.replace(b"one", word))
            server.wait_for("run_held", times=held + 1)
        try:
            yield
        finally:
            order("release")
        assert [receive_answer(connection)[0] for connection in connections] == [200, 200]


def metrics_of(server: ServerProcess) -> dict[str, Any]:
    return dict(CLIENT.get(f"{server.url}/metrics").json())


def test_excess_work_is_rejected_at_once_and_the_rest_is_answered(one_lane: ServerProcess) -> None:
    texts = [LONG_TEXT[: 400 + 10 * number] for number in range(6)]
    vectors = [embed(one_lane, text) for text in texts]
    together = threading.Barrier(16)

    def request(_: int) -> httpx.Response:
        together.wait(20)
        return post(one_lane, "/embed/batch", {"texts": texts})

    with ThreadPoolExecutor(16) as threads:
        responses = list(threads.map(request, range(16)))
    rejected = [response for response in responses if response.status_code == 503]
    answered = [response for response in responses if response.status_code == 200]
    assert len(rejected) + len(answered) == 16
    assert rejected
    assert answered
    for response in rejected:
        check_problem(response, 503, "overloaded")
        assert int(response.headers["retry-after"]) >= 1
    for response in answered:
        np.testing.assert_allclose(response.json()["embeddings"], vectors, rtol=0, atol=TOLERANCE)
    assert metrics_of(one_lane)["errors"]["overloaded"] == len(rejected)


def test_work_is_dropped_after_its_deadline(one_lane: ServerProcess) -> None:
    before = metrics_of(one_lane)
    with runs_held(one_lane):
        response = post(one_lane, "/embed/batch", {"texts": ["three", "four"]}, **{"X-Request-Timeout": "0.3"})
        check_problem(response, 504, "deadline-exceeded")
        after = metrics_of(one_lane)
        assert after["micro_batches"]["dropped_texts"] == before["micro_batches"]["dropped_texts"] + 2
        assert after["queue"]["waiting_texts"] == 0
    embed(one_lane, "the lane is free again")


def test_work_is_dropped_when_its_client_has_left(one_lane: ServerProcess) -> None:
    before = metrics_of(one_lane)
    with runs_held(one_lane):
        with connected(one_lane) as connection:
            send(connection, WHOLE.replace(b"one", b"six").replace(b"\r\n", b"\r\nX-Request-ID: leaving\r\n", 1))
            while not metrics_of(one_lane)["queue"]["waiting_texts"]:
                pass  # the server still reads the request
        assert one_lane.wait_for_request("leaving")["status"] == 499
        after = metrics_of(one_lane)
        assert after["micro_batches"]["dropped_texts"] == before["micro_batches"]["dropped_texts"] + 1
        assert after["queue"]["waiting_texts"] == 0
