import os
from pathlib import Path

import pytest

from host.folder_permissions import nearest_existing, why_not_writable


def test_folder_that_does_not_exist_yet_is_judged_by_where_it_would_be(tmp_path: Path) -> None:
    assert nearest_existing(tmp_path / "a" / "b") == tmp_path
    assert why_not_writable(tmp_path / "a" / "b") is None


def test_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert why_not_writable(tmp_path / "file" / "cache") == f"{tmp_path / 'file'} is not a folder"


def test_folder_of_somebody_else_is_told_with_owner_mode_and_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o755)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may do everything, and the tests may be root's
    monkeypatch.setattr(os, "geteuid", lambda: 10001)
    told = why_not_writable(tmp_path) or ""
    owner = tmp_path.stat().st_uid
    assert f"{tmp_path} belongs to user {owner} (mode 755)" in told
    assert f"runs as user 10001; run `chown -R 10001 {tmp_path}`" in told


def test_read_only_file_system_is_told_as_one() -> None:
    """/proc/sys and /sys are read-only in most containers; where none is, there is nothing to look at."""
    for place in map(Path, ("/sys", "/proc/sys")):
        if place.is_dir() and os.statvfs(place).f_flag & os.ST_RDONLY:
            assert "is read-only" in (why_not_writable(place) or "")
