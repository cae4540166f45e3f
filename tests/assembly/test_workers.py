"""What the supervisor of workers imports, and what it does with changed settings."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from assembly.workers import new_plan
from config import Settings, SettingsError, load_settings
from serving.rolling_replacement import PlanError
from tests.support.servers import ROOT, environment
from tests.support.watched_log import WatchedLog

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="one process on Windows")


def settings(**values: Any) -> Settings:
    return load_settings(_env_file=None, **values)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[WatchedLog]:
    log = WatchedLog()
    monkeypatch.setattr("assembly.workers._set_up_log", lambda _: structlog.configure(processors=[log]))
    before = structlog.get_config()["processors"]
    structlog.configure(processors=[log])
    yield log
    structlog.configure(processors=before)


def test_supervisor_imports_neither_the_app_nor_the_models() -> None:
    script = "import sys, assembly.workers; print(sorted(HEAVY & set(sys.modules)))"
    heavy = {"litestar", "uvicorn", "fastembed", "onnxruntime", "numpy", "tokenizers", "huggingface_hub", "redis"}
    done = subprocess.run(
        [sys.executable, "-c", script.replace("HEAVY", repr(heavy))],
        cwd=ROOT,
        env=environment({}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


def test_changed_settings_of_workers_are_used(log: WatchedLog) -> None:
    new = settings(shutdown_timeout=7, lane_stuck_seconds=5)
    plan = new_plan(settings(workers=1), 1, read=lambda: new)
    assert (plan.drain_s, plan.stuck_s) == (7, 5)
    assert log.entries == []


def test_changed_settings_of_the_supervisor_are_reported(log: WatchedLog) -> None:
    new = settings(host="127.0.0.1", port=9000)
    new_plan(settings(), 2, read=lambda: new)
    found = [(entry["setting"], entry["running"], entry["wanted"]) for entry in log.of("restart_needed")]
    assert found == [("HOST", "0.0.0.0", "127.0.0.1"), ("PORT", 8000, 9000), ("WORKERS", 2, 1)]  # noqa: S104


def test_settings_that_are_not_allowed_are_no_plan(log: WatchedLog) -> None:
    def read() -> Settings:
        message = "PORT=x is not allowed"
        raise SettingsError(message)

    with pytest.raises(PlanError, match="PORT=x is not allowed"):
        new_plan(settings(), 2, read=read)
    with pytest.raises(PlanError, match="WORKERS=64 is not allowed"):
        new_plan(settings(), 2, read=lambda: settings(workers=64))
    assert log.entries == []
