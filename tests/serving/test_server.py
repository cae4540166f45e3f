"""Server processes with settings of their own: what stops a start, what the limits do, and how they end."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.servers import (
    ROOT,
    ServerProcess,
    environment,
    free_port,
    running_server,
    started_server,
    started_uvicorn,
)
from tests.support.tiny import TinyModel, mean_of

BUNDLED = "sentence-transformers/all-MiniLM-L6-v2"
HUB_MODEL, OTHER_HUB_MODEL = "BAAI/bge-small-en-v1.5", "BAAI/bge-base-en-v1.5"
NO_HUB = "http://127.0.0.1:9"
TOLERANCE = 1e-5
MARKER = "squeamish-ossifrage"
LONG_TEXT = "the old river runs slowly past green hills and quiet towns " * 30  # more tokens than the model takes

pytestmark = pytest.mark.timeout(90)


def post(server: ServerProcess, path: str, body: object, **headers: str) -> httpx.Response:
    return httpx.post(server.url + path, json=body, headers=headers, timeout=60)


def embed(server: ServerProcess, text: str, **more: object) -> NDArray[np.float32]:
    response = post(server, "/embed", {"text": text, **more})
    assert response.status_code == 200, response.text
    return np.asarray(response.json()["embedding"], dtype=np.float32)


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    told: dict[str, Any] = response.json()
    assert (response.status_code, told["status"], told["code"]) == (status, status, code), response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert told["request_id"] == response.headers["x-request-id"]
    return told


def refusal(server: ServerProcess) -> str:
    """The one line that a server writes beside its log when it does not start."""
    code = server.wait_for_end()
    assert code != 0
    assert "Traceback" not in server.log
    beside = [line for line in server.lines if not line.startswith("{")]
    assert len(beside) == 1, server.log
    assert str(ROOT) not in server.log
    return beside[0].strip()


def write_broken_model(parent: Path, name: str) -> None:
    (TinyModel(name).write(parent) / "model.onnx").write_bytes(b"not a model")


# --- What stops a start -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        pytest.param({"PORT": "eighty"}, ["PORT", "'eighty'", "integer"], id="word-for-a-number"),
        pytest.param({"MAX_BATCH_SIZE": "0"}, ["MAX_BATCH_SIZE", "'0'", "greater than 0"], id="out-of-bounds"),
        pytest.param({"LOG_LEVEL": "LOUD"}, ["LOG_LEVEL", "'LOUD'", "DEBUG", "INFO"], id="not-one-of-a-few"),
        pytest.param(
            {"REQUIRED_MODELS": f"{BUNDLED},{HUB_MODEL}", "MAX_CACHED_MODELS": "1"},
            ["REQUIRED_MODELS", "MAX_CACHED_MODELS=1"],
            id="more-required-than-cached",
        ),
        pytest.param({"ALLOWED_MODELS": HUB_MODEL}, ["REQUIRED_MODELS", "ALLOWED_MODELS"], id="required-not-allowed"),
        pytest.param({"ALLOWED_MODELS": f"{BUNDLED},no/such"}, ["no/such"], id="allowed-but-unknown"),
        pytest.param({"REQUIRED_MODELS": "no/such"}, ["no/such"], id="required-but-unknown"),
    ],
)
def test_bad_setting_stops_the_start_with_one_line(settings: dict[str, str], told: Sequence[str]) -> None:
    with started_server(**settings) as server:
        line = refusal(server)
    for word in told:
        assert word in line


def test_names_of_models_in_settings_may_be_written_in_any_case() -> None:
    with started_server(REQUIRED_MODELS=BUNDLED.lower(), ALLOWED_MODELS=BUNDLED.upper()) as server:
        assert server.wait_for("service_ready")["models"] == [BUNDLED]
        answer = httpx.get(f"{server.url}/models").json()
        assert answer["required_models"] == answer["allowed_models"] == [BUNDLED]


def test_two_servers_that_start_on_one_port_end_as_one_server_and_one_line() -> None:
    settings = {"PORT": str(free_port()), "HOST": "127.0.0.1"}
    with started_server(**settings) as one, started_server(**settings) as other, ThreadPoolExecutor(2) as threads:
        ends = {threads.submit(server.wait_for_end, timeout_s=20): server for server in (one, other)}
        [ended], _ = wait(ends, return_when=FIRST_COMPLETED)
        assert ended.result() != 0
        loser = ends[ended]
        winner = other if loser is one else one
        winner.wait_for("service_ready")
        assert settings["PORT"] in refusal(loser)
        assert httpx.get(f"{winner.url}/health").status_code == 200
        winner.process.terminate()


def test_required_model_with_broken_files_stops_the_start(tmp_path: Path) -> None:
    write_broken_model(tmp_path, "tiny/broken")
    with started_server(MODELS_DIR=str(tmp_path), REQUIRED_MODELS=f"{BUNDLED},tiny/broken") as server:
        line = refusal(server)
        assert "tiny/broken" in line
        assert "broken" in line.partition("tiny/broken")[2]
        assert str(tmp_path) not in server.log


def test_required_model_that_the_hub_does_not_give_stops_the_start(tmp_path: Path) -> None:
    with started_server(HF_ENDPOINT=NO_HUB, HUB_CACHE_DIR=str(tmp_path), REQUIRED_MODELS=HUB_MODEL) as server:
        line = refusal(server)
        assert HUB_MODEL in line
        assert "hub cannot be reached" in line


def test_uvicorn_serves_the_app() -> None:
    with started_uvicorn() as server:
        server.wait_for("service_ready")
        assert embed(server, "warm").shape == (384,)
        server.process.terminate()
        server.wait_for_end()
        assert "Traceback" not in server.log


def test_bad_setting_stops_uvicorn_with_one_line() -> None:
    with started_uvicorn(MAX_TEXT_LENGTH="long") as server:
        line = refusal(server)
    assert "MAX_TEXT_LENGTH" in line
    assert "'long'" in line


def test_required_model_that_cannot_be_loaded_stops_uvicorn(tmp_path: Path) -> None:
    write_broken_model(tmp_path, "tiny/broken")
    with started_uvicorn(MODELS_DIR=str(tmp_path), REQUIRED_MODELS="tiny/broken") as server:
        assert "tiny/broken" in server.wait_for("start_failed")["reason"]
        assert server.wait_for_end() != 0
        assert "Traceback" not in server.log


# --- A hub that keeps its callers waiting -------------------------------------------------------------------------


HAS_IT = b'{"id": "x"}'


class HeldHub:
    """A hub that takes calls and does not answer until it is told to hang up.

    One that *has_models* says so to the first call: then it is the download that hangs.
    """

    def __init__(self, listening: socket.socket, *, has_models: bool) -> None:
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        self.called = threading.Event()
        self._has_models = has_models
        self._listening = listening
        self._calls: list[socket.socket] = []

    def take_calls(self) -> None:
        with suppress(OSError):
            while True:
                call = self._listening.accept()[0]
                self._calls.append(call)
                if self._has_models and len(self._calls) == 1:
                    self._answer(call)
                else:
                    self.called.set()

    @staticmethod
    def _answer(call: socket.socket) -> None:
        with call.makefile("rb") as request:
            while request.readline().strip():
                pass
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(HAS_IT)}\r\nConnection: close\r\n\r\n"
        call.sendall(head.encode() + HAS_IT)
        call.shutdown(socket.SHUT_WR)

    def hang_up(self) -> None:
        with suppress(OSError):  # a socket on which nobody called cannot be shut down
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for call in self._calls:
            call.close()


@contextmanager
def held_hub(*, has_models: bool = False) -> Iterator[HeldHub]:
    hub = HeldHub(socket.create_server(("127.0.0.1", 0)), has_models=has_models)
    thread = threading.Thread(target=hub.take_calls)
    thread.start()
    try:
        yield hub
    finally:
        hub.hang_up()
        thread.join()


def test_server_that_still_loads_a_required_model_says_that_it_starts(tmp_path: Path) -> None:
    TinyModel("tiny/one").write(tmp_path)
    settings = {"MODELS_DIR": str(tmp_path), "HUB_CACHE_DIR": str(tmp_path / "hub")}
    required = f"tiny/one,{HUB_MODEL}"
    with held_hub() as hub, started_server(HF_ENDPOINT=hub.url, REQUIRED_MODELS=required, **settings) as server:
        assert hub.called.wait(30)
        server.wait_for("model_loaded")
        health = httpx.get(f"{server.url}/health")
        assert (health.status_code, health.json()["status"]) == (503, "starting")
        assert health.json()["cache_info"]["cached_models"] == ["tiny/one"]
        ready = httpx.get(f"{server.url}/health/ready")
        assert (ready.status_code, ready.json()) == (503, {"status": "starting"})
        live = httpx.get(f"{server.url}/health/live")
        assert (live.status_code, live.json()) == (200, {"status": "live"})
        np.testing.assert_allclose(embed(server, "one two"), mean_of(["one", "two"]), rtol=0, atol=TOLERANCE)
        hub.hang_up()
        assert HUB_MODEL in refusal(server)


def test_deadline_of_the_service_is_kept_and_other_models_answer_meanwhile(tmp_path: Path) -> None:
    TinyModel("tiny/one").write(tmp_path)
    settings = {"MODELS_DIR": str(tmp_path), "HUB_CACHE_DIR": str(tmp_path / "hub"), "REQUIRED_MODELS": "tiny/one"}
    with (
        held_hub() as hub,
        running_server(HF_ENDPOINT=hub.url, REQUEST_TIMEOUT="1", **settings) as server,
        ThreadPoolExecutor(1) as thread,
    ):
        more_time = {"X-Request-Timeout": "50"}  # callers may ask for less, not for more
        late = thread.submit(post, server, "/embed", {"text": "one", "model_name": HUB_MODEL}, **more_time)
        assert hub.called.wait(30)
        embed(server, "one")
        problem(late.result(), 504, "deadline-exceeded")
        embed(server, "one")
        hub.hang_up()


def test_download_that_hangs_does_not_keep_the_server_from_ending(tmp_path: Path) -> None:
    TinyModel("tiny/one").write(tmp_path)
    settings = {"MODELS_DIR": str(tmp_path), "HUB_CACHE_DIR": str(tmp_path / "hub"), "REQUIRED_MODELS": "tiny/one"}
    patient = {"HF_HUB_ETAG_TIMEOUT": "1000", "HF_HUB_DOWNLOAD_TIMEOUT": "1000"}
    with (
        held_hub(has_models=True) as hub,
        running_server(HF_ENDPOINT=hub.url, REQUEST_TIMEOUT="1", **settings, **patient) as server,
        ThreadPoolExecutor(1) as thread,
    ):
        late = thread.submit(post, server, "/embed", {"text": "one", "model_name": HUB_MODEL})
        assert hub.called.wait(30)
        problem(late.result(), 504, "deadline-exceeded")
        server.process.terminate()
        try:
            assert server.wait_for_end(timeout_s=15) == 0
        finally:
            hub.hang_up()


# --- One server with tiny models and narrow settings --------------------------------------------------------------

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
    write_broken_model(folder, "tiny/broken")
    (TinyModel("tiny/odd").write(folder) / "model.json").write_text('{"name": 5}')
    return folder


@pytest.fixture(scope="module")
def narrow(models_dir: Path) -> Iterator[ServerProcess]:
    with running_server(MODELS_DIR=str(models_dir), HUB_CACHE_DIR=str(models_dir / "hub"), **NARROW) as server:
        yield server


def test_port_in_use_stops_the_start_with_one_line(narrow: ServerProcess) -> None:
    port = narrow.url.rpartition(":")[2]
    with started_server(PORT=port) as server:
        line = refusal(server)
    assert port in line
    assert "in use" in line


def test_models_lists_only_those_allowed(narrow: ServerProcess) -> None:
    answer = httpx.get(f"{narrow.url}/models").json()
    allowed = sorted(NARROW["ALLOWED_MODELS"].split(","))
    assert answer["allowed_models"] == allowed
    assert sorted(entry["name"] for entry in answer["available_models"]) == allowed
    assert {entry["source"] for entry in answer["available_models"]} == {"local", "hub"}


def test_model_outside_the_allowed_ones_is_a_403(narrow: ServerProcess) -> None:
    problem(post(narrow, "/embed", {"text": "one", "model_name": BUNDLED}), 403, "model-not-allowed")
    problem(post(narrow, "/embed/batch", {"texts": ["one"], "model_name": BUNDLED}), 403, "model-not-allowed")
    problem(httpx.get(f"{narrow.url}/models/{BUNDLED}"), 403, "model-not-allowed")
    problem(httpx.get(f"{narrow.url}/models/tiny/none"), 404, "unknown-model")


def test_metrics_that_are_switched_off_are_a_403(narrow: ServerProcess) -> None:
    problem(httpx.get(f"{narrow.url}/metrics"), 403, "metrics-disabled")


def test_browser_of_another_origin_is_not_let_in_when_that_is_switched_off(narrow: ServerProcess) -> None:
    origin = {"Origin": "https://app.example"}
    asked = {**origin, "Access-Control-Request-Method": "POST"}
    for response in (
        httpx.options(f"{narrow.url}/embed", headers=asked),
        httpx.get(f"{narrow.url}/health", headers=origin),
    ):
        assert not [name for name in response.headers if name.startswith("access-control-")]


@pytest.mark.parametrize(
    ("path", "body", "wanted"),
    [
        pytest.param("/embed", {"text": "a" * 60}, 200, id="longest-text"),
        pytest.param("/embed", {"text": "a" * 61}, ("text", None, 60), id="long-text"),
        pytest.param("/embed/batch", {"texts": ["one"] * 3}, 200, id="most-texts"),
        pytest.param("/embed/batch", {"texts": ["one"] * 4}, ("texts", None, 3), id="too-many-texts"),
        pytest.param("/embed/batch", {"texts": ["one", "a" * 61]}, ("texts", 1, 60), id="long-among-texts"),
    ],
)
def test_limit_of_texts_is_the_one_of_the_settings(
    narrow: ServerProcess, path: str, body: object, wanted: int | tuple[object, ...]
) -> None:
    if path == "/embed" and wanted == 200:
        body = {"text": "one " * 15}
    response = post(narrow, path, body)
    if isinstance(wanted, int):
        assert response.status_code == wanted, response.text
    else:
        told = problem(response, 400, "invalid-input")
        assert (told.get("field"), told.get("index"), told.get("limit")) == wanted


def test_limit_of_bodies_is_the_one_of_the_settings(narrow: ServerProcess) -> None:
    fits = b'{"text": "one"}'.ljust(1024)
    headers = {"Content-Type": "application/json"}
    assert httpx.post(f"{narrow.url}/embed", content=fits, headers=headers).status_code == 200
    for too_much in (fits + b" ", iter([fits, b" "])):
        response = httpx.post(f"{narrow.url}/embed", content=too_much, headers=headers)
        assert problem(response, 413, "content-too-large")["limit"] == 1024


def test_text_on_which_the_model_fails_is_a_500_and_its_neighbours_are_answered(narrow: ServerProcess) -> None:
    together = threading.Barrier(16)

    def ask(number: int) -> httpx.Response:
        together.wait(20)
        return post(narrow, "/embed", {"text": "poison one" if number % 4 == 0 else "one two"})

    with ThreadPoolExecutor(16) as threads:
        responses = list(threads.map(ask, range(64)))
    for response in responses[::4]:
        problem(response, 500, "inference-failed")
    for response in (response for number, response in enumerate(responses) if number % 4):
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
def test_vector_that_nobody_should_use_is_a_500_that_names_the_text(
    narrow: ServerProcess, texts: list[str], index: int, reason: str
) -> None:
    told = problem(post(narrow, "/embed/batch", {"texts": texts}), 500, "invalid-vector")
    assert told["index"] == index
    assert reason in told["detail"]


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        pytest.param("tiny/broken", "broken", id="broken-files"),
        pytest.param("tiny/wrong-dim", "dimensions", id="wrong-dimension"),
        pytest.param(HUB_MODEL, "hub cannot be reached", id="no-hub"),
    ],
)
def test_load_that_failed_is_not_tried_again_within_the_pause(narrow: ServerProcess, name: str, cause: str) -> None:
    for _ in range(3):
        response = post(narrow, "/embed", {"text": "one", "model_name": name}, **{"X-Request-Timeout": "20"})
        told = problem(response, 503, "model-unavailable")
        assert cause in told["detail"]
        assert 1 <= int(response.headers["retry-after"]) <= 30
        embed(narrow, "one")
    httpx.get(f"{narrow.url}/models", headers={"X-Request-ID": (after := f"after-{name.replace('/', '-')}")})
    narrow.wait_for_request(after)
    tries = [event for event in narrow.events if event["event"] == "model_load_failed" and event["model"] == name]
    assert len(tries) == 1


def test_model_is_loaded_when_first_asked_for(narrow: ServerProcess) -> None:
    assert httpx.get(f"{narrow.url}/models/tiny/two").json()["is_cached"] is False
    embed(narrow, "one", model_name="TINY/Two")
    assert httpx.get(f"{narrow.url}/models/tiny/two").json()["is_cached"] is True


def test_folder_that_holds_no_model_is_left_out_and_told(narrow: ServerProcess) -> None:
    event = narrow.wait_for("model_folder_ignored")
    assert event["folder"] == "tiny--odd"
    assert event["reason"]


def test_no_failure_writes_a_text_or_a_path_into_the_log(narrow: ServerProcess, models_dir: Path) -> None:
    texts = [f"{word} {MARKER}" for word in ("poison", "nan", "one")]
    as_json = {"Content-Type": "application/json"}
    sent = [
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
        httpx.post(f"{narrow.url}/embed", content=f'{{"text": "{MARKER}', headers=as_json),
        httpx.post(f"{narrow.url}/embed", content=f'{{"text": "{MARKER}\\ud800"}}', headers=as_json),
        httpx.post(f"{narrow.url}/embed", content=MARKER, headers={"Content-Type": "text/plain"}),
        httpx.get(f"{narrow.url}/{MARKER}?{MARKER}={MARKER}"),
        httpx.get(f"{narrow.url}/models/{MARKER}"),
        httpx.put(f"{narrow.url}/embed", json={"text": MARKER}),
    ]
    assert all(response.is_error for response in sent)
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


def test_failure_of_the_model_is_logged_with_the_request_and_its_place(narrow: ServerProcess) -> None:
    post(narrow, "/embed", {"text": "poison"}, **{"X-Request-ID": "poisoned"})
    narrow.wait_for_request("poisoned")
    [event] = [
        event for event in narrow.events if event["event"] == "request_failed" and event["request_id"] == "poisoned"
    ]
    assert event["code"] == "inference-failed"
    assert event["exception"][0]["type"].startswith("onnxruntime")
    assert any("engine" in place for link in event["exception"] for place in link["at"])


def test_model_idle_for_its_time_to_live_is_dropped_and_loaded_again_when_asked_for(models_dir: Path) -> None:
    with running_server(
        MODELS_DIR=str(models_dir), REQUIRED_MODELS="tiny/one", MODEL_CACHE_TTL="0.2", CLEANUP_INTERVAL="0.1"
    ) as server:
        event = server.wait_for("model_dropped")
        assert (event["model"], event["reason"]) == ("tiny/one", "idle")
        np.testing.assert_allclose(embed(server, "one two"), mean_of(["one", "two"]), rtol=0, atol=TOLERANCE)
        server.wait_for("model_loaded", times=2)
        server.wait_for("model_dropped", times=2)
        assert httpx.get(f"{server.url}/health").json()["status"] == "healthy"


def send(connection: socket.socket, path: str, content: object, *, request_id: str = "sent") -> None:
    """Send a whole request, and leave it at that."""
    body = json.dumps(content).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    head += f"X-Request-ID: {request_id}\r\n"
    connection.sendall(head.encode() + b"\r\n" + body)


# --- One lane and a short queue -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_lane() -> Iterator[ServerProcess]:
    with running_server(THREAD_POOL_WORKERS="1", MAX_QUEUE_SECONDS="0.1", LOG_LEVEL="DEBUG") as server:
        yield server


def test_too_much_work_is_refused_at_once_and_the_rest_is_answered(one_lane: ServerProcess) -> None:
    texts = [LONG_TEXT[: 400 + 10 * number] for number in range(6)]
    wanted = [embed(one_lane, text) for text in texts]
    together = threading.Barrier(16)

    def ask(_: int) -> httpx.Response:
        together.wait(20)
        return post(one_lane, "/embed/batch", {"texts": texts})

    with ThreadPoolExecutor(16) as threads:
        responses = list(threads.map(ask, range(16)))
    refused = [response for response in responses if response.status_code == 503]
    answered = [response for response in responses if response.status_code == 200]
    assert len(refused) + len(answered) == 16
    assert refused
    assert answered
    for response in refused:
        problem(response, 503, "overloaded")
        assert int(response.headers["retry-after"]) >= 1
    for response in answered:
        np.testing.assert_allclose(response.json()["embeddings"], wanted, rtol=0, atol=TOLERANCE)
    assert httpx.get(f"{one_lane.url}/metrics").json()["errors"]["overloaded"] == len(refused)


def test_work_whose_deadline_has_passed_is_dropped(one_lane: ServerProcess) -> None:
    before = httpx.get(f"{one_lane.url}/metrics").json()["micro_batches"]
    response = post(one_lane, "/embed/batch", {"texts": [LONG_TEXT] * 32}, **{"X-Request-Timeout": "0.2"})
    problem(response, 504, "deadline-exceeded")
    after = httpx.get(f"{one_lane.url}/metrics").json()
    assert after["micro_batches"]["dropped_texts"] > before["dropped_texts"]
    assert after["queue"]["waiting_texts"] == 0
    embed(one_lane, "the lane is free again")


def test_work_whose_caller_has_left_is_dropped(one_lane: ServerProcess) -> None:
    before = httpx.get(f"{one_lane.url}/metrics").json()["micro_batches"]["dropped_texts"]
    with socket.create_connection(("127.0.0.1", int(one_lane.url.rpartition(":")[2])), 60) as caller:
        send(caller, "/embed/batch", {"texts": [LONG_TEXT] * 32}, request_id="leaving")
        while not httpx.get(f"{one_lane.url}/metrics").json()["queue"]["waiting_texts"]:
            pass  # it is still being read
    assert one_lane.wait_for_request("leaving")["status"] == 499
    after = httpx.get(f"{one_lane.url}/metrics").json()
    assert after["micro_batches"]["dropped_texts"] > before
    assert after["queue"]["waiting_texts"] == 0


# --- The end ------------------------------------------------------------------------------------------------------


def received(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def test_server_ends_with_all_requests_answered_and_starts_again_after_a_kill() -> None:
    settings = {"PORT": str(free_port()), "THREAD_POOL_WORKERS": "1", "LOG_LEVEL": "DEBUG"}
    bulk = {"texts": [LONG_TEXT] * 16}
    with started_server(**settings) as killed, ThreadPoolExecutor(1) as thread:
        killed.wait_for("service_ready")
        unlucky = thread.submit(post, killed, "/embed/batch", bulk)
        killed.wait_for("micro_batch_encoded")
        killed.process.kill()
        assert killed.wait_for_end() == -signal.SIGKILL
        assert isinstance(unlucky.exception(), httpx.TransportError)

    with running_server(**settings) as server, ThreadPoolExecutor(1) as thread:
        address = ("127.0.0.1", int(settings["PORT"]))
        with socket.create_connection(address, 60) as one, socket.create_connection(address, 60) as other:
            answered = thread.submit(post, server, "/embed/batch", bulk)
            server.wait_for("micro_batch_encoded")
            send(one, "/embed", {"text": "a short text"})
            send(other, "/embed", {"text": LONG_TEXT})
            httpx.get(f"{server.url}/health/live")  # what was sent before it has been read by then
            server.process.terminate()
            for connection in (one, other):
                assert re.match(rb"HTTP/1.1 200 OK\r\n.*\r\n\r\n\{.*\}$", received(connection), re.DOTALL)
            assert len(answered.result().json()["embeddings"]) == 16
        assert server.wait_for_end() == 0
        assert "Traceback" not in server.log


@pytest.mark.parametrize("host", [pytest.param("a..b", id="empty-label"), pytest.param("x" * 64, id="long-label")])
def test_host_that_is_no_address_is_told_in_one_line(host: str) -> None:
    with started_server(HOST=host) as server:
        assert "HOST" in refusal(server)


def test_request_that_outlives_the_time_to_drain_is_told_as_a_problem() -> None:
    with (
        running_server(
            SHUTDOWN_TIMEOUT="1", THREAD_POOL_WORKERS="1", LOG_LEVEL="DEBUG", MAX_BATCH_SIZE="600"
        ) as server,
        ThreadPoolExecutor(1) as thread,
    ):
        late = thread.submit(post, server, "/embed/batch", {"texts": [LONG_TEXT] * 600})
        server.wait_for("micro_batch_encoded", times=4)
        server.process.terminate()
        problem(late.result(), 503, "draining")


UNFORESEEN = """
from assembly.serve import serve_app
from main import create_app

def load(*_, **__):
    raise RuntimeError("can't start new thread")

raise SystemExit(serve_app(create_app(load=load)))
"""


def test_required_model_that_fails_in_an_unforeseen_way_ends_the_start() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", UNFORESEEN],
        cwd=ROOT,
        env=environment({"PORT": str(free_port())}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"Cannot start: The model '{BUNDLED}' cannot be loaded now: an unexpected failure")
    assert "can't start" not in ended.stdout + ended.stderr
