"""Checks before the required models are loaded: what cannot work ends the start, and what may fail later is logged."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

import config
from assembly import start_checks
from assembly.catalog import open_catalog
from assembly.lane_plan import plan_lanes
from engine.memory_estimate import MIN_PROCESS_BYTES, PROCESS_BYTES
from host.memory import memory_limit
from tests.support.apps import settings_of
from tests.support.commands import HUB_MODEL
from tests.support.servers import NO_HUB, ServerProcess
from tests.support.tiny import TinyModel

WITHOUT_RIGHTS = """
import os, sys
drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner,-chown"] if os.geteuid() == 0 else []
os.execvp([*drop, sys.executable][0], [*drop, sys.executable, "main.py"])
"""
"""Starts the service without the capabilities by which root writes into every folder."""


@contextmanager
def started(models: Path, *, command: tuple[str, ...] = ("main.py",), **settings: str) -> Iterator[ServerProcess]:
    given = {"MODELS_DIR": str(models), "REQUIRED_MODELS": "tiny/one", "HF_ENDPOINT": NO_HUB}
    server = ServerProcess({**given, **settings}, command=command)
    try:
        yield server
    finally:
        server.stop()


def why_not_here(models: Path, hub: Path) -> str | None:
    settings = settings_of(MODELS_DIR=str(models), REQUIRED_MODELS="tiny/one", HUB_CACHE_DIR=str(hub))
    required = [open_catalog(settings).get("tiny/one")]
    return start_checks.why_not_here(settings, required, plan_lanes(settings, cores=2))


@pytest.fixture
def limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is read in the place of /sys/fs/cgroup."""
    monkeypatch.setattr(start_checks, "memory_limit", partial(memory_limit, cgroup=tmp_path))
    return tmp_path


def test_folder_that_cannot_be_loaded_is_logged_with_what_to_change(tmp_path: Path) -> None:
    for name in ("acme/whole", "acme/pointer", "acme/missing"):
        TinyModel(name).write(tmp_path)
    (tmp_path / "acme--pointer" / "model.onnx").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "acme--missing" / "tokenizer.json").unlink()
    with capture_logs() as events:
        start_checks.log_unusable_folders(open_catalog(settings_of(MODELS_DIR=str(tmp_path))).models)
    reasons = {event["model"]: event["reason"] for event in events if event["event"] == "model_folder_unusable"}
    assert set(reasons) == {"acme/pointer", "acme/missing"}
    assert "git lfs pull" in reasons["acme/pointer"]
    assert "save it with" in reasons["acme/missing"]


def test_models_that_cannot_fit_into_memory_end_the_start(limits: Path, tiny_models: Path) -> None:
    (limits / "memory.max").write_text("50000000\n")
    reason = why_not_here(tiny_models, limits)
    assert reason is not None
    assert reason.startswith("The models of REQUIRED_MODELS need at least 65 MB of memory")
    assert "may use only 50 MB (the limit of its container or systemd unit)" in reason


def test_models_that_hardly_fit_are_loaded_with_a_warning(limits: Path, tiny_models: Path) -> None:
    (limits / "memory.max").write_text("170000000\n")
    with capture_logs() as events:
        assert why_not_here(tiny_models, limits) is None
    [event] = events
    assert (event["event"], event["log_level"], event["limit_mb"], event["needed_mb"]) == (
        "memory_tight",
        "warning",
        170,
        116 + 64,
    )
    assert "RESULT_CACHE_MB" in event["advice"]


def test_settings_without_effect_are_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "ENV_FILE", tmp_path / ".env")
    (tmp_path / ".env").write_text("MAX_BATCH_SISE=64\nMAX_TEXT_LENGTH=100\nOTHER=1\n", encoding="utf-8")
    with capture_logs() as events:
        start_checks.log_settings_without_effect(settings_of(MODELS_DIR=str(tmp_path / "moddels")))
        start_checks.log_settings_without_effect(settings_of(MODELS_DIR=str(tmp_path)))
    facts = [(event["log_level"], event["event"], event.get("name"), event.get("meant")) for event in events]
    mistyped = [
        ("warning", "setting_unknown", "MAX_BATCH_SISE", "MAX_BATCH_SIZE"),
        ("warning", "setting_unknown", "OTHER", None),
    ]
    assert facts == [*mistyped, ("info", "models_dir_missing", None, None), *mistyped]
    assert (events[0]["place"], events[2]["folder"]) == (".env", "moddels")


@pytest.mark.parametrize(
    ("settings", "is_open"),
    [
        pytest.param({}, True, id="every address"),
        pytest.param({"HOST": "::"}, True, id="every IPv6 address"),
        pytest.param({"HOST": "192.0.2.1"}, True, id="an address of the network"),
        pytest.param({"HOST": "127.0.0.1"}, False, id="this machine"),
        pytest.param({"HOST": "::1"}, False, id="this machine, IPv6"),
        pytest.param({"ALLOWED_MODELS": "tiny/one"}, False, id="list of models"),
        pytest.param({"API_KEYS": "somebody:some-key-of-32-characters-or-more"}, False, id="key"),
    ],
)
def test_list_of_models_is_recommended_to_a_service_that_is_open_to_the_network(
    settings: dict[str, str], *, is_open: bool
) -> None:
    with capture_logs() as events:
        start_checks.log_open_catalog(settings_of(REQUIRED_MODELS="tiny/one", **settings))
    assert [event["event"] for event in events] == ["models_open"] * is_open
    if is_open:
        assert events[0]["log_level"] == "warning"
        assert "ALLOWED_MODELS" in events[0]["advice"]


# --- In a process -------------------------------------------------------------------------------------------------


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A folder that the service cannot write."""
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("needs setpriv (Debian: util-linux), as root may write everywhere")
    folder = tmp_path / "hub"
    folder.mkdir(mode=0o555)
    yield folder
    folder.chmod(0o755)


def test_required_model_that_has_to_be_downloaded_into_a_locked_folder_ends_the_start(
    tiny_models: Path, locked: Path
) -> None:
    without_rights = ("-c", WITHOUT_RIGHTS)
    settings = {"HUB_CACHE_DIR": str(locked), "REQUIRED_MODELS": HUB_MODEL}
    with started(tiny_models, command=without_rights, **settings) as server:
        assert server.wait_for_end() == 1
        line = server.lines[-1].strip()
    assert line.startswith(f"Cannot start: The model {HUB_MODEL!r} has to be downloaded, and HUB_CACHE_DIR cannot")
    assert f"{locked} belongs to user {os.geteuid()} (mode 555)" in line
    assert "chown -R" in line


def test_locked_folder_is_only_a_warning_if_nothing_has_to_be_downloaded(tiny_models: Path, locked: Path) -> None:
    with started(tiny_models, command=("-c", WITHOUT_RIGHTS), HUB_CACHE_DIR=str(locked)) as server:
        server.wait_for("service_ready")
        assert str(locked) in server.wait_for("hub_cache_not_writable")["reason"]
        assert httpx.post(f"{server.url}/embed", json={"text": "one"}, timeout=60).status_code == 200
        rejected = httpx.post(f"{server.url}/embed", json={"text": "one", "model_name": HUB_MODEL}, timeout=60)
        assert (rejected.status_code, rejected.json()["code"]) == (503, "model-unavailable")
        assert str(locked) not in rejected.text


def test_estimate_of_the_memory_of_a_service_with_a_tiny_model_is_right(tiny_models: Path) -> None:
    with started(tiny_models) as server:
        server.wait_for("service_ready")
        status = Path(f"/proc/{server.process.pid}/status").read_text()
    kilobytes = {name: int(value) for name, value in re.findall(r"(VmRSS|RssAnon):\s+(\d+) kB", status)}
    assert 0.7 * PROCESS_BYTES < 1024 * kilobytes["VmRSS"] < 1.3 * PROCESS_BYTES
    assert 1024 * kilobytes["RssAnon"] > 0.8 * MIN_PROCESS_BYTES
