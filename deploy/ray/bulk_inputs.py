"""The input of a bulk job: which files, and into which units of work they are cut.

A unit is a stretch of one file: rows of a Parquet file, or the lines of a JSON Lines file that begin in a range of
bytes. The same files and the same size give the same units, so a job that was killed knows what is left.
"""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

Format = Literal["parquet", "jsonl"]

SUFFIXES: dict[str, Format] = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}
OUTPUT_NAME = re.compile(r"part-\d{6,}\.parquet")
PACKED = {".gz", ".zst", ".bz2", ".xz", ".lz4", ".br", ".zip"}
SAMPLED_FILES, SAMPLED_LINES = 20, 1000
"""JSON Lines have no schema: the types of their columns are those of so many lines of so many files."""
SAMPLED_BYTES = 8_000_000
"""No further line of a file is looked at first after so much: a line may be a book, and all of them are in memory."""
MAX_LINE_BYTES = 64_000_000
"""A longer line is no row but a broken file; it is never held in memory."""

MAX_UNIT_BYTES = 64_000_000
"""Of JSON Lines: where the first lines are longer than the others, rows alone would make a unit of a whole file."""


class InputError(Exception):
    """The input cannot be used; the message is one line for the person who started the job."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file, and what tells whether it is still the same; *rows* of Parquet only."""

    path: str
    size_bytes: int
    modified_ns: int
    rows: int = 0

    @property
    def format(self) -> Format:
        return SUFFIXES[Path(self.path).suffix]


@dataclass(frozen=True, slots=True)
class Unit:
    """A stretch of one file: rows (Parquet) or bytes (JSON Lines) from *start* up to *stop*; it becomes one output."""

    number: int
    path: str
    start: int
    stop: int

    @property
    def format(self) -> Format:
        return SUFFIXES[Path(self.path).suffix]

    @property
    def output_name(self) -> str:
        return f"part-{self.number:06d}.parquet"


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns are read.

    Attributes:
        text: the one whose texts are embedded.
        kept: those that go into the output, with their types.
        are_all: all of the input's columns are kept, so that one that nobody has seen before must not be lost.
    """

    text: str
    kept: pa.Schema
    are_all: bool


def find_files(given: str, *, own: Path | None = None) -> list[Path]:
    """The data files that *given*, a file, a folder or a pattern, names, in order, but for what a job writes to *own*.

    Raises:
        InputError: there are none, or they are of more than one format.
    """
    if "://" in given:
        raise InputError(f"{given!r} is an address; mount it as a folder that every node sees, and name that")
    path = Path(given)
    if path.is_dir():
        found = [found for found in _all_below(path) if found.suffix in SUFFIXES and not _is_hidden(found, path)]
    else:
        found = [Path(name) for name in (glob.glob(given, recursive=True) if not path.is_file() else [given])]  # noqa: PTH207 - a pattern may be absolute
    whole = {file.resolve() for file in found if file.is_file()}  # a link to one of them is the same one
    files = sorted(file for file in whole if file.parent != own or not OUTPUT_NAME.fullmatch(file.name))
    if not files:
        raise InputError(f"{given!r} names no data; write a file, a folder or a pattern such as 'texts/*.parquet'")
    formats = {SUFFIXES.get(file.suffix) for file in files}
    if len(formats) != 1 or None in formats:
        odd = next((f"{file} is neither" for file in files if file.suffix not in SUFFIXES), "these are both")
        raise InputError(f"the input must be all .parquet or all .jsonl (.ndjson), and not compressed; {odd}")
    return files


def describe(files: Sequence[Path]) -> list[InputFile]:
    """What is known of *files* without reading them.

    Raises:
        InputError: one cannot be read, or is no Parquet file.
    """
    described = []
    for file in files:
        try:
            facts = file.stat()
            rows = int(pq.read_metadata(file).num_rows) if SUFFIXES[file.suffix] == "parquet" else 0
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{file} cannot be read: {first_line(error)}") from None
        described.append(InputFile(str(file), facts.st_size, facts.st_mtime_ns, rows))
    return described


def choose_columns(files: Sequence[InputFile], text: str, keep: Sequence[str] | None) -> Columns:
    """The columns to read.

    Args:
        files: all of one format.
        text: the column of the texts.
        keep: names of the columns that go into the output; None: all.

    Raises:
        InputError: a column is missing, or has no one type in all files; or *text* holds no strings.
    """
    wanted = None if keep is None else {text, *keep}
    whole = (_parquet_schema if files[0].format == "parquet" else _sampled_schema)(files, wanted)
    if twice := [name for name, count in Counter(whole.names).items() if count > 1]:
        raise InputError(f"there are two columns {twice[0]!r}; leave them out by --keep, or give one another name")
    for name in (text, *(keep or ())):
        if name not in whole.names:
            raise InputError(f"there is no column {name!r}; the input has {', '.join(whole.names) or 'none'}")
    found = whole.field(text).type
    if not (pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found)):
        raise InputError(f"the column {text!r} holds {found}, not strings")
    kept = pa.schema([whole.field(name) for name in whole.names if keep is None or name in keep])
    return Columns(text, kept, are_all=keep is None)


def cut(files: Sequence[InputFile], rows_per_unit: int) -> list[Unit]:
    """The units of *files*, in order; of JSON Lines they have about so many rows."""
    units: list[Unit] = []
    for file in files:
        is_parquet = file.format == "parquet"
        end, step = (file.rows, rows_per_unit) if is_parquet else (file.size_bytes, _bytes_of(file, rows_per_unit))
        units += [
            Unit(len(units) + index, file.path, start, min(start + step, end))
            for index, start in enumerate(range(0, end, step))
        ]
    return units


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _all_below(folder: Path) -> Iterator[Path]:
    """All files below *folder*; folders that are links are not followed.

    Raises:
        InputError: a folder cannot be read: what is in it would be left out in silence; or a data file is compressed.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}")

    for parent, _, names in os.walk(folder, onerror=refuse):
        for file in (Path(parent, name) for name in names):
            if file.suffix in PACKED and file.with_suffix("").suffix in SUFFIXES and not _is_hidden(file, folder):
                raise InputError(f"{file} is compressed: unpack it, or move it elsewhere")
            yield file


def _is_hidden(file: Path, below: Path) -> bool:
    return any(part.startswith((".", "_")) for part in file.relative_to(below).parts)


def _parquet_schema(files: Sequence[InputFile], wanted: set[str] | None) -> pa.Schema:
    def schema_of(file: InputFile) -> pa.Schema:
        whole = pq.read_schema(file.path)
        return pa.schema([field for field in whole if wanted is None or field.name in wanted])

    first = schema_of(files[0])
    for file in files[1:]:
        if not (here := schema_of(file)).equals(first):
            raise InputError(
                f"{file.path} has other columns than {files[0].path}: {_told(here)}, not {_told(first)}; "
                "embed them in separate jobs, or choose columns that all have by --keep"
            )
    return first


def _told(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema) or "none"


def _sampled_schema(files: Sequence[InputFile], wanted: set[str] | None) -> pa.Schema:
    rows: list[dict[str, Any]] = []
    for file in files[:: max(1, len(files) // SAMPLED_FILES)]:
        rows += _sampled_rows(file)
    names = dict.fromkeys(name for row in rows for name in row if wanted is None or name in wanted)
    fields = []
    for name in names:
        try:
            fields.append(pa.field(name, pa.array([row.get(name) for row in rows]).type))
        except (pa.ArrowException, OverflowError):
            raise InputError(f"the column {name!r} has values of more than one type; leave it out by --keep") from None
    return pa.schema(fields)


def _sampled_rows(file: InputFile) -> list[dict[str, Any]]:
    """The first rows; broken lines are told when their turn to be embedded has come."""
    rows = []
    for line in _sampled_lines(file):
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _sampled_lines(file: InputFile) -> list[bytes]:
    lines: list[bytes] = []
    size_bytes = 0
    try:
        with Path(file.path).open("rb") as opened:
            while (
                len(lines) < SAMPLED_LINES and size_bytes < SAMPLED_BYTES and (line := opened.readline(MAX_LINE_BYTES))
            ):
                lines.append(line)
                size_bytes += len(line)
    except OSError as error:
        raise InputError(f"{file.path} cannot be read: {first_line(error)}") from None
    return lines


def _bytes_of(file: InputFile, rows: int) -> int:
    """Bytes that about so many rows have, by the first ones."""
    lines = _sampled_lines(file) or [b"\n"]
    return min(MAX_UNIT_BYTES, max(1, rows * sum(map(len, lines)) // len(lines)))
