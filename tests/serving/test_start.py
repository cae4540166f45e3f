"""How server processes start, and what stops a start: one line says why, and the exit code is not 0."""

import re
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NoReturn

import httpx
import numpy as np
import pytest
from litestar.testing import TestClient

from assembly.app import parts_of
from config import SettingsError
from main import create_app
from tests.support.apps import running_app, settings_of
from tests.support.held_hub import held_hub
from tests.support.raw_http import CLIENT
from tests.support.servers import (
    ROOT,
    ServerProcess,
    running_server,
    started_server,
    started_uvicorn,
    stopped_at_the_end,
)
from tests.support.tiny import TinyModel, mean_of

BUNDLED = "sentence-transformers/all-MiniLM-L6-v2"
HUB_MODEL = "BAAI/bge-small-en-v1.5"

pytestmark = pytest.mark.timeout(90)


def reason_of_failure(server: ServerProcess) -> str:
    """Wait for the end of a server that cannot start; return the only line that it writes beside its log."""
    assert server.wait_for_end() != 0
    assert "Traceback" not in server.log
    assert str(ROOT) not in server.log
    [line] = [line for line in server.lines if not line.startswith("{")]
    return line.strip()


# --- Settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "started", [pytest.param(started_server, id="main"), pytest.param(started_uvicorn, id="uvicorn")]
)
def test_bad_setting_stops_the_start_with_one_line(
    started: Callable[..., AbstractContextManager[ServerProcess]],
) -> None:
    with started(MAX_TEXT_LENGTH="long") as server:
        reason = reason_of_failure(server)
    assert "MAX_TEXT_LENGTH" in reason
    assert "'long'" in reason


@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({"ALLOWED_MODELS": f"{BUNDLED},no/such"}, id="allowed"),
        pytest.param({"REQUIRED_MODELS": "no/such"}, id="required"),
    ],
)
def test_unknown_model_in_the_settings_is_an_error_that_names_it(variables: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="no/such"):
        create_app(settings_of(**variables))


@pytest.mark.parametrize(
    ("aliases", "reason"),
    [
        pytest.param(
            "small=all-MiniLM-L6-v2",
            f"the alias 'small' needs the real name of a model. No model named 'all-MiniLM-L6-v2' is offered. "
            f"Did you mean '{BUNDLED}'",
            id="unknown model",
        ),
        pytest.param(f"a={BUNDLED},b=a", "the alias 'b' needs the real name of a model.", id="alias of an alias"),
        pytest.param(
            f"Small={BUNDLED},small:latest={BUNDLED}", "'Small' and 'small:latest' are the same alias", id="twice"
        ),
        pytest.param(
            f"BAAI/BGE-small-en-v1.5:latest={BUNDLED}",
            "the alias 'BAAI/BGE-small-en-v1.5:latest' would hide the model 'BAAI/bge-small-en-v1.5'.",
            id="name of a model",
        ),
    ],
)
def test_an_alias_that_cannot_be_used_stops_the_start(aliases: str, reason: str) -> None:
    with pytest.raises(SettingsError) as failure:
        create_app(settings_of(MODEL_ALIASES=aliases))
    assert str(failure.value).startswith(f"MODEL_ALIASES: {reason}")
    assert "\n" not in str(failure.value)


def test_names_of_models_in_settings_may_be_written_in_any_case() -> None:
    with running_app(REQUIRED_MODELS=BUNDLED.lower(), ALLOWED_MODELS=BUNDLED.upper()) as client:
        answer = client.get("/models").json()
    assert answer["required_models"] == answer["allowed_models"] == [BUNDLED]


def test_port_in_use_stops_the_start_with_one_line(strict: ServerProcess) -> None:
    port = str(httpx.URL(strict.url).port)
    with started_server(PORT=port) as server:
        reason = reason_of_failure(server)
    assert port in reason
    assert "in use" in reason


# --- Required models ----------------------------------------------------------------------------------------------


def test_server_is_starting_until_its_required_models_are_loaded(tiny_models: Path, tmp_path: Path) -> None:
    settings = {"MODELS_DIR": str(tiny_models), "HUB_CACHE_DIR": str(tmp_path)}
    required = f"tiny/one,{HUB_MODEL}"
    with held_hub() as hub, started_server(HF_ENDPOINT=hub.url, REQUIRED_MODELS=required, **settings) as server:
        assert hub.called.wait(30)
        server.wait_for("model_loaded")
        health = CLIENT.get(f"{server.url}/health")
        assert (health.status_code, health.json()["status"]) == (503, "starting")
        assert health.json()["cache_info"]["cached_models"] == ["tiny/one"]
        ready = CLIENT.get(f"{server.url}/health/ready")
        assert (ready.status_code, ready.json()) == (503, {"status": "starting"})
        live = CLIENT.get(f"{server.url}/health/live")
        assert (live.status_code, live.json()) == (200, {"status": "live"})
        vector = CLIENT.post(f"{server.url}/embed", json={"text": "one two"}).json()["embedding"]
        np.testing.assert_allclose(vector, mean_of(["one", "two"]), rtol=0, atol=1e-5)
        hub.hang_up()
        reason = reason_of_failure(server)
    assert HUB_MODEL in reason
    assert "hub cannot be reached" in reason


def test_last_line_of_the_start_says_the_address(tiny_models: Path) -> None:
    with running_server(MODELS_DIR=str(tiny_models), REQUIRED_MODELS="tiny/one") as server:
        last = server.events[-1]
    assert (last["event"], last["address"]) == ("service_ready", server.url)


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--port=0", "--uds={folder}/the socket"])
def test_last_line_of_the_start_says_the_real_address_under_uvicorn(
    option: str, tiny_models: Path, tmp_path: Path
) -> None:
    option = option.format(folder=tmp_path)
    settings = {"MODELS_DIR": str(tiny_models), "REQUIRED_MODELS": "tiny/one"}
    server = ServerProcess(settings, command=("-m", "uvicorn", "main:app", option))
    with stopped_at_the_end(server):
        server.wait_for("service_ready")
        server.wait_for("Uvicorn running")
    # Which of both is the last depends on how long the models take to load.
    last = [line for line in server.events if line["event"] in ("service_ready", "Uvicorn running")][-1]
    if "--uds" in option:
        assert last["address"] == f"{tmp_path}/the socket"
    else:
        assert re.fullmatch(r"http://127\.0\.0\.1:[1-9]\d+", last["address"])


def test_uvicorn_serves_the_app(tiny_models: Path) -> None:
    with started_uvicorn(MODELS_DIR=str(tiny_models), REQUIRED_MODELS="tiny/one") as server:
        server.wait_for("service_ready")
        assert CLIENT.post(f"{server.url}/embed", json={"text": "one"}).status_code == 200
        server.process.terminate()
        server.wait_for_end()
        assert "Traceback" not in server.log


def test_required_model_with_broken_files_stops_the_start_under_uvicorn(tmp_path: Path) -> None:
    (TinyModel("tiny/broken").write(tmp_path) / "model.onnx").write_bytes(b"not a model")
    with started_uvicorn(MODELS_DIR=str(tmp_path), REQUIRED_MODELS="tiny/broken") as server:
        reason = server.wait_for("start_failed")["reason"]
        assert server.wait_for_end() != 0
    assert "is not a complete ONNX file" in reason
    assert str(tmp_path) not in server.log
    assert "Traceback" not in server.log


def test_required_model_that_fails_in_an_unforeseen_way_stops_the_start() -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise RuntimeError("can't start new thread")

    is_stopped = threading.Event()
    app = create_app(settings_of(), load=fail, stop=is_stopped.set)
    with TestClient(app):
        assert is_stopped.wait(30)
    reason = parts_of(app).service.lifecycle.failure
    assert reason is not None
    assert reason.startswith(f"The model '{BUNDLED}' cannot be loaded now: an unexpected failure")
    assert "can't start" not in reason
