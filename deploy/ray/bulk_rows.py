"""Reads the rows of one unit of a bulk job: the good rows with their columns, the bad rows with the reason."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from deploy.ray.bulk_inputs import BYTE_ORDER_MARK, MAX_LINE_BYTES, Columns, InputError, Unit, first_line

Row = tuple[int, dict[str, Any]]
"""A JSON row with its position: the byte at which its line begins."""

BATCH_ROWS = 1024
"""Rows that are decoded at a time; only this many rows beyond the unit are in memory."""
BLOCK_BYTES = 1 << 20
TOO_LONG = b"{too long"
"""Replaces a line above MAX_LINE_BYTES. Not valid JSON, so no real line is equal to it and accepted."""
MAX_TEXT_CHARACTERS = 1_000_000
"""Longer texts are bad rows: tokenising one takes up to 400 bytes of memory per character."""
TYPE_NAMES = {
    type(None): "null",
    dict: "an object",
    list: "a list",
    bool: "a boolean",
    int: "a number",
    float: "a number",
}


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be embedded: its position (row number, or byte at which its line begins) and the reason."""

    position: int
    reason: str


@dataclass(frozen=True, slots=True)
class UnitRows:
    """The rows of a unit.

    Attributes:
        table: the kept columns of the good rows.
        texts: the texts of the good rows.
        positions: the positions of the good rows, as in `BadRow`.
        bad: the bad rows.
    """

    table: pa.Table
    texts: list[str]
    positions: list[int]
    bad: list[BadRow]


def read_unit(unit: Unit, columns: Columns) -> UnitRows:
    """Read *unit*.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        return (_read_parquet if unit.format == "parquet" else _read_json_lines)(unit, columns)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{unit.path} cannot be read: {first_line(error)}") from None


def without(rows: UnitRows, reasons: Mapping[int, str]) -> UnitRows:
    """Return *rows* with some of the good rows as bad rows: *reasons* by their index."""
    if not reasons:
        return rows
    good = [index for index in range(len(rows.texts)) if index not in reasons]
    found = [BadRow(rows.positions[index], reason) for index, reason in reasons.items()]
    return UnitRows(
        rows.table.take(pa.array(good, pa.int64())),
        [rows.texts[index] for index in good],
        [rows.positions[index] for index in good],
        sorted([*rows.bad, *found], key=lambda row: row.position),
    )


def numbers_of(unit: Unit, bad: Sequence[BadRow]) -> list[int]:
    """Return the line numbers of bad rows (from 1, as in editors), or their rows in a table (from 0, as in pandas).

    Reads the file once, up to the last of *bad*, which are in order.
    """
    if unit.format == "parquet":
        return [row.position for row in bad]
    numbers, line, position = [], 1, 0
    with Path(unit.path).open("rb") as file:
        for row in bad:
            while position < row.position and (block := file.read(min(row.position - position, BLOCK_BYTES))):
                line += block.count(b"\n")
                position += len(block)
            numbers.append(line)
    return numbers


def places_of(unit: Unit, bad: Sequence[BadRow]) -> list[str]:
    """Return the file and line, or row, of bad rows in order."""
    kind = "row" if unit.format == "parquet" else "line"
    return [f"{unit.path}, {kind} {number}" for number in numbers_of(unit, bad)]


def _text_problem(text: object) -> str | None:
    if text is None:
        return "the text is missing or null"
    if isinstance(text, bytes):
        return "the text is not valid UTF-8"
    if not isinstance(text, str):
        return f"the text is not a string but {_type_name(text)}"
    if len(text) > MAX_TEXT_CHARACTERS:
        return f"the text has {len(text):,} characters; at most {MAX_TEXT_CHARACTERS:,} are allowed"
    return None if text.strip() else "the text is empty"


def _type_name(value: object) -> str:
    return TYPE_NAMES.get(type(value), type(value).__name__)


def _read_parquet(unit: Unit, columns: Columns) -> UnitRows:
    table = _read_slice(unit, list(dict.fromkeys([*columns.kept.names, columns.text])))
    texts = _strings_of(table[columns.text])
    problems = [_text_problem(text) for text in texts]
    good = [index for index, problem in enumerate(problems) if problem is None]
    kept = table.select(columns.kept.names)
    return UnitRows(
        kept if len(good) == len(texts) else kept.take(pa.array(good, pa.int64())),
        [texts[index] for index in good],
        [unit.start + index for index in good],
        [BadRow(unit.start + index, problem) for index, problem in enumerate(problems) if problem is not None],
    )


def _strings_of(column: pa.ChunkedArray) -> list[Any]:
    """Return the values of a column: None for null, bytes for what is not valid UTF-8 (Parquet does not check)."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        values = [value for chunk in column.chunks for value in chunk.cast(pa.large_binary()).to_pylist()]
        return [None if value is None else _decoded(value) for value in values]


def _decoded(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _read_slice(unit: Unit, names: list[str]) -> pa.Table:
    """Read the rows of *unit*, decoding only the row groups that contain them."""
    with pq.ParquetFile(unit.path) as file:
        groups: list[int] = []
        first = row = 0
        for index in range(file.metadata.num_row_groups):
            end = row + file.metadata.row_group(index).num_rows
            if row < unit.stop and end > unit.start:
                first = first if groups else row
                groups.append(index)
            row = end
        to_skip, wanted, batches = unit.start - first, unit.stop - unit.start, []
        for batch in file.iter_batches(batch_size=BATCH_ROWS, row_groups=groups, columns=names):
            part = batch.slice(to_skip, wanted) if to_skip < batch.num_rows else batch.slice(0, 0)
            to_skip = max(0, to_skip - batch.num_rows)
            wanted -= part.num_rows
            batches.append(part)
            if not wanted:
                break
        schema = pa.schema([file.schema_arrow.field(name) for name in names])
        return pa.Table.from_batches([batch for batch in batches if batch.num_rows], schema)


def _read_json_lines(unit: Unit, columns: Columns) -> UnitRows:
    known = {*columns.kept.names, columns.text}
    rows: list[Row] = []
    bad: list[BadRow] = []
    for position, line in _lines(unit):
        try:
            row = _parse(line)
            problem = _text_problem(row.get(columns.text)) or _unknown_column(row, known, columns)
        except ValueError as error:
            row, problem = {}, str(error)
        if problem:
            bad.append(BadRow(position, problem))
        else:
            rows.append((position, row))
    table, rows, mistyped = _build_table(rows, columns.kept)
    bad = sorted([*bad, *mistyped], key=lambda row: row.position)
    return UnitRows(table, [row[columns.text] for _, row in rows], [position for position, _ in rows], bad)


def _lines(unit: Unit) -> Iterator[tuple[int, bytes]]:
    """Yield the non-blank lines that begin in *unit*, each with the byte at which it begins."""
    with Path(unit.path).open("rb") as file:
        if unit.start:
            file.seek(unit.start - 1)
            _skip_line(file)  # a line that begins in the unit before; only its end if a line begins at unit.start
        while (position := file.tell()) < unit.stop and (line := file.readline(MAX_LINE_BYTES)):
            if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                _skip_line(file)
                line = TOO_LONG
            line = line.removeprefix(BYTE_ORDER_MARK) if not position else line
            if line.strip():
                yield position, line


def _skip_line(file: BinaryIO) -> None:
    while (part := file.readline(BLOCK_BYTES)) and not part.endswith(b"\n"):
        pass


def _parse(line: bytes) -> dict[str, Any]:
    if line == TOO_LONG:
        message = f"the line is longer than {MAX_LINE_BYTES:,} bytes"
        raise ValueError(message)
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        message = f"the line is not valid JSON ({error.msg}, at character {error.pos})"
        raise ValueError(message) from None
    if not isinstance(row, dict):
        message = f"the line is {_type_name(row)}, not an object like {{'text': '...'}}"
        raise ValueError(message)  # noqa: TRY004 - the file is wrong, not the program
    return row


def _unknown_column(row: dict[str, Any], known: set[str], columns: Columns) -> str | None:
    new = sorted(row.keys() - known) if columns.keeps_all else []
    return f"it has {new[0]!r}, which the sampled lines do not have; choose columns with --keep" if new else None


def _build_table(rows: list[Row], schema: pa.Schema) -> tuple[pa.Table, list[Row], list[BadRow]]:
    """Return the rows as a table, the rows that fit its types, and the rows that do not."""
    mistyped: dict[int, str] = {}
    for field in schema:
        if not _fits(rows, field):
            for position, row in rows:
                if not _fits([(position, row)], field):
                    mistyped[position] = f"{field.name!r} is not {field.type}, the type in the sampled lines"
    good = [(position, row) for position, row in rows if position not in mistyped]
    arrays = [pa.array([row.get(field.name) for _, row in good], field.type) for field in schema]
    return (
        pa.Table.from_arrays(arrays, schema=schema),
        good,
        [BadRow(position, reason) for position, reason in mistyped.items()],
    )


def _fits(rows: list[Row], field: pa.Field) -> bool:
    values = [row.get(field.name) for _, row in rows]
    try:
        pa.array(values, field.type)
    except (pa.ArrowException, OverflowError):
        return False
    return all(_is_unchanged(value, field.type) for value in values)


def _is_unchanged(value: Any, kind: pa.DataType) -> bool:
    """Whether Arrow stores *value* unchanged: to fit a type, it truncates 1.5 to 1 and drops unknown keys."""
    if value is None:
        return True
    if pa.types.is_struct(kind):
        types = {kind.field(index).name: kind.field(index).type for index in range(kind.num_fields)}
        return all(name in types and _is_unchanged(part, types[name]) for name, part in value.items())
    if pa.types.is_list(kind):
        return all(_is_unchanged(part, kind.value_type) for part in value)
    if pa.types.is_integer(kind):
        return isinstance(value, int) or value.is_integer()
    return not pa.types.is_floating(kind) or not isinstance(value, bool)
