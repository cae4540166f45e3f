"""Each row of a file is read in exactly one unit; bad rows are reported with their position."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deploy.ray.bulk_inputs import Columns, Unit, choose_columns, describe, split_into_units
from deploy.ray.bulk_rows import UnitRows, places_of, read_unit

WORDS = ["ä", "two words", "x" * 40, "日本", "last"]


def read_texts(path: Path, rows_per_unit: int) -> list[str]:
    files = describe([path])
    columns = choose_columns(files, "text", None)
    return [text for unit in split_into_units(files, rows_per_unit) for text in read_unit(unit, columns).texts]


def bad_rows(unit: Unit, rows: UnitRows) -> list[tuple[str, str]]:
    return list(zip(places_of(unit, rows.bad), [bad.reason for bad in rows.bad], strict=True))


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\n\n", ""])
def test_each_line_is_read_once(ending: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    between = ending or "\n"
    path.write_bytes(between.join(json.dumps({"text": word}) for word in WORDS).encode() + ending.encode())
    assert [read_texts(path, rows) for rows in (1, 2, 3, 7, 1000)] == [WORDS] * 5


def test_each_line_is_read_once_wherever_units_begin(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"text": "{word}"}}\n' for word in WORDS))
    columns, end = Columns("text", pa.schema([]), keeps_all=False), path.stat().st_size
    for step in (1, 5, 16):
        units = [Unit(start, str(path), start, min(start + step, end)) for start in range(0, end, step)]
        assert [text for unit in units for text in read_unit(unit, columns).texts] == WORDS


def test_each_row_of_a_table_is_read_once_whatever_its_row_groups(tmp_path: Path) -> None:
    path, texts = tmp_path / "a.parquet", [f"text {number}" for number in range(17)]
    pq.write_table(pa.table({"id": range(17), "text": texts}), path, row_group_size=4)
    assert [read_texts(path, rows) for rows in (1, 3, 4, 100)] == [texts] * 4


def test_kept_columns_stay_with_their_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1, 2, 3, 4], "text": ["a", None, " ", "d"], "list": [[1], [], None, [4]]}), path)
    files = describe([path])
    [unit] = split_into_units(files, 10)
    rows = read_unit(unit, choose_columns(files, "text", None))
    assert rows.table.to_pylist() == [{"id": 1, "text": "a", "list": [1]}, {"id": 4, "text": "d", "list": [4]}]
    assert (rows.texts, rows.positions) == (["a", "d"], [0, 3])
    assert bad_rows(unit, rows) == [
        (f"{path}, row 1", "the text is missing or null"),
        (f"{path}, row 2", "the text is empty"),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "x"', "the line is not valid JSON"),
        ("[1]", "the line is a list, not an object like {'text': '...'}"),
        ('{"id": 1}', "the text is missing or null"),
        ('{"text": null}', "the text is missing or null"),
        ('{"text": 7}', "the text is not a string but a number"),
        ('{"text": 0.5}', "the text is not a string but a number"),
        ('{"text": true}', "the text is not a string but a boolean"),
        ('{"text": ["x"]}', "the text is not a string but a list"),
        ('{"text": {"x": 1}}', "the text is not a string but an object"),
        ('{"text": ""}', "the text is empty"),
        ('{"text": " \\t\\u00a0\\u3000"}', "the text is empty"),
        ('{"text": "' + "x" * 1_000_001 + '"}', "the text has 1,000,001 characters; at most 1,000,000 are allowed"),
        ('{"text": "\\ud800"}', "the line is not valid JSON"),
        ('{"text": "\udcff"}', "the line is not valid JSON"),
        ("null", "the line is null, not an object"),
        ('{"text": "x", "id": "one"}', "'id' is not int64, the type in the sampled lines"),
        ('{"text": "x", "new": 1}', "it has 'new', which the sampled lines do not have; choose columns with --keep"),
    ],
)
def test_bad_line_is_reported_with_its_number(line: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    text = f'{{"text": "x", "id": 1}}\n\n{{"text": "y"}}\n{line}\n{{"text": "z", "id": 3}}\n'
    path.write_bytes(text.encode(errors="surrogateescape"))  # \udcff becomes a byte that is not UTF-8
    [unit] = split_into_units(describe([path]), 100)
    columns = Columns("text", pa.schema([("text", pa.string()), ("id", pa.int64())]), keeps_all=True)
    rows = read_unit(unit, columns)
    assert places_of(unit, rows.bad) == [f"{path}, line 4"]
    assert rows.bad[0].reason.startswith(reason)
    assert rows.table.to_pylist() == [{"text": "x", "id": 1}, {"text": "y", "id": None}, {"text": "z", "id": 3}]


def test_byte_order_mark_is_ignored_and_an_endless_line_is_a_bad_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.ray.bulk_rows.MAX_LINE_BYTES", 50)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "x"}\n{"text": "' + b"y" * 100 + b'"}\n{"text": "z"}\n')
    [unit] = split_into_units(describe([path]), 100)
    rows = read_unit(unit, Columns("text", pa.schema([]), keeps_all=False))
    assert rows.texts == ["x", "z"]
    assert places_of(unit, rows.bad) == [f"{path}, line 2"]
    assert rows.bad[0].reason == "the line is longer than 50 bytes"


@pytest.mark.parametrize(
    ("usual", "other"),
    [
        pytest.param(1, 1.5, id="fraction"),
        pytest.param([1, 2], [3, 4.5], id="fraction-in-a-list"),
        pytest.param(1.5, True, id="boolean"),
        pytest.param({"a": 1}, {"a": 2, "b": 3}, id="key"),
        pytest.param({"a": {"b": [{"c": 1}]}}, {"a": {"b": [{"c": 1, "d": 2}]}}, id="nested-key"),
    ],
)
def test_value_that_arrow_would_change_is_a_bad_row(
    usual: object, other: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To fit the column's type, Arrow truncates 1.5 to 1, converts true to 1.0 and drops unknown keys."""
    monkeypatch.setattr("deploy.ray.bulk_inputs.SAMPLED_LINES", 1)
    path = tmp_path / "a.jsonl"
    rows = [{"text": str(number), "more": more} for number, more in enumerate([usual, other, usual, None])]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = describe([path])
    units = split_into_units(files, 100)
    columns = choose_columns(files, "text", None)
    read = [read_unit(unit, columns) for unit in units]
    assert [row for part in read for row in part.table.to_pylist()] == [rows[0], rows[2], rows[3]]
    [bad] = [bad for part in read for bad in part.bad]
    assert bad.reason.startswith("'more' is not ")
    assert places_of(units[0], [bad]) == [f"{path}, line 2"]


def test_whole_number_may_be_written_as_a_float(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "more": 1}\n')
    columns = choose_columns(describe([path]), "text", None)
    path.write_text('{"text": "a", "more": 2.0}\n{"text": "b", "more": 3}\n')
    [unit] = split_into_units(describe([path]), 100)
    assert read_unit(unit, columns).table["more"].to_pylist() == [2, 3]
