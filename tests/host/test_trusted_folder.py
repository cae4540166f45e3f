"""Folders that no other user can write, and locks between processes."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from host.trusted_folder import (
    UntrustedError,
    check_folder,
    hold_shared,
    open_folder,
    publish_folder,
    remove_folder,
    try_lock,
    write_file,
)
from tests.support.processes import killed_at_the_end
from tests.support.servers import ROOT

HOLD = """
import sys
from pathlib import Path
from host.trusted_folder import hold_shared, try_lock
held = hold_shared(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_new_folder_is_for_this_user_only_whatever_the_umask_allows(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        open_folder(tmp_path / "a" / "b")
    finally:
        os.umask(old)
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
def test_folder_that_others_may_write_is_refused(mode: int, tmp_path: Path) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(UntrustedError, match="other users can write"):
        check_folder(tmp_path)


def test_lock_is_free_again_when_its_holder_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with killed_at_the_end(holder):
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        with try_lock(path, keep=True) as is_held:
            assert not is_held
        os.close(hold_shared(path))  # shared locks do not exclude each other
        holder.kill()
        holder.wait()
        with try_lock(path, keep=True) as is_held:
            assert is_held
            with pytest.raises(FileNotFoundError):
                hold_shared(path)
    assert path.exists()


def test_lock_file_goes_with_the_lock(tmp_path: Path) -> None:
    with try_lock(tmp_path / "lock") as is_held:
        assert is_held
        with try_lock(tmp_path / "lock") as is_held_twice:
            assert not is_held_twice
        assert (tmp_path / "lock").exists()
    assert list(tmp_path.iterdir()) == []


def test_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")
    with path.open("rb") as reader:
        write_file(path, b"new content")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new content"
    assert (path.stat().st_mode & 0o777, len(list(tmp_path.iterdir()))) == (0o600, 1)


def test_folder_cannot_be_published_over_another_one(tmp_path: Path) -> None:
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with pytest.raises(OSError, match="not empty"):
        publish_folder(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "file").read_text() == "old"


def test_removed_folder_loses_its_name_at_once_and_its_files_when_nobody_uses_them(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    (folder / "record").touch()
    opened = hold_shared(folder / "record")
    remove_folder(folder, lock="record")
    [left] = tmp_path.iterdir()
    assert (left.suffix, [path.name for path in left.iterdir()]) == (".gone", ["record"])
    os.close(opened)
    remove_folder(left, lock="record")
    assert list(tmp_path.iterdir()) == []


def test_on_a_file_system_without_locks_no_lock_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    (tmp_path / "file").touch()
    monkeypatch.setattr("fcntl.flock", flock)
    for _ in range(3):  # each time with the same descriptor: it is closed
        with pytest.raises(OSError, match="locks") as failure:
            hold_shared(tmp_path / "file")
        assert failure.value.errno == errno.ENOLCK
