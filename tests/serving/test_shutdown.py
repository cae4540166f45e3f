"""How server processes end: draining, second signals, kills, and work that does not end."""

import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support.held_hub import held_hub
from tests.support.raw_http import (
    CLIENT,
    PROBE,
    WHOLE,
    connected,
    receive_all,
    receive_answer,
    rejected,
    send,
    statuses_of,
)
from tests.support.servers import ROOT, ServerProcess, environment, free_port, held_server, running_server

HUB_MODEL = "BAAI/bge-small-en-v1.5"

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def tiny(tiny_models: Path) -> dict[str, str]:
    return {"MODELS_DIR": str(tiny_models), "REQUIRED_MODELS": "tiny/one"}


def hold_at_work(server: ServerProcess, connection: socket.socket) -> None:
    """Send a request whose model run waits for the line `release`."""
    server.send_line("hold")
    server.wait_for("command_done")
    send(connection, WHOLE)
    server.wait_for("run_held")


def stop(server: ServerProcess) -> None:
    server.process.terminate()
    server.wait_for("drain_started")


def test_draining_server_rejects_new_work_and_answers_accepted_work(tiny: dict[str, str]) -> None:
    with (
        held_server(THREAD_POOL_WORKERS="1", **tiny) as server,
        connected(server) as idle,
        connected(server) as at_work,
        connected(server) as queued,
    ):
        assert statuses_of([idle]) == [200]
        hold_at_work(server, at_work)
        assert statuses_of([queued], PROBE + WHOLE) == [200]  # the server has read the second request, too
        stop(server)
        ready = CLIENT.get(f"{server.url}/health/ready")
        assert (ready.status_code, ready.json()["status"], ready.headers["connection"]) == (503, "draining", "close")
        assert CLIENT.get(f"{server.url}/health/live").status_code == 200
        with connected(server) as new:
            for connection in (idle, new):
                send(connection, WHOLE)
                answer = receive_answer(connection)
                rejected(answer, 503, "draining")
                assert answer[1]["retry-after"] == "1"
        server.send_line("release")
        for connection in (at_work, queued):
            status, headers, _ = receive_answer(connection)
            assert (status, headers["connection"]) == (200, "close")
        assert server.wait_for_end() == 0
        assert server.wait_for("drain_ended")["unanswered"] == 0
        assert "Traceback" not in server.log


def test_second_signal_ends_a_draining_server_at_once(tiny: dict[str, str]) -> None:
    with held_server(**tiny) as server, connected(server) as at_work:
        hold_at_work(server, at_work)
        stop(server)
        server.process.terminate()
        assert server.wait_for_end(timeout_s=20) == 128 + signal.SIGTERM  # the run is still held
        assert receive_all(at_work) == b""


def test_work_that_outlives_the_drain_time_gets_a_503_and_the_process_ends(tiny: dict[str, str]) -> None:
    with held_server(SHUTDOWN_TIMEOUT="1", **tiny) as server, connected(server) as at_work:
        hold_at_work(server, at_work)
        server.process.terminate()
        problem = rejected(receive_answer(at_work), 503, "draining")
        assert "had to stop before this request was answered" in problem["detail"]
        assert server.wait_for_end(timeout_s=20) == 0  # the run is still held


def test_server_starts_again_on_its_port_after_a_kill(tiny: dict[str, str]) -> None:
    port = {"PORT": str(free_port())}
    with held_server(**port, **tiny) as killed, connected(killed) as at_work:
        hold_at_work(killed, at_work)
        killed.process.kill()
        assert killed.wait_for_end() == -signal.SIGKILL
        assert receive_all(at_work) == b""
    with running_server(**port, **tiny) as server:
        assert CLIENT.post(f"{server.url}/embed", json={"text": "one"}).status_code == 200


def test_hanging_download_exceeds_its_deadline_and_does_not_delay_other_models_or_the_end(
    tiny: dict[str, str], tmp_path: Path
) -> None:
    patient = {"HF_HUB_ETAG_TIMEOUT": "1000", "HF_HUB_DOWNLOAD_TIMEOUT": "1000"}

    def embed(**more: str) -> httpx.Response:
        more_time = {"X-Request-Timeout": "50"}  # requests may ask for less time than REQUEST_TIMEOUT, not for more
        return CLIENT.post(f"{server.url}/embed", json={"text": "one", **more}, headers=more_time)

    with (
        held_hub(has_models=True) as hub,
        running_server(
            HF_ENDPOINT=hub.url, HUB_CACHE_DIR=str(tmp_path), REQUEST_TIMEOUT="1", **patient, **tiny
        ) as server,
        ThreadPoolExecutor(1) as thread,
    ):
        late = thread.submit(embed, model_name=HUB_MODEL)
        assert hub.called.wait(30)
        assert embed().status_code == 200
        assert (late.result().status_code, late.result().json()["code"]) == (504, "deadline-exceeded")
        server.process.terminate()
        assert server.wait_for_end(timeout_s=15) == 0


FAILING_APPS = """
import resource
import signal
import sys
from functools import partial
from litestar import Litestar
from assembly.lifecycle import Lifecycle
from serving.connection_limits import ConnectionLimits
from serving.connection_pool import ConnectionPool
from serving.server import serve

async def stop(): signal.raise_signal(signal.SIGTERM)
async def fail(): raise RuntimeError("a bug")

limits = ConnectionLimits(
    header_timeout_s=1, body_timeout_s=1, keep_alive_timeout_s=1,
    max_header_bytes=1000, max_bodies_bytes=1000, max_connections=1000,
)
resource.setrlimit(resource.RLIMIT_NOFILE, (150, 150))
for hooks in ({"on_startup": [fail]}, {"on_startup": [stop], "on_shutdown": [fail]}):
    app = Litestar(**hooks, logging_config=None)
    code = serve(
        app, host="127.0.0.1", port=0, drain_s=1, limits=limits, state=Lifecycle(),
        open_pool=partial(ConnectionPool, count_failure=print, reject_early=lambda *_: None),
    )
    print("code", code)
"""


def test_app_that_fails_to_start_or_to_stop_ends_the_server_with_code_1() -> None:
    """The process may open 150 files, too few for 1,000 connections."""
    ended = subprocess.run(
        [sys.executable, "-c", FAILING_APPS],
        cwd=ROOT,
        env=environment({}),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert [line for line in ended.stdout.splitlines() if line.startswith("code")] == ["code 1"] * 2
    assert ended.stderr.count("The service failed; its log contains the reason.") == 2
    assert len(re.findall(r"connections_limited +max_connections=50 open_files=150 wanted=1000", ended.stdout)) == 2
