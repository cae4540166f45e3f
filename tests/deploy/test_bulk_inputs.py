"""Input files are found, described and split into the same units every time; bad input fails with one line."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deploy.ray import bulk_inputs
from deploy.ray.bulk_inputs import (
    InputError,
    InputFile,
    choose_columns,
    choose_unit_rows,
    describe,
    find_files,
    split_into_units,
)


def write_lines(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def write_table(path: Path, **columns: list[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def test_folder_is_searched_in_order_without_hidden_names_and_each_file_once(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "a/1.ndjson", ".hidden/3.jsonl", "_old/4.jsonl", "a/_5.jsonl"):
        write_lines(tmp_path / name, {"text": "x"})
    (tmp_path / "README.md").write_text("no data")
    (tmp_path / "latest.jsonl").symlink_to(tmp_path / "b/2.jsonl")
    assert [file.name for file in find_files(str(tmp_path))] == ["1.ndjson", "2.jsonl"]
    assert [file.name for file in find_files(f"{tmp_path}/b/*")] == ["2.jsonl"]
    assert [file.name for file in find_files(f"{tmp_path}/b/2.jsonl")] == ["2.jsonl"]


def test_own_output_below_the_input_is_not_input(tmp_path: Path) -> None:
    file = write_table(tmp_path / "a.parquet", text=["one"])
    output = tmp_path / "out"
    write_table(output / "part-000000.parquet", text=["one"])
    assert find_files(str(tmp_path), output=output) == [file.resolve()]
    assert find_files(f"{tmp_path}/**/*.parquet", output=output) == [file.resolve()]
    other = write_table(output / "mine.parquet", text=["one"])
    assert find_files(str(tmp_path), output=output) == [file.resolve(), other.resolve()]


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        pytest.param([], "", "matches no input files", id="nothing"),
        pytest.param(["a.jsonl", "b.parquet"], "", "there are both", id="both"),
        pytest.param(["a.jsonl.gz"], "a.jsonl.gz", "must be uncompressed", id="compressed"),
        pytest.param(["a.jsonl", "b.jsonl.gz"], "", r"b\.jsonl\.gz is compressed", id="compressed-in-folder"),
        pytest.param([], "s3://bucket/texts", "mount it as a folder", id="url"),
    ],
)
def test_unusable_input_is_reported(names: list[str], given: str, message: str, tmp_path: Path) -> None:
    for name in names:
        write_lines(tmp_path / name)
    with pytest.raises(InputError, match=message):
        find_files(given if "://" in given else str(tmp_path / given))


def test_folder_that_cannot_be_read_is_not_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines(tmp_path / "a.jsonl", {"text": "one"})
    locked = tmp_path / "locked"
    locked.mkdir()
    list_folder = os.scandir

    def scandir(path: str) -> Any:
        if Path(path) == locked:  # permissions would not do: tests may run as root
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return list_folder(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match="locked cannot be read: Permission denied"):
        find_files(str(tmp_path))


def test_file_that_is_not_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.parquet"
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(InputError, match=r"broken\.parquet cannot be read"):
        describe([path])


def test_units_cover_each_row_once_and_are_always_the_same(tmp_path: Path) -> None:
    sizes = {"a": 5, "b": 2, "c": 0}
    tables = [write_table(tmp_path / f"{name}.parquet", text=["x"] * rows) for name, rows in sizes.items()]
    units = split_into_units(describe(tables), 2)
    spans = [(Path(unit.path).stem, unit.start, unit.stop) for unit in units]
    assert spans == [("a", 0, 2), ("a", 2, 4), ("a", 4, 5), ("b", 0, 2)]
    assert [unit.number for unit in units] == [0, 1, 2, 3]
    assert units == split_into_units(describe(tables), 2)
    assert units[3].output_name == "part-000003.parquet"


def test_json_lines_are_split_by_bytes_into_approximately_equal_rows(tmp_path: Path) -> None:
    [file] = describe([write_lines(tmp_path / "a.jsonl", *({"text": "four"} for _ in range(100)))])
    units = split_into_units([file], 30)
    assert [unit.stop for unit in units[:-1]] == [unit.start for unit in units[1:]]
    assert (units[0].start, units[-1].stop, len(units)) == (0, file.size_bytes, 4)


@pytest.mark.parametrize(
    ("rows", "cores", "expected"),
    [
        pytest.param(1, 2, 16, id="one-row"),
        pytest.param(100, 2, 16, id="all-cores-work"),
        pytest.param(5_000, 64, 19, id="many-cores"),
        pytest.param(5_000, 2, 64, id="small-input"),
        pytest.param(1_000_000, 2, 1_953, id="million"),
        pytest.param(1_000_000, 64, 1_953, id="million-on-many-cores"),
        pytest.param(1_000_000, 512, 488, id="million-on-a-large-cluster"),
        pytest.param(1_000_000_000, 2, 50_000, id="billion"),
    ],
)
def test_units_are_small_enough_for_all_cores_and_not_too_many(rows: int, cores: int, expected: int) -> None:
    assert choose_unit_rows([InputFile("a.parquet", 0, 0, rows=rows)], cores) == expected


def test_rows_of_json_lines_are_estimated_for_the_size_of_units(tmp_path: Path) -> None:
    files = describe([write_lines(tmp_path / "a.jsonl", *({"text": "four"} for _ in range(500)))])
    assert choose_unit_rows(files, 2) == 62
    empty = describe([write_lines(tmp_path / "empty.jsonl")])
    assert (choose_unit_rows(empty, 2), split_into_units(empty, 16)) == (16, [])


def test_broken_lines_do_not_hide_the_columns_of_later_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_inputs, "SAMPLED_LINES", 2)
    file = write_lines(tmp_path / "a.jsonl", 1, 2, 3, {"text": 7, "id": 1}, {"text": "x", "id": 2})
    assert choose_columns(describe([file]), "text", None).kept == pa.schema([("text", pa.string()), ("id", pa.int64())])
    marked = tmp_path / "marked.jsonl"
    marked.write_bytes(b'\xef\xbb\xbf{"text": "x", "id": 1}\n')
    assert choose_columns(describe([marked]), "text", None).kept.names == ["text", "id"]


@pytest.mark.parametrize(
    "rows", [[{"text": 7}], [{"text": None}], [{"text": [1]}, {"text": {"a": 1}}, {"text": 0.5}]], ids=str
)
def test_texts_of_any_type_are_accepted_if_bad_rows_are_skipped(rows: list[object], tmp_path: Path) -> None:
    files = describe([write_lines(tmp_path / "a.jsonl", *rows)])
    assert choose_columns(files, "text", None, skip_bad_rows=True).kept == pa.schema([("text", pa.string())])
    with pytest.raises(InputError, match="contains no string"):
        choose_columns(files, "text", None)
    with pytest.raises(InputError, match="there is no column 'body'"):
        choose_columns(files, "body", None, skip_bad_rows=True)


@pytest.mark.parametrize("content", ["", "\n\n", "{\n", "[1]\n"])
def test_file_without_any_row_has_only_the_text_column(content: str, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(content)
    assert choose_columns(describe([file]), "body", None).kept.names == ["body"]
    assert choose_columns(describe([file]), "body", ["id"]).kept.names == ["id"]


def test_long_first_line_does_not_make_one_unit_of_the_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_inputs, "MAX_UNIT_BYTES", 10_000)
    file = write_lines(tmp_path / "a.jsonl", {"text": "x" * 9_000}, *[{"text": "one"}] * 5_000)
    units = split_into_units(describe([file]), 1_000)
    assert {unit.stop - unit.start for unit in units[:-1]} == {10_000}


def test_sampling_stops_after_a_number_of_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_inputs, "SAMPLED_BYTES", 3000)
    rows = [{"text": "x" * 1000, f"column {number}": 1} for number in range(10)]
    files = describe([write_lines(tmp_path / "a.jsonl", *rows)])
    assert choose_columns(files, "text", None).kept.names == ["text", "column 0", "column 1", "column 2"]


def test_kept_columns_are_all_or_the_named_ones(tmp_path: Path) -> None:
    rows = [{"text": "x", "id": 1}, {"text": "y", "id": 2, "note": "late"}]
    files = describe([write_lines(tmp_path / "a.jsonl", *rows)])
    for keep, kept in ((None, ["text", "id", "note"]), (["id"], ["id"]), ([], [])):
        assert choose_columns(files, "text", keep).kept.names == kept


@pytest.mark.parametrize(
    ("text", "keep", "message"),
    [
        ("body", ["id"], "there is no column 'body'; the input has id"),
        ("id", ["id"], "the column 'id' contains no string in the sampled lines"),
        ("text", ["nope"], "there is no column 'nope'"),
        ("text", None, "the column 'mixed' contains values of different types"),
    ],
)
def test_unusable_columns_are_reported(text: str, keep: list[str] | None, message: str, tmp_path: Path) -> None:
    rows = [{"text": "x", "id": 1, "mixed": 1}, {"text": "y", "id": 2, "mixed": "two"}]
    with pytest.raises(InputError, match=message):
        choose_columns(describe([write_lines(tmp_path / "a.jsonl", *rows)]), text, keep)


def test_parquet_files_must_have_the_same_columns(tmp_path: Path) -> None:
    files = [
        write_table(tmp_path / "a.parquet", text=["x"], id=[1]),
        write_table(tmp_path / "b.parquet", text=["x"], id=["1"]),
    ]
    with pytest.raises(InputError, match=r"b\.parquet has other columns than .*a\.parquet: text string, id string"):
        choose_columns(describe(files), "text", None)
    assert choose_columns(describe(files), "text", ["text"]).kept.names == ["text"]


def test_two_columns_with_the_same_name_are_reported(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table([["one"], ["a"], ["b"]], names=["text", "twice", "twice"]), file)
    with pytest.raises(InputError, match="two columns named 'twice'"):
        choose_columns(describe([file]), "text", None)
