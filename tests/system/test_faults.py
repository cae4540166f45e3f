"""Faults inside of a real server process: a model that hangs, memory and disks that run out, files that go, clocks."""

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engine.test_hub import DIM, NAME, REPOSITORY
from tests.support.hubs import Hub, hub_environment, serving
from tests.support.servers import ServerProcess, running_server
from tests.support.tiny import TinyModel
from tests.support.tiny_models import PROBE_WORDS, TROUBLE_WORDS, too_large, troubled

pytestmark = pytest.mark.timeout(90)

PATIENCE_S = 60
RETRY_PAUSE_S = "0.05"


def ask(
    server: ServerProcess, text: str, model: str, *, timeout_s: float = PATIENCE_S, request_id: str = "asked"
) -> httpx.Response:
    return httpx.post(
        f"{server.url}/embed",
        json={"text": text, "model_name": model},
        headers={"X-Request-Timeout": str(timeout_s), "X-Request-ID": request_id},
        timeout=PATIENCE_S,
    )


def serves(server: ServerProcess, model: str, text: str = "one two") -> bool:
    return ask(server, text, model).status_code == 200


def until_served(server: ServerProcess, model: str) -> None:
    """Ask until the pause after a failed load is over."""
    while (response := ask(server, "one", model)).status_code != 200:
        problem(response, 503, "model-unavailable")


def problem(response: httpx.Response, status: int, code: str) -> str:
    """The detail of the problem that this is."""
    told: dict[str, Any] = response.json()
    assert (response.status_code, told["code"]) == (status, code), response.text
    return str(told["detail"])


def live(server: ServerProcess) -> tuple[int, dict[str, Any]]:
    response = httpx.get(f"{server.url}/health/live", timeout=PATIENCE_S)
    return response.status_code, response.json()


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    TinyModel("tiny/one").write(folder)
    TinyModel("tiny/troubled", words=TROUBLE_WORDS, graph=troubled, max_tokens=64).write(folder)
    TinyModel("tiny/large", words=PROBE_WORDS, graph=too_large, max_tokens=64).write(folder)
    return folder


# --- A model that hangs -------------------------------------------------------------------------------------------


@pytest.fixture
def watched(models_dir: Path) -> Iterator[ServerProcess]:
    with running_server(
        MODELS_DIR=str(models_dir),
        REQUIRED_MODELS="tiny/one,tiny/troubled",
        THREAD_POOL_WORKERS="2",
        LANE_STUCK_SECONDS="0.2",
    ) as server:
        yield server


def test_lane_that_hangs_is_told_the_others_serve_and_the_server_still_ends(watched: ServerProcess) -> None:
    assert live(watched) == (200, {"status": "live"})
    with ThreadPoolExecutor(1) as thread:
        hanging = thread.submit(ask, watched, "hang", "tiny/troubled", timeout_s=1.0)
        event = watched.wait_for("lane_stuck")
        assert (event["level"], event["model"], event["texts"]) == ("error", "tiny/troubled", 1)
        status, body = live(watched)
        assert (status, body["status"]) == (503, "stuck")
        [stuck] = body["stuck"]
        assert stuck["model_name"] == "tiny/troubled"
        assert stuck["seconds"] > 0.2
        problem(hanging.result(), 504, "deadline-exceeded")
    assert serves(watched, "tiny/one")
    assert serves(watched, "tiny/troubled")
    assert httpx.get(f"{watched.url}/health/ready").status_code == 200
    queue = httpx.get(f"{watched.url}/metrics").json()["queue"]
    assert (queue["lanes_stuck"], queue["lanes_died"]) == (1, 0)
    watched.process.terminate()
    assert watched.wait_for_end() == 0
    assert "Traceback" not in watched.log
    assert [event["event"] for event in watched.events].count("lane_stuck") == 1
    assert watched.wait_for("lane_left_running")


def test_lane_that_ends_at_last_makes_the_service_live_again(watched: ServerProcess) -> None:
    with ThreadPoolExecutor(1) as thread:
        slow = thread.submit(ask, watched, "slow", "tiny/troubled")
        stuck, freed = watched.wait_for("lane_stuck"), watched.wait_for("lane_freed")
        assert slow.result().status_code == 200
    assert (freed["model"], freed["lane"]) == (stuck["model"], stuck["lane"])
    assert freed["seconds"] >= stuck["seconds"]
    assert live(watched) == (200, {"status": "live"})


# --- Memory that runs out -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hungry(models_dir: Path) -> Iterator[ServerProcess]:
    with running_server(MODELS_DIR=str(models_dir), REQUIRED_MODELS="tiny/one,tiny/troubled") as server:
        yield server


def test_memory_that_runs_out_while_a_model_is_loaded_leaves_the_others_serving(hungry: ServerProcess) -> None:
    for number in range(3):
        response = ask(hungry, "one", "tiny/large", request_id=f"large-{number}")
        assert "there is not enough memory for it" in problem(response, 503, "model-unavailable")
        assert 1 <= int(response.headers["retry-after"]) <= 30
        assert serves(hungry, "tiny/one")
    hungry.wait_for_request("large-2")
    tries = [event for event in hungry.events if event["event"] == "model_load_failed"]
    assert [event["model"] for event in tries] == ["tiny/large"]  # the second one comes after a pause
    cached = httpx.get(f"{hungry.url}/health").json()["cache_info"]["cached_models"]
    assert sorted(cached) == ["tiny/one", "tiny/troubled"]


def test_memory_that_runs_out_in_a_run_fails_that_request_only(hungry: ServerProcess) -> None:
    problem(ask(hungry, "hungry", "tiny/troubled"), 500, "inference-failed")
    assert serves(hungry, "tiny/troubled")
    assert live(hungry) == (200, {"status": "live"})


# --- Files that go ------------------------------------------------------------------------------------------------


def test_model_folder_that_goes_while_it_is_loaded_matters_only_at_the_next_load(tmp_path: Path) -> None:
    models, aside = tmp_path / "models", tmp_path / "aside"
    folder = TinyModel("tiny/one").write(models)
    TinyModel("tiny/two").write(models)
    settings = {"MODELS_DIR": str(models), "REQUIRED_MODELS": "tiny/one", "MODEL_RETRY_PAUSE": RETRY_PAUSE_S}
    with running_server(**settings, MAX_CACHED_MODELS="1") as server:
        shutil.move(folder, aside)
        assert serves(server, "tiny/one")
        assert serves(server, "tiny/two")  # which takes the only place
        detail = problem(ask(server, "one", "tiny/one"), 503, "model-unavailable")
        assert "is missing" in detail
        assert str(tmp_path) not in detail
        assert serves(server, "tiny/two")
        shutil.move(aside, folder)
        until_served(server, "tiny/one")
        for file in folder.glob("*"):
            file.write_bytes(b"garbage")
        assert serves(server, "tiny/one")
        assert serves(server, "tiny/two")
        assert "broken" in problem(ask(server, "one", "tiny/one"), 503, "model-unavailable")
        assert serves(server, "tiny/two")
        shutil.rmtree(folder)
        TinyModel("tiny/one").write(models)
        until_served(server, "tiny/one")
        assert str(tmp_path) not in server.log
        assert "Traceback" not in server.log


# --- A disk that is full ------------------------------------------------------------------------------------------


LARGE_WORDS = (*PROBE_WORDS, *(f"word{number}" for number in range(2000)))
"""So that the model has some 3 MB."""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = TinyModel("tiny", dim=DIM, words=LARGE_WORDS).write(tmp_path_factory.mktemp("repository"))
    names = ["config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
    files = {name: (folder / name).read_bytes() for name in names}
    with serving(REPOSITORY, {**files, "model_optimized.onnx": (folder / "model.onnx").read_bytes()}) as hub:
        yield hub


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of 1 MB of its own at *folder*, which only root can have, and not in every container."""
    folder.mkdir()
    mounting = ["/bin/mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not Path(mounting[0]).exists() or subprocess.run(mounting, check=False, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here; the test with a limit of files' sizes runs everywhere")
    try:
        yield
    finally:
        subprocess.run(["/bin/umount", "--lazy", str(folder)], check=True)


@contextmanager
def beside_hub(hub: Hub, models_dir: Path, cache: Path) -> Iterator[ServerProcess]:
    with running_server(
        **{name: value for name, value in hub_environment(HF_ENDPOINT=hub.url).items() if name.startswith("HF_")},
        HUB_CACHE_DIR=str(cache),
        MODELS_DIR=str(models_dir),
        REQUIRED_MODELS="tiny/one",
        MODEL_RETRY_PAUSE=RETRY_PAUSE_S,
    ) as server:
        yield server


def is_told_and_nothing_is_left(server: ServerProcess, cause: str, cache: Path) -> None:
    for _ in range(2):  # the second try must not take for complete what the first one has left
        detail = problem(ask(server, "one", NAME), 503, "model-unavailable")
        assert f"the cache cannot be written ({cause})" in detail
        assert serves(server, "tiny/one")
    assert list(cache.glob("models--*/snapshots/*/*.onnx")) == []
    assert str(cache) not in server.log


def test_model_that_does_not_fit_on_the_disk_is_told_and_loaded_once_there_is_room(
    hub: Hub, models_dir: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk), beside_hub(hub, models_dir, disk / "cache") as server:
        is_told_and_nothing_is_left(server, os.strerror(errno.ENOSPC), disk / "cache")
        subprocess.run(["/bin/mount", "-o", "remount,size=32m", str(disk)], check=True)
        until_served(server, NAME)


def test_file_that_may_not_become_so_large_is_told_and_loaded_once_it_may(
    hub: Hub, models_dir: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    with beside_hub(hub, models_dir, cache) as server:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
        is_told_and_nothing_is_left(server, os.strerror(errno.EFBIG), cache)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        until_served(server, NAME)


# --- A clock that jumps -------------------------------------------------------------------------------------------


def faked_clock(control: Path) -> dict[str, str]:
    """What makes a process read the time of day that *control* says, while its monotonic clock stays the machine's."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not found:
        assert os.environ.get("CI") != "true", "the Debian package faketime is missing"
        pytest.skip("needs the Debian package faketime")
    return {
        "LD_PRELOAD": str(found[0]),
        "FAKETIME_TIMESTAMP_FILE": str(control),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DONT_RESET": "1",
    }


def test_clock_that_jumps_by_years_changes_nothing_but_the_times_shown(models_dir: Path, tmp_path: Path) -> None:
    control = tmp_path / "clock"
    control.write_text("+0\n")
    years, uptimes = [], []
    with running_server(
        **faked_clock(control),
        MODELS_DIR=str(models_dir),
        REQUIRED_MODELS="tiny/one,tiny/troubled",
        CLEANUP_INTERVAL="0.01",
    ) as server:
        for number, jump in enumerate(("+0", "+10y", "-10y", "+0")):
            control.write_text(f"{jump}\n")
            assert serves(server, "tiny/one")
            assert serves(server, "tiny/troubled")
            problem(ask(server, "slow", "tiny/troubled", timeout_s=0.1), 504, "deadline-exceeded")
            problem(ask(server, "one", "tiny/large", request_id=f"jump-{number}"), 503, "model-unavailable")
            years.append(int(server.wait_for_request(f"jump-{number}")["timestamp"][:4]))
            uptimes.append(httpx.get(f"{server.url}/health").json()["uptime_seconds"])
            assert live(server) == (200, {"status": "live"})
        events = [event["event"] for event in server.events]
    assert [year - years[0] for year in years[1:3]] == [10, -10]
    assert 0 < uptimes[0] < uptimes[1] < uptimes[2] < uptimes[3] < PATIENCE_S
    assert events.count("model_loaded") == 2  # no model was dropped for its age, ten years on
    assert events.count("model_load_failed") == 1  # and the pause after a failure was kept
    assert events.count("lane_stuck") == 0
