from pathlib import Path

from cli.surroundings import free_disk_bytes


def test_free_space_is_that_of_where_a_folder_would_be(tmp_path: Path) -> None:
    assert free_disk_bytes(tmp_path / "a" / "b")
