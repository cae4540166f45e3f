"""Real services that start where something is missing: one clear line and an exit code, or a warning and service."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from engine.memory_estimate import MIN_PROCESS_BYTES, PROCESS_BYTES
from tests.support.commands import HUB_MODEL, NO_HUB
from tests.support.servers import ServerProcess
from tests.support.tiny import TinyModel

pytestmark = pytest.mark.timeout(120)

LIMITED = """
import os, pathlib, main
from functools import partial
from assembly import start_checks
start_checks.memory_limit = partial(start_checks.memory_limit, cgroup=pathlib.Path(os.environ["LIMITS"]))
raise SystemExit(main.serve_forever())
"""
BESIDE_AN_ENV_FILE = """
import os, pathlib, config
config.ENV_FILE = pathlib.Path(os.environ["ENV_FOLDER"]) / ".env"
import main
raise SystemExit(main.serve_forever())
"""
WITHOUT_RIGHTS = """
import os, sys
drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner,-chown"] if os.geteuid() == 0 else []
os.execvp([*drop, sys.executable][0], [*drop, sys.executable, "main.py"])
"""
"""Root may write everywhere, but for its capabilities."""


@contextmanager
def started(code: str, models: Path, **settings: str) -> Iterator[ServerProcess]:
    given = {"MODELS_DIR": str(models), "REQUIRED_MODELS": "tiny/one", "HF_ENDPOINT": NO_HUB}
    server = ServerProcess({**given, **settings}, command=("-c", code))
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    TinyModel("tiny/one").write(folder)
    return folder


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("needs setpriv (Debian: util-linux), as root may write everywhere")
    folder = tmp_path / "hub"
    folder.mkdir(mode=0o555)
    yield folder
    folder.chmod(0o755)


def last_line(server: ServerProcess) -> str:
    return server.lines[-1].strip()


def test_models_that_cannot_fit_end_the_start(models: Path, tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("50000000\n")
    with started(LIMITED, models, LIMITS=str(tmp_path)) as server:
        assert server.wait_for_end() == 1
        assert last_line(server).startswith("Cannot start: The models of REQUIRED_MODELS need at least 75 MB")
        assert "may use only 50 MB (the limit of its container or systemd unit)" in last_line(server)


def test_models_that_hardly_fit_are_loaded_with_a_warning(models: Path, tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("100000000\n")
    with started(LIMITED, models, LIMITS=str(tmp_path)) as server:
        server.wait_for("service_ready")
        told = server.wait_for("memory_tight")
        assert (told["level"], told["limit_mb"], told["needed_mb"]) == ("warning", 100, 135)
        assert "MODEL_MEMORY_BUDGET" in told["advice"]


def test_required_model_that_has_to_be_downloaded_into_a_locked_folder_ends_the_start(
    models: Path, locked: Path
) -> None:
    with started(WITHOUT_RIGHTS, models, HUB_CACHE_DIR=str(locked), REQUIRED_MODELS=HUB_MODEL) as server:
        assert server.wait_for_end() == 1
        told = last_line(server)
        assert told.startswith(f"Cannot start: The model {HUB_MODEL!r} has to be downloaded, and HUB_CACHE_DIR cannot")
        assert f"{locked} belongs to user {os.geteuid()} (mode 555)" in told
        assert "chown -R" in told


def test_locked_folder_is_only_a_warning_where_nothing_has_to_be_downloaded(models: Path, locked: Path) -> None:
    with started(WITHOUT_RIGHTS, models, HUB_CACHE_DIR=str(locked)) as server:
        server.wait_for("service_ready")
        assert str(locked) in server.wait_for("hub_cache_not_writable")["reason"]
        assert httpx.post(f"{server.url}/embed", json={"text": "one"}, timeout=60).status_code == 200
        refused = httpx.post(f"{server.url}/embed", json={"text": "one", "model_name": HUB_MODEL}, timeout=60)
        assert (refused.status_code, refused.json()["code"]) == (503, "model-unavailable")
        assert str(locked) not in refused.text


def test_privileged_port_is_told_with_another_one(models: Path) -> None:
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 1:
        pytest.skip("here each port is for everybody")
    drop = WITHOUT_RIGHTS.replace("-chown", "-chown,-net_bind_service")
    with started(drop, models, PORT="1") as server:
        assert server.wait_for_end() == 1
        assert "PORT=1: Permission denied." in last_line(server)
        assert "set PORT=8000" in last_line(server)


def test_address_of_another_machine_is_told_with_what_to_set(models: Path) -> None:
    with started("import main; raise SystemExit(main.serve_forever())", models, HOST="192.0.2.1") as server:
        assert server.wait_for_end() == 1
        assert "HOST=0.0.0.0" in last_line(server)


def test_what_a_service_takes_without_a_large_model_is_what_is_reckoned_with(models: Path) -> None:
    with started("import main; raise SystemExit(main.serve_forever())", models) as server:
        server.wait_for("service_ready")
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        kilobytes = {name: int(value) for name, value in re.findall(r"(VmRSS|RssAnon):\s+(\d+) kB", status)}
        assert 0.7 * PROCESS_BYTES < 1024 * kilobytes["VmRSS"] < 1.3 * PROCESS_BYTES
        assert 1024 * kilobytes["RssAnon"] > 0.8 * MIN_PROCESS_BYTES


def test_what_was_set_without_effect_is_told(models: Path, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("MAX_BATCH_SISE=64\nMAX_TEXT_LENGTH=100\nOTHER=1\n", encoding="utf-8")
    settings = {"REQUIRED_MODELS": "", "ENV_FOLDER": str(tmp_path)}
    with started(BESIDE_AN_ENV_FILE, tmp_path / "moddels", **settings) as server:
        event = server.wait_for("setting_unknown")
        assert (event["level"], event["name"], event["meant"]) == ("warning", "MAX_BATCH_SISE", "MAX_BATCH_SIZE")
        assert event["place"] == ".env"
        assert server.wait_for("setting_unknown", times=2)["name"] == "OTHER"
        missing = server.wait_for("models_dir_missing")
        assert (missing["level"], missing["folder"]) == ("info", "moddels")
        server.wait_for("service_ready")
        assert [event["event"] for event in server.events].count("setting_unknown") == 2
    with started(BESIDE_AN_ENV_FILE, models, **{**settings, "ENV_FOLDER": str(models)}) as server:
        server.wait_for("service_ready")
        assert not {"setting_unknown", "models_dir_missing"} & {event["event"] for event in server.events}
