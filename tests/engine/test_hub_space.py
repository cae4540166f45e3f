"""Space in the hub cache: real files, a disk whose size a test sets, and what is refused."""

import os
import time
from pathlib import Path

import pytest

from engine.catalog import Model
from engine.errors import ModelUnavailableError
from engine.hub_locks import locked
from engine.hub_space import STALE_S, HubSpace, size_of

MB = 1_000_000


def model(size_mb: int, name: str = "some/model") -> Model:
    return Model(name, 4, None, size_mb * MB, 1, description="", license="", source="hub")


def write(path: Path, size_mb: int) -> Path:
    """Write a file that takes no space on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size_mb * MB)
    return path


def space(cache: Path, *, max_mb: int | None = None, total_mb: int = 1000, free_mb: int = 1000) -> HubSpace:
    sizes = total_mb * MB, (total_mb - free_mb) * MB, free_mb * MB
    return HubSpace(cache, max_bytes=None if max_mb is None else max_mb * MB, disk_usage=lambda _: sizes)


def refusal(of: HubSpace, wanted: Model, folder: Path, *, may_fill_disk: bool = False) -> str:
    with pytest.raises(ModelUnavailableError) as refused, of.reserve(wanted, folder, may_fill_disk=may_fill_disk):
        pass
    return refused.value.cause


def test_cache_may_grow_to_its_limit_and_not_beyond(tmp_path: Path) -> None:
    write(tmp_path / "models--a" / "blobs" / "1", 60)
    limited, folder = space(tmp_path, max_mb=100), tmp_path / "models--b"
    with limited.reserve(model(40), folder):
        pass
    assert refusal(limited, model(41), folder) == (
        "its download needs 41 MB, and 60 MB of the 100 MB that HUB_CACHE_MAX_SIZE allows are in use"
    )


def test_downloads_under_way_are_counted_in_full_until_they_end(tmp_path: Path) -> None:
    limited = space(tmp_path, max_mb=100)
    first, second = tmp_path / "models--a", tmp_path / "models--b"
    with limited.reserve(model(60), first):
        assert "60 MB of the 100 MB" in refusal(limited, model(41), second)
        write(first / "blobs" / "1.incomplete", 30)  # half of it is there: it is not counted twice
        with limited.reserve(model(40), second):
            assert "100 MB of the 100 MB" in refusal(limited, model(1), tmp_path / "models--c")
        write(first / "blobs" / "2", 50)  # it is larger than its card states
        assert "80 MB of the 100 MB" in refusal(limited, model(21), second)
    assert "80 MB" in refusal(limited, model(21), second)


def test_failed_download_gives_its_reservation_back(tmp_path: Path) -> None:
    limited = space(tmp_path, max_mb=100)
    with pytest.raises(OSError, match="cut"), limited.reserve(model(100), tmp_path / "models--a"):
        raise OSError("cut")
    with limited.reserve(model(100), tmp_path / "models--a"):
        pass


def test_without_a_limit_a_tenth_of_the_disk_stays_free(tmp_path: Path) -> None:
    unlimited, folder = space(tmp_path, free_mb=300), tmp_path / "models--a"
    with unlimited.reserve(model(200), folder):
        assert "has 100 MB left" in refusal(unlimited, model(1), tmp_path / "models--b")
    assert refusal(unlimited, model(201), folder) == (
        "its download needs 201 MB, and the disk has 300 MB left, of which 100 MB stay free unless "
        "HUB_CACHE_MAX_SIZE is set"
    )


def test_operators_models_may_fill_the_disk_and_not_more(tmp_path: Path) -> None:
    unlimited, folder = space(tmp_path, free_mb=50), tmp_path / "models--a"
    with unlimited.reserve(model(50), folder, may_fill_disk=True):
        pass
    cause = refusal(unlimited, model(51), folder, may_fill_disk=True)
    assert cause == "its download needs 51 MB, and the disk has 50 MB left"
    assert "50 MB left" in refusal(space(tmp_path, max_mb=900, free_mb=50), model(51), folder)


def test_disk_that_cannot_be_measured_refuses_nothing(tmp_path: Path) -> None:
    def fail(_: Path) -> tuple[int, int, int]:
        raise OSError

    for disk_usage in (fail, lambda _: (0, 0, 0)):  # some network file systems report zeros
        with HubSpace(tmp_path, max_bytes=None, disk_usage=disk_usage).reserve(model(1), tmp_path / "models--a"):
            pass


def test_size_counts_each_file_once_and_no_links(tmp_path: Path) -> None:
    blob = write(tmp_path / "models--a" / "blobs" / "1", 5)
    write(tmp_path / "models--a" / "blobs" / "2.incomplete", 3)
    snapshot = tmp_path / "models--a" / "snapshots" / "x"
    snapshot.mkdir(parents=True)
    (snapshot / "model.onnx").symlink_to(blob)
    (snapshot / "copy.onnx").hardlink_to(blob)
    (snapshot / "gone.onnx").symlink_to(tmp_path / "gone")
    assert size_of(tmp_path) == 8 * MB
    assert size_of(tmp_path / "missing") == 0


def test_what_a_killed_process_left_of_its_download_is_deleted(tmp_path: Path) -> None:
    blobs = tmp_path / "models--a" / "blobs"
    left, under_way, whole = (write(blobs / name, 60) for name in ("1.ab.incomplete", "2.cd.incomplete", "3"))
    old_s = time.time() - STALE_S - 60
    for path in (left, whole):
        os.utime(path, (old_s, old_s))
    with space(tmp_path, max_mb=200).reserve(model(80), tmp_path / "models--b"):
        assert sorted(path.name for path in blobs.iterdir()) == [under_way.name, whole.name]


def test_folder_that_does_not_exist_yet_is_empty(tmp_path: Path) -> None:
    cache = tmp_path / "not" / "yet"
    with HubSpace(cache, max_bytes=MB).reserve(model(1), cache / "models--a"):
        assert not cache.exists()


def test_downloads_of_other_processes_count_until_they_end(tmp_path: Path) -> None:
    """The lock of a download belongs to an open file, so two of this process are as those of two processes."""
    ours, theirs = space(tmp_path, max_mb=100), space(tmp_path, max_mb=100)
    folder = tmp_path / "models--a"
    with locked(tmp_path, folder.name) as lock, theirs.reserve(model(60), folder, lock=lock):
        write(folder / "blobs" / "1.incomplete", 30)
        assert "60 MB of the 100 MB" in refusal(ours, model(41), tmp_path / "models--b")
        with ours.reserve(model(40), tmp_path / "models--b"):
            assert "100 MB of the 100 MB" in refusal(ours, model(1), tmp_path / "models--c")
    assert "30 MB of the 100 MB" in refusal(ours, model(71), tmp_path / "models--b")
