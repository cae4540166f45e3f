"""Files are found, described and cut into the same units every time; input that cannot be used is told in one line."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deploy.ray import bulk_inputs
from deploy.ray.bulk_inputs import InputError, choose_columns, cut, describe, find_files


def write_lines(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def write_table(path: Path, **columns: list[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def test_folder_is_searched_in_order_and_hidden_names_are_passed_over(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "a/1.ndjson", ".hidden/3.jsonl", "_old/4.jsonl", "a/_5.jsonl"):
        write_lines(tmp_path / name, {"text": "x"})
    (tmp_path / "README.md").write_text("no data")
    assert [file.name for file in find_files(str(tmp_path))] == ["1.ndjson", "2.jsonl"]
    assert [file.name for file in find_files(f"{tmp_path}/b/*")] == ["2.jsonl"]
    assert [file.name for file in find_files(f"{tmp_path}/b/2.jsonl")] == ["2.jsonl"]


@pytest.mark.parametrize(
    ("names", "given", "told"),
    [
        pytest.param([], "", "names no data", id="nothing"),
        pytest.param(["a.jsonl", "b.parquet"], "", "these are both", id="both"),
        pytest.param(["a.jsonl.gz"], "a.jsonl.gz", "and not compressed", id="compressed"),
        pytest.param([], "s3://bucket/texts", "mount it as a folder", id="address"),
    ],
)
def test_input_that_is_none_is_refused(names: list[str], given: str, told: str, tmp_path: Path) -> None:
    for name in names:
        write_lines(tmp_path / name)
    with pytest.raises(InputError, match=told):
        find_files(given if "://" in given else str(tmp_path / given))


def test_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.parquet"
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(InputError, match=r"broken\.parquet cannot be read"):
        describe([path])


def test_units_cover_each_row_once_and_stay_the_same(tmp_path: Path) -> None:
    tables = [
        write_table(tmp_path / f"{name}.parquet", text=["x"] * rows) for name, rows in (("a", 5), ("b", 2), ("c", 0))
    ]
    units = cut(describe(tables), 2)
    assert [(Path(unit.path).stem, unit.start, unit.stop) for unit in units] == [
        ("a", 0, 2),
        ("a", 2, 4),
        ("a", 4, 5),
        ("b", 0, 2),
    ]
    assert [unit.number for unit in units] == [0, 1, 2, 3]
    assert units == cut(describe(tables), 2)
    assert units[3].output_name == "part-000003.parquet"


def test_json_lines_are_cut_by_bytes_into_about_so_many_rows(tmp_path: Path) -> None:
    [file] = describe([write_lines(tmp_path / "a.jsonl", *({"text": "four"} for _ in range(100)))])
    units = cut([file], 30)
    assert [unit.stop for unit in units[:-1]] == [unit.start for unit in units[1:]]
    assert (units[0].start, units[-1].stop, len(units)) == (0, file.size_bytes, 4)


def test_no_more_of_long_lines_is_looked_at_first_than_fits_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.ray.bulk_inputs.SAMPLED_BYTES", 3000)
    rows = [{"text": "x" * 1000, f"column {number}": 1} for number in range(10)]
    files = describe([write_lines(tmp_path / "a.jsonl", *rows)])
    assert choose_columns(files, "text", None).kept.names == ["text", "column 0", "column 1", "column 2"]


def test_columns_are_all_or_those_that_are_named(tmp_path: Path) -> None:
    files = describe(
        [write_lines(tmp_path / "a.jsonl", {"text": "x", "id": 1}, {"text": "y", "id": 2, "note": "late"})]
    )
    assert choose_columns(files, "text", None).kept.names == ["text", "id", "note"]
    assert choose_columns(files, "text", ["id"]).kept.names == ["id"]
    assert choose_columns(files, "text", []).kept.names == []


@pytest.mark.parametrize(
    ("text", "keep", "told"),
    [
        ("body", None, "there is no column 'body'; the input has text, id, mixed"),
        ("id", ["id"], "the column 'id' holds int64, not strings"),
        ("text", ["nope"], "there is no column 'nope'"),
        ("text", None, "the column 'mixed' has values of more than one type"),
    ],
)
def test_columns_that_cannot_be_used_are_told(text: str, keep: list[str] | None, told: str, tmp_path: Path) -> None:
    rows = [{"text": "x", "id": 1, "mixed": 1}] + (
        [{"text": "y", "id": 2, "mixed": "two"}] if "mixed' has" in told else []
    )
    with pytest.raises(InputError, match=told):
        choose_columns(describe([write_lines(tmp_path / "a.jsonl", *rows)]), text, keep)


def test_tables_of_different_columns_are_no_one_input(tmp_path: Path) -> None:
    files = [
        write_table(tmp_path / "a.parquet", text=["x"], id=[1]),
        write_table(tmp_path / "b.parquet", text=["x"], id=["1"]),
    ]
    with pytest.raises(InputError, match=r"b\.parquet has other columns than .*a\.parquet: text string, id string"):
        choose_columns(describe(files), "text", None)
    assert choose_columns(describe(files), "text", ["text"]).kept.names == ["text"]


def test_file_that_is_found_twice_is_read_once(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "sub" / "a.jsonl", {"text": "one"})
    (tmp_path / "latest.jsonl").symlink_to(file)
    assert find_files(str(tmp_path)) == [file.resolve()]


def test_compressed_file_in_a_folder_is_not_left_out_in_silence(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", {"text": "one"})
    (tmp_path / "b.jsonl.gz").write_bytes(b"")
    with pytest.raises(InputError, match=r"b\.jsonl\.gz is compressed"):
        find_files(str(tmp_path))


def test_folder_that_cannot_be_read_is_not_left_out_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines(tmp_path / "a.jsonl", {"text": "one"})
    locked = tmp_path / "locked"
    locked.mkdir()
    list_folder = os.scandir

    def scandir(path: str) -> Any:
        if Path(path) == locked:  # the tests may be root's, who may read everything
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return list_folder(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match="locked cannot be read: Permission denied"):
        find_files(str(tmp_path))


def test_first_line_that_is_long_makes_no_unit_of_the_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_inputs, "MAX_UNIT_BYTES", 10_000)
    file = write_lines(tmp_path / "a.jsonl", {"text": "x" * 9_000}, *[{"text": "one"}] * 5_000)
    units = cut(describe([file]), 1_000)
    assert {unit.stop - unit.start for unit in units[:-1]} == {10_000}


def test_two_columns_of_one_name_are_told(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table([["one"], ["a"], ["b"]], names=["text", "twice", "twice"]), file)
    with pytest.raises(InputError, match="two columns 'twice'"):
        choose_columns(describe([file]), "text", None)


def test_what_the_job_has_written_below_its_input_is_no_input(tmp_path: Path) -> None:
    file = write_table(tmp_path / "a.parquet", text=["one"])
    output = tmp_path / "out"
    write_table(output / "part-000000.parquet", text=["one"])
    assert find_files(str(tmp_path), own=output) == [file.resolve()]
    assert find_files(f"{tmp_path}/**/*.parquet", own=output) == [file.resolve()]
    mine = write_table(output / "mine.parquet", text=["one"])
    assert find_files(str(tmp_path), own=output) == [file.resolve(), mine.resolve()]
