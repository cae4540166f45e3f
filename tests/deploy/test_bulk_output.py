"""A folder has one job at a time, a job resumes only with the same options, and files appear only when complete."""

import errno
import json
import os
from pathlib import Path

import pytest

from deploy.ray.bulk_inputs import InputError, Unit
from deploy.ray.bulk_output import MANIFEST, begin_or_resume, lock_folder, split_finished, unit_rows_of

JOB = {"model": "a", "options": {"dtype": "float32"}, "input": [{"path": "x", "size_bytes": 7}]}


def test_same_job_is_resumed(tmp_path: Path) -> None:
    assert begin_or_resume(tmp_path, JOB) is False
    assert begin_or_resume(tmp_path, JOB) is True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "b"}, 'model was "a" and is "b"'),
        ({"options": {"dtype": "int8"}}, 'options dtype was "float32" and is "int8"'),
        ({"input": [{"path": "x", "size_bytes": 8}]}, r"input\[0\] size_bytes was 7 and is 8"),
        ({"input": []}, "input was a list of 1 and is a list of 0"),
    ],
)
def test_different_job_is_refused_with_the_differences(change: dict[str, object], message: str, tmp_path: Path) -> None:
    begin_or_resume(tmp_path, JOB)
    with pytest.raises(InputError, match=f"a different job.*{message}.*or another folder"):
        begin_or_resume(tmp_path, JOB | change)


def test_failed_job_may_be_resumed_with_bad_rows_skipped_but_not_the_reverse(tmp_path: Path) -> None:
    fail, skip = JOB | {"on bad row": "fail"}, JOB | {"on bad row": "skip"}
    begin_or_resume(tmp_path, fail)
    assert begin_or_resume(tmp_path, skip) is True
    with pytest.raises(InputError, match='on bad row was "skip" and is "fail"'):
        begin_or_resume(tmp_path, fail)


def test_resumed_job_keeps_the_size_of_its_units(tmp_path: Path) -> None:
    assert unit_rows_of(tmp_path) is None
    begin_or_resume(tmp_path, JOB | {"rows per file": 77})
    assert unit_rows_of(tmp_path) == 77


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_manifest_that_cannot_be_read_is_reported(content: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(content)
    for read in (unit_rows_of, lambda folder: begin_or_resume(folder, JOB)):
        with pytest.raises(InputError, match=rf"{MANIFEST} cannot be read"):
            read(tmp_path)


def test_folder_with_other_files_is_refused_and_not_changed(tmp_path: Path) -> None:
    (tmp_path / "precious.csv").touch()
    with pytest.raises(InputError, match=r"contains other files, such as precious\.csv"):
        begin_or_resume(tmp_path, JOB)
    assert [file.name for file in tmp_path.iterdir()] == ["precious.csv"]


def test_second_job_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with lock_folder(folder), pytest.raises(InputError, match="another job is writing"), lock_folder(folder):
        pass
    with lock_folder(folder):
        pass


def test_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"), lock_folder(tmp_path / "file"):
        pass


def test_units_without_a_complete_file_remain(tmp_path: Path) -> None:
    units = [Unit(number, "x", number, number + 1) for number in range(3)]
    (tmp_path / "part-000001.parquet").touch()
    unfinished = tmp_path / ".part-000002.parquet.0123.unfinished"
    unfinished.touch()
    assert split_finished(tmp_path, units) == ([units[0], units[2]], [units[1]])
    assert not unfinished.exists()


def test_file_is_on_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power failure, a job with an empty manifest could not be resumed."""
    synced: list[object] = []

    def fsync(descriptor: int) -> None:
        assert not (tmp_path / MANIFEST).exists()
        synced.append(json.loads(Path(f"/proc/self/fd/{descriptor}").read_text(encoding="utf-8")))

    monkeypatch.setattr(os, "fsync", fsync)
    begin_or_resume(tmp_path, JOB)
    assert synced == [JOB]


def test_full_disk_is_reported_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(InputError, match=rf"{MANIFEST} cannot be written \(No space left on device\)"):
        begin_or_resume(tmp_path, JOB)
    assert list(tmp_path.iterdir()) == []
