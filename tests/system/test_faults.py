"""Faults in real server processes: a hanging model, missing memory, full disks, deleted files, jumping clocks."""

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


def embed(
    server: ServerProcess, text: str, model: str, *, timeout_s: float = PATIENCE_S, request_id: str = "some"
) -> httpx.Response:
    return httpx.post(
        f"{server.url}/embed",
        json={"text": text, "model_name": model},
        headers={"X-Request-Timeout": str(timeout_s), "X-Request-ID": request_id},
        timeout=PATIENCE_S,
    )


def serves(server: ServerProcess, model: str) -> bool:
    return embed(server, "one two", model).status_code == 200


def wait_until_served(server: ServerProcess, model: str) -> None:
    """Repeat a request until the pause after a failed load is over."""
    while (response := embed(server, "one", model)).status_code != 200:
        detail_of(response, 503, "model-unavailable")


def detail_of(response: httpx.Response, status: int, code: str) -> str:
    """Check that *response* is this problem, and return its detail."""
    problem: dict[str, Any] = response.json()
    assert (response.status_code, problem["code"]) == (status, code), response.text
    return str(problem["detail"])


def live(server: ServerProcess) -> tuple[int, dict[str, Any]]:
    response = httpx.get(f"{server.url}/health/live", timeout=PATIENCE_S)
    return response.status_code, response.json()


def events_of(server: ServerProcess, name: str) -> list[dict[str, Any]]:
    return [event for event in server.events if event["event"] == name]


# --- Model runs that hang, and memory that runs out -------------------------------------------------------------------


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    TinyModel("tiny/one").write(folder)
    TinyModel("tiny/troubled", words=TROUBLE_WORDS, graph=troubled, max_tokens=64).write(folder)
    TinyModel("tiny/large", words=PROBE_WORDS, graph=too_large, max_tokens=64).write(folder)
    return folder


@pytest.fixture(scope="module")
def server(models_dir: Path) -> Iterator[ServerProcess]:
    """A server of two lanes, in which a run of more than 0.2 s counts as stuck."""
    with running_server(
        MODELS_DIR=str(models_dir),
        REQUIRED_MODELS="tiny/one,tiny/troubled",
        THREAD_POOL_WORKERS="2",
        LANE_STUCK_SECONDS="0.2",
    ) as server:
        yield server


def test_missing_memory_during_a_load_leaves_other_models_serving(server: ServerProcess) -> None:
    for number in range(3):
        response = embed(server, "one", "tiny/large", request_id=f"large-{number}")
        assert "there is not enough memory for it" in detail_of(response, 503, "model-unavailable")
        assert 1 <= int(response.headers["retry-after"]) <= 30
        assert serves(server, "tiny/one")
    server.wait_for_request("large-2")
    failures = events_of(server, "model_load_failed")
    assert [event["model"] for event in failures] == ["tiny/large"]  # the next attempt comes after a pause
    cached = httpx.get(f"{server.url}/health").json()["cache_info"]["cached_models"]
    assert sorted(cached) == ["tiny/one", "tiny/troubled"]


def test_missing_memory_during_a_run_fails_that_request_only(server: ServerProcess) -> None:
    detail_of(embed(server, "hungry", "tiny/troubled"), 500, "inference-failed")
    assert serves(server, "tiny/troubled")
    assert live(server) == (200, {"status": "live"})


def test_service_is_live_again_when_a_stuck_run_ends(server: ServerProcess) -> None:
    with ThreadPoolExecutor(1) as thread:
        slow = thread.submit(embed, server, "slow", "tiny/troubled")
        stuck, freed = server.wait_for("lane_stuck"), server.wait_for("lane_freed")
        assert slow.result().status_code == 200
    assert (freed["model"], freed["lane"]) == (stuck["model"], stuck["lane"])
    assert freed["seconds"] >= stuck["seconds"]
    assert live(server) == (200, {"status": "live"})


def test_run_that_hangs_is_reported_while_other_lanes_serve_and_does_not_block_shutdown(server: ServerProcess) -> None:
    """The last test of this server: it is stopped here."""
    assert live(server) == (200, {"status": "live"})
    earlier = len(events_of(server, "lane_stuck"))
    with ThreadPoolExecutor(1) as thread:
        hanging = thread.submit(embed, server, "hang", "tiny/troubled", timeout_s=1.0)
        event = server.wait_for("lane_stuck", times=earlier + 1)
        assert (event["level"], event["model"], event["texts"]) == ("error", "tiny/troubled", 1)
        status, body = live(server)
        assert (status, body["status"]) == (503, "stuck")
        [stuck] = body["stuck"]
        assert stuck["model_name"] == "tiny/troubled"
        assert stuck["seconds"] > 0.2
        detail_of(hanging.result(), 504, "deadline-exceeded")
    assert serves(server, "tiny/one")
    assert serves(server, "tiny/troubled")
    assert httpx.get(f"{server.url}/health/ready").status_code == 200
    queue = httpx.get(f"{server.url}/metrics").json()["queue"]
    assert (queue["lanes_stuck"], queue["lanes_died"]) == (1, 0)
    server.process.terminate()
    assert server.wait_for_end() == 0
    assert "Traceback" not in server.log
    assert len(events_of(server, "lane_stuck")) == earlier + 1
    assert server.wait_for("lane_left_running")


# --- Files that disappear, and disks that are full --------------------------------------------------------------------


LARGE_WORDS = (*PROBE_WORDS, *(f"word{number}" for number in range(2000)))
"""They make a model of about 3 MB."""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = TinyModel("tiny", dim=DIM, words=LARGE_WORDS).write(tmp_path_factory.mktemp("repository"))
    names = ["config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
    files = {name: (folder / name).read_bytes() for name in names}
    with serving(REPOSITORY, {**files, "model_optimized.onnx": (folder / "model.onnx").read_bytes()}) as hub:
        yield hub


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of `small_server`: `models`, and `disk/cache` for downloads."""
    folder = tmp_path_factory.mktemp("folders")
    TinyModel("tiny/one").write(folder / "models")
    TinyModel("tiny/two").write(folder / "models")
    TinyModel("tiny/required").write(folder / "models")
    (folder / "disk" / "cache").mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def small_server(hub: Hub, folders: Path) -> Iterator[ServerProcess]:
    """A server that keeps one model in memory besides the required one, and hardly waits after a failed load."""
    with running_server(
        **{name: value for name, value in hub_environment(HF_ENDPOINT=hub.url).items() if name.startswith("HF_")},
        HUB_CACHE_DIR=str(folders / "disk" / "cache"),
        MODELS_DIR=str(folders / "models"),
        REQUIRED_MODELS="tiny/required",
        MAX_CACHED_MODELS="2",
        MODEL_RETRY_PAUSE="0.05",
    ) as server:
        yield server
        assert str(folders) not in server.log
        assert "Traceback" not in server.log


def test_deleted_or_broken_model_folder_matters_only_at_the_next_load(
    small_server: ServerProcess, folders: Path
) -> None:
    folder, backup = folders / "models" / "tiny--one", folders / "backup"
    wait_until_served(small_server, "tiny/one")
    shutil.move(folder, backup)
    assert serves(small_server, "tiny/one")
    assert serves(small_server, "tiny/two")  # evicts tiny/one
    detail = detail_of(embed(small_server, "one", "tiny/one"), 503, "model-unavailable")
    assert "is missing" in detail
    assert str(folders) not in detail
    assert serves(small_server, "tiny/two")
    shutil.move(backup, folder)
    wait_until_served(small_server, "tiny/one")
    for file in folder.glob("*"):
        file.write_bytes(b"garbage")
    assert serves(small_server, "tiny/one")
    assert serves(small_server, "tiny/two")
    assert "is not a complete ONNX file" in detail_of(embed(small_server, "one", "tiny/one"), 503, "model-unavailable")
    assert serves(small_server, "tiny/two")
    shutil.rmtree(folder)
    TinyModel("tiny/one").write(folders / "models")
    wait_until_served(small_server, "tiny/one")


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a file system of 1 MB at *folder*. Needs root, and does not work in every container."""
    mount = ["/bin/mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not Path(mount[0]).exists() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("cannot mount a file system here; the test with a limit on the size of files runs everywhere")
    try:
        yield
    finally:
        subprocess.run(["/bin/umount", "--lazy", str(folder)], check=True)


def check_download_fails(server: ServerProcess, cause: str, cache: Path) -> None:
    for _ in range(2):  # the second attempt must not use what the first has left behind
        detail = detail_of(embed(server, "one", NAME), 503, "model-unavailable")
        assert cause in detail
        assert serves(server, "tiny/two")
    assert list(cache.glob("models--*/snapshots/*/*.onnx")) == []


def test_model_that_does_not_fit_on_the_disk_is_served_once_there_is_space(
    small_server: ServerProcess, folders: Path
) -> None:
    disk = folders / "disk"
    wait_until_served(small_server, "tiny/two")  # evicts the downloaded model of another test
    with small_disk(disk):
        check_download_fails(small_server, "its download needs 220 MB, and the disk has 1 MB left", disk / "cache")
        subprocess.run(["/bin/mount", "-o", "remount,size=400m", str(disk)], check=True)  # of which it uses 3 MB
        wait_until_served(small_server, NAME)


def test_download_above_the_limit_on_the_size_of_files_fails_until_the_disk_accepts_it(
    small_server: ServerProcess, folders: Path
) -> None:
    cache, pid = folders / "disk" / "cache", small_server.process.pid
    wait_until_served(small_server, "tiny/two")  # evicts the downloaded model of another test
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
    check_download_fails(small_server, f"the cache cannot be written ({os.strerror(errno.EFBIG)})", cache)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    wait_until_served(small_server, NAME)


# --- A clock that jumps -----------------------------------------------------------------------------------------------


def fake_clock(control: Path) -> dict[str, str]:
    """Return the environment of a process whose time of day follows *control*; its monotonic clock stays real."""
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


def test_clock_that_jumps_by_years_changes_only_the_times_shown(models_dir: Path, tmp_path: Path) -> None:
    control = tmp_path / "clock"
    control.write_text("+0\n")
    years, uptimes = [], []
    with running_server(
        **fake_clock(control),
        MODELS_DIR=str(models_dir),
        REQUIRED_MODELS="tiny/one,tiny/troubled",
        CLEANUP_INTERVAL="0.01",
    ) as server:
        for number, jump in enumerate(("+0", "+10y", "-10y", "+0")):
            control.write_text(f"{jump}\n")
            assert serves(server, "tiny/one")
            assert serves(server, "tiny/troubled")
            if jump != "+0":
                detail_of(embed(server, "slow", "tiny/troubled", timeout_s=0.1), 504, "deadline-exceeded")
            detail_of(embed(server, "one", "tiny/large", request_id=f"jump-{number}"), 503, "model-unavailable")
            years.append(int(server.wait_for_request(f"jump-{number}")["timestamp"][:4]))
            uptimes.append(httpx.get(f"{server.url}/health").json()["uptime_seconds"])
            assert live(server) == (200, {"status": "live"})
    assert [year - years[0] for year in years[1:3]] == [10, -10]
    assert 0 < uptimes[0] < uptimes[1] < uptimes[2] < uptimes[3] < PATIENCE_S
    assert len(events_of(server, "model_loaded")) == 2  # no model was evicted for its age
    assert len(events_of(server, "model_load_failed")) == 1  # the pause after a failure was kept
    assert events_of(server, "lane_stuck") == []
