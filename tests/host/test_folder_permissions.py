"""Why a folder is not writable, and how to fix it."""

import os
from pathlib import Path

import pytest

from host.folder_permissions import nearest_existing, why_not_writable


def test_folder_that_does_not_exist_is_as_writable_as_its_nearest_parent(tmp_path: Path) -> None:
    assert nearest_existing(tmp_path / "a" / "b") == tmp_path
    assert why_not_writable(tmp_path / "a" / "b") is None


def test_file_in_place_of_a_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert why_not_writable(tmp_path / "file" / "cache") == f"{tmp_path / 'file'} is not a folder"


def test_folder_of_another_user_is_reported_with_owner_mode_and_a_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o755)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere, and the tests may run as root
    monkeypatch.setattr(os, "geteuid", lambda: 10001)
    owner = f"{tmp_path} belongs to user {tmp_path.stat().st_uid} (mode 755)"
    fix = f"but the service runs as user 10001; run `chown -R 10001 {tmp_path}`"
    assert why_not_writable(tmp_path) == f"{owner}, {fix}"


def test_read_only_file_system_is_reported() -> None:
    """/proc/sys and /sys are read-only in most containers; elsewhere this test checks nothing."""
    for path in map(Path, ("/sys", "/proc/sys")):
        if path.is_dir() and os.statvfs(path).f_flag & os.ST_RDONLY:
            assert "is read-only" in (why_not_writable(path) or "")
