"""The rows of one unit of a bulk job: the good ones with their columns, the bad ones with the reason."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from deploy.ray.bulk_inputs import MAX_LINE_BYTES, Columns, InputError, Unit, first_line

BATCH_ROWS = 1024
BLOCK_BYTES = 1 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be embedded: where it is (a row's number, or the byte at which its line begins), and why."""

    position: int
    why: str


@dataclass(frozen=True, slots=True)
class UnitRows:
    """What was read of a unit.

    Attributes:
        table: the kept columns of the good rows.
        texts: of the good rows.
        positions: of the good rows, see `BadRow`.
        bad: the others.
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
        return (_parquet_rows if unit.format == "parquet" else _json_rows)(unit, columns)
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise InputError(f"{unit.path} cannot be read: {first_line(error)}") from None


def place_of(unit: Unit, position: int) -> str:
    """Where a row is, for people: lines count from 1, as editors do; rows of a table from 0, as pandas does."""
    if unit.format == "parquet":
        return f"{unit.path}, row {position}"
    lines = 1
    with Path(unit.path).open("rb") as file:
        left = position
        while left and (block := file.read(min(left, BLOCK_BYTES))):
            lines += block.count(b"\n")
            left -= len(block)
    return f"{unit.path}, line {lines}"


def _why_bad(text: object) -> str | None:
    if text is None:
        return "the text is missing or null"
    if not isinstance(text, str):
        return f"the text is no string but {_kind(text)}"
    return None if text.strip() else "the text is empty"


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), type(value).__name__)


def _parquet_rows(unit: Unit, columns: Columns) -> UnitRows:
    names = list(dict.fromkeys([*columns.kept.names, columns.text]))
    table = _slice_of(unit, names)
    texts, mask, bad = table[columns.text].to_pylist(), [], []
    for index, text in enumerate(texts):
        why = _why_bad(text)
        mask.append(why is None)
        if why is not None:
            bad.append(BadRow(unit.start + index, why))
    good = [index for index, is_good in enumerate(mask) if is_good]
    kept = table.select(columns.kept.names)
    return UnitRows(
        kept.take(pa.array(good, pa.int64())) if bad else kept,
        [texts[index] for index in good],
        [unit.start + index for index in good],
        bad,
    )


def _slice_of(unit: Unit, names: list[str]) -> pa.Table:
    """The rows of *unit*; no more than one batch beside them is in memory."""
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
            here = batch.slice(to_skip, wanted) if to_skip < batch.num_rows else batch.slice(0, 0)
            to_skip = max(0, to_skip - batch.num_rows)
            wanted -= here.num_rows
            batches.append(here)
            if not wanted:
                break
        schema = pa.schema([file.schema_arrow.field(name) for name in names])
        return pa.Table.from_batches([batch for batch in batches if batch.num_rows], schema)


def _json_rows(unit: Unit, columns: Columns) -> UnitRows:
    known = {*columns.kept.names, columns.text}
    rows: list[tuple[int, dict[str, Any]]] = []
    bad: list[BadRow] = []
    for position, line in _lines(unit):
        try:
            row = _parsed(line)
            why = _why_bad(row.get(columns.text)) or _why_other(row, known, columns)
        except ValueError as error:
            row, why = {}, str(error)
        if why:
            bad.append(BadRow(position, why))
        else:
            rows.append((position, row))
    table, rows, misfits = _table_of(rows, columns.kept)
    return UnitRows(
        table, [row[columns.text] for _, row in rows], [at for at, _ in rows], sorted(bad + misfits, key=_position)
    )


def _position(row: BadRow) -> int:
    return row.position


def _lines(unit: Unit) -> Iterator[tuple[int, bytes]]:
    """The lines that begin in *unit*, blank ones left out, each with the byte at which it begins."""
    with Path(unit.path).open("rb") as file:
        if unit.start:
            file.seek(unit.start - 1)
            _skip_line(file)  # it begins in the unit before, unless the byte before is its end
        while (position := file.tell()) < unit.stop and (line := file.readline(MAX_LINE_BYTES)):
            if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                _skip_line(file)
                line = b"{too long"
            line = line.removeprefix(BYTE_ORDER_MARK) if not position else line
            if line.strip():
                yield position, line


def _skip_line(file: Any) -> None:
    while (part := file.readline(BLOCK_BYTES)) and not part.endswith(b"\n"):
        pass


def _parsed(line: bytes) -> dict[str, Any]:
    if line == b"{too long":
        message = f"the line is longer than {MAX_LINE_BYTES:,} bytes"
        raise ValueError(message)
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        message = f"the line is no JSON ({error.msg}, at character {error.pos})"
        raise ValueError(message) from None
    if not isinstance(row, dict):
        message = f"the line is {_kind(row)}, where an object such as {{'text': '...'}} is due"
        raise ValueError(message)  # noqa: TRY004 - the file is wrong, not the program
    return row


def _why_other(row: dict[str, Any], known: set[str], columns: Columns) -> str | None:
    new = sorted(row.keys() - known) if columns.are_all else []
    return f"it has {new[0]!r}, which the lines looked at first have not; choose columns by --keep" if new else None


def _table_of(
    rows: list[tuple[int, dict[str, Any]]], schema: pa.Schema
) -> tuple[pa.Table, list[tuple[int, dict[str, Any]]], list[BadRow]]:
    """The rows as a table; those whose values have another type than their column are left out, and told."""
    misfits: dict[int, str] = {}
    for field in schema:
        if _array_of(rows, field) is None:
            for position, row in rows:
                if _array_of([(position, row)], field) is None:
                    misfits[position] = f"{field.name!r} is not {field.type}, as in the lines looked at first"
    fitting = [(position, row) for position, row in rows if position not in misfits]
    arrays = [pa.array([row.get(field.name) for _, row in fitting], field.type) for field in schema]
    return (
        pa.Table.from_arrays(arrays, schema=schema),
        fitting,
        [BadRow(position, why) for position, why in misfits.items()],
    )


def _array_of(rows: list[tuple[int, dict[str, Any]]], field: pa.Field) -> pa.Array | None:
    values = [row.get(field.name) for _, row in rows]
    try:
        array = pa.array(values, field.type)
    except (pa.ArrowException, OverflowError):
        return None
    return array if all(_is_kept(value, field.type) for value in values) else None


def _is_kept(value: Any, kind: pa.DataType) -> bool:
    """Whether Arrow takes *value* as it is: to fit a type it would make 1 of 1.5, and leave out keys of an object."""
    if value is None:
        return True
    if pa.types.is_struct(kind):
        types = {kind.field(index).name: kind.field(index).type for index in range(kind.num_fields)}
        return all(name in types and _is_kept(part, types[name]) for name, part in value.items())
    if pa.types.is_list(kind):
        return all(_is_kept(part, kind.value_type) for part in value)
    if pa.types.is_integer(kind):
        return isinstance(value, int) or value.is_integer()
    return not pa.types.is_floating(kind) or not isinstance(value, bool)
