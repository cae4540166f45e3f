"""A job goes on only with the same job; two never write to one folder; a killed run's leavings are cleared away."""

import errno
import json
import os
from pathlib import Path

import pytest

from deploy.ray.bulk_inputs import InputError, Unit
from deploy.ray.bulk_manifest import MANIFEST, begin_or_resume, sole_use, what_is_left

JOB = {"model": "a", "options": {"dtype": "float32"}, "input": [{"path": "x", "size_bytes": 7}]}


def test_same_job_is_resumed(tmp_path: Path) -> None:
    assert begin_or_resume(tmp_path, JOB) is False
    assert begin_or_resume(tmp_path, JOB) is True


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": "b"}, 'model was "a" and is "b"'),
        ({"options": {"dtype": "int8"}}, 'options dtype was "float32" and is "int8"'),
        ({"input": [{"path": "x", "size_bytes": 8}]}, r"input\[0\] size_bytes was 7 and is 8"),
        ({"input": []}, "input was a list of 1 and is a list of 0"),
    ],
)
def test_another_job_is_refused_and_says_what_differs(change: dict[str, object], told: str, tmp_path: Path) -> None:
    begin_or_resume(tmp_path, JOB)
    with pytest.raises(InputError, match=f"holds another job.*{told}.*name another folder"):
        begin_or_resume(tmp_path, JOB | change)


def test_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.csv").touch()
    with pytest.raises(InputError, match=r"has files of something else, such as precious\.csv"):
        begin_or_resume(tmp_path, JOB)
    assert [file.name for file in tmp_path.iterdir()] == ["precious.csv"]


def test_second_job_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    with (
        sole_use(tmp_path / "new"),
        pytest.raises(InputError, match="another job is writing"),
        sole_use(tmp_path / "new"),
    ):
        pass
    with sole_use(tmp_path / "new"):
        pass


def test_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written to"), sole_use(tmp_path / "file"):
        pass


def test_what_has_no_whole_file_is_left_to_do(tmp_path: Path) -> None:
    units = [Unit(number, "x", number, number + 1) for number in range(3)]
    (tmp_path / "part-000001.parquet").touch()
    unfinished = tmp_path / ".part-000002.parquet.0123.unfinished"
    unfinished.touch()
    assert what_is_left(tmp_path, units) == ([units[0], units[2]], [units[1]])
    assert not unfinished.exists()


def test_manifest_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it nobody could go on with what is there."""
    on_disk: list[object] = []

    def synced(descriptor: int) -> None:
        assert not (tmp_path / MANIFEST).exists()
        on_disk.append(json.loads(Path(f"/proc/self/fd/{descriptor}").read_text(encoding="utf-8")))

    monkeypatch.setattr(os, "fsync", synced)
    begin_or_resume(tmp_path, JOB)
    assert on_disk == [JOB]


def test_full_disk_is_told_in_a_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=rf"{MANIFEST} cannot be written \(No space left on device\)"):
        begin_or_resume(tmp_path, JOB)
    assert list(tmp_path.iterdir()) == []
