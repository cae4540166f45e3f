"""The number of workers, and what each of them gets."""

import os
from pathlib import Path
from typing import Any

import pytest

from assembly.serve import connection_limits
from assembly.worker_environment import settings_environment
from assembly.worker_share import shares, worker_count
from config import Settings, SettingsError, load_settings
from host.cores import usable_cores


def settings(**values: Any) -> Settings:
    return load_settings(_env_file=None, **values)


@pytest.mark.parametrize(
    ("workers", "cores", "count"),
    [(1, 1, 1), (1, 64, 1), (2, 2, 2), (64, 64, 64), ("auto", 1, 1), ("auto", 7, 1), ("auto", 8, 2), ("auto", 64, 16)],
)
def test_number_of_workers(workers: object, cores: int, count: int) -> None:
    assert worker_count(settings(workers=workers), cores=cores) == count


@pytest.mark.parametrize(("workers", "cores", "words"), [(2, 1, "1 core;"), (9, 8, "8 cores;")])
def test_more_workers_than_cores_are_refused(workers: int, cores: int, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        worker_count(settings(workers=workers), cores=cores)


def test_windows_has_one_process() -> None:
    assert worker_count(settings(workers="auto"), cores=64, platform="win32") == 1
    with pytest.raises(SettingsError) as refused:
        worker_count(settings(workers=2), cores=64, platform="win32")
    assert str(refused.value) == (
        "WORKERS=2 is not allowed: on Windows the service runs in one process; use WORKERS=1."
    )


def test_sums_over_all_workers_are_what_the_settings_state() -> None:
    found = shares(settings(workers=3, thread_pool_workers=7, model_memory_budget="1GB", result_cache_mb=64), 3)
    assert [share.settings.thread_pool_workers for share in found] == [3, 2, 2]
    assert sum(int(share.settings.model_memory_budget or 0) for share in found) == 1_000_000_000
    assert [share.settings.result_cache_mb for share in found] == [22, 21, 21]
    assert {share.settings.workers for share in found} == {1}


def test_each_worker_has_a_lane_a_core_and_a_megabyte_of_results_at_least() -> None:
    found = shares(settings(thread_pool_workers=1, result_cache_mb=2), 4)
    assert [share.settings.thread_pool_workers for share in found] == [1] * 4
    assert [share.settings.result_cache_mb for share in found] == [1] * 4
    assert {share.settings.result_cache_mb for share in shares(settings(result_cache_mb=0), 4)} == {0}
    assert all(share.cores >= 1 for share in found)
    assert sum(share.cores for share in shares(settings(), 1)) <= usable_cores()


def test_other_settings_stay_as_they_are() -> None:
    given = settings(thread_pool_workers="auto", max_text_length=77, result_cache_mb=0)
    [share, _] = shares(given, 2)
    assert share.settings == given.model_copy(update={"workers": 1})


def test_environment_of_a_worker_has_what_the_file_sets(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("port=9000\nHOST=${ADDRESS}\nLOG_LEVEL=INFO\nDEBUG=\nREPLICAS=3\n", encoding="utf-8")
    found = settings_environment({"ADDRESS": "127.0.0.1", "log_level": "DEBUG", "PORT": "", "HOME": "/root"}, file)
    assert {name: found.get(name) for name in ("PORT", "LOG_LEVEL", "HOME", "DEBUG", "REPLICAS")} == {
        "PORT": "9000",
        "LOG_LEVEL": "DEBUG",
        "HOME": "/root",
        "DEBUG": None,
        "REPLICAS": None,
    }
    assert "log_level" not in found


def test_environment_of_a_worker_has_interpolated_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / ".env"
    file.write_text("REDIS_URL=redis://${QUOTA_HOST}/0\n", encoding="utf-8")
    monkeypatch.setenv("QUOTA_HOST", "redis.example")
    assert settings_environment(os.environ, file)["REDIS_URL"] == "redis://redis.example/0"


def test_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("this is no setting\n", encoding="utf-8")
    with pytest.raises(SettingsError, match="line 1"):
        settings_environment({}, file)


def test_bodies_in_memory_are_those_of_all_workers_together() -> None:
    given = settings(max_request_size="1MB")
    assert [connection_limits(given, workers=count).max_bodies_bytes for count in (1, 4, 64)] == [
        16_000_000,
        4_000_000,
        1_000_000,
    ]


def test_value_that_no_process_can_inherit_is_refused_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text(f"API_KEYS={'k' * (128 << 10)}\n")
    with pytest.raises(SettingsError, match=r"API_KEYS in \.env is longer .* use API_KEYS_FILE or WORKERS=1"):
        settings_environment({}, file)
