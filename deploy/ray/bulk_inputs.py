"""Finds the input files of a bulk job, chooses their columns, and splits them into units of work.

A unit is a part of one file: rows of a Parquet file, or the lines of a JSON Lines file that begin in a byte range. The
same files and unit size always give the same units, so a resumed job knows which ones remain.
"""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

Format = Literal["parquet", "jsonl"]

FORMATS: dict[str, Format] = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}
"""Formats by file suffix."""
OUTPUT_NAME = re.compile(r"part-\d{6,}\.parquet")
COMPRESSED_SUFFIXES = {".gz", ".zst", ".bz2", ".xz", ".lz4", ".br", ".zip"}
SAMPLED_FILES, SAMPLED_LINES = 20, 1000
"""Number of files, and lines per file, that determine the column types of JSON Lines, which have no schema.

Broken lines do not count.
"""
SAMPLED_BYTES = 8_000_000
"""Sampling of a file stops after this many bytes: the sample is in memory, and a line can contain a whole book."""
MAX_LINE_BYTES = 64_000_000
"""Longer lines are rejected, and never held in memory: such a file is most likely not JSON Lines."""
MAX_UNIT_BYTES = 64_000_000
"""Maximum size of a JSON Lines unit. Unit sizes are estimated from the first lines, which can be unusually long."""


BYTE_ORDER_MARK = b"\xef\xbb\xbf"
TARGET_UNITS = 512
"""Number of units that shows progress, and is still a reasonable number of files."""
UNITS_PER_CORE = 4
"""With few rows, units become smaller until each core has this many, so that all cores work until the end."""
MIN_UNIT_ROWS, USUAL_UNIT_ROWS, MAX_UNIT_ROWS = 16, 64, 5000
"""Below 16 rows, the fixed cost of a unit exceeds its work. Below 64, units pad more: only small inputs have them."""
MAX_UNITS = 20_000
"""More units burden Ray Data's planning and the folder, so units of huge inputs have more than MAX_UNIT_ROWS rows."""


class InputError(Exception):
    """The job cannot run with this input or output. The message is one line for the user."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """An input file, with the facts that show whether it has changed. *rows* is 0 for JSON Lines."""

    path: str
    size_bytes: int
    modified_ns: int
    rows: int = 0

    @property
    def format(self) -> Format:
        return FORMATS[Path(self.path).suffix]


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit of work, which gives one output file: rows or, in JSON Lines, bytes *start* up to *stop* of *path*."""

    number: int
    path: str
    start: int
    stop: int

    @property
    def format(self) -> Format:
        return FORMATS[Path(self.path).suffix]

    @property
    def output_name(self) -> str:
        return f"part-{self.number:06d}.parquet"


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns that a job reads.

    Attributes:
        text: name of the column to embed.
        kept: columns of the output, with their types.
        keeps_all: all input columns are kept, so a row with an unknown column is an error instead of a loss.
    """

    text: str
    kept: pa.Schema
    keeps_all: bool


def find_files(given: str, *, output: Path | None = None) -> list[Path]:
    """Return the input files of *given* (a file, folder or glob pattern), sorted, without the job's files in *output*.

    Raises:
        InputError: there are no files, their formats differ, or a file is compressed.
    """
    if "://" in given:
        raise InputError(f"{given!r} is a URL; mount it as a folder that every node can read, and give that folder")
    path = Path(given)
    if path.is_dir():
        found = [file for file in _walk(path) if file.suffix in FORMATS and not _is_hidden(file, path)]
    else:
        found = [Path(name) for name in (glob.glob(given, recursive=True) if not path.is_file() else [given])]  # noqa: PTH207 - a pattern may be absolute
    resolved = {file.resolve() for file in found if file.is_file()}  # a link and its target are one file
    files = sorted(file for file in resolved if file.parent != output or not OUTPUT_NAME.fullmatch(file.name))
    if not files:
        raise InputError(f"{given!r} matches no input files; use a file, a folder or a pattern like 'texts/*.parquet'")
    formats = {FORMATS.get(file.suffix) for file in files}
    if len(formats) != 1 or None in formats:
        other = next((f"{file} is neither" for file in files if file.suffix not in FORMATS), "there are both")
        raise InputError(f"the input must be uncompressed, and all .parquet or all .jsonl (.ndjson): {other}")
    return files


def describe(files: Sequence[Path]) -> list[InputFile]:
    """Return the size, modification time and row count of *files*. Reads only Parquet metadata.

    Raises:
        InputError: a file cannot be read, or is not a Parquet file.
    """
    described = []
    for file in files:
        try:
            facts = file.stat()
            rows = int(pq.read_metadata(file).num_rows) if FORMATS[file.suffix] == "parquet" else 0
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{file} cannot be read: {first_line(error)}") from None
        described.append(InputFile(str(file), facts.st_size, facts.st_mtime_ns, rows))
    return described


def choose_columns(
    files: Sequence[InputFile], text: str, keep: Sequence[str] | None, *, skip_bad_rows: bool = False
) -> Columns:
    """Choose the columns to read.

    Args:
        files: files of one format.
        text: the column to embed.
        keep: the columns of the output; None keeps all.
        skip_bad_rows: accept JSON Lines of which no sampled line has a string in *text*.

    Raises:
        InputError: a column is missing, its type differs between files, or *text* does not contain strings.
    """
    wanted = None if keep is None else {text, *keep}
    if files[0].format == "parquet":
        schema = _parquet_schema(files, wanted)
    else:
        schema = _sampled_schema(files, wanted, text, skip_bad_rows=skip_bad_rows)
    if duplicates := [name for name, count in Counter(schema.names).items() if count > 1]:
        raise InputError(f"there are two columns named {duplicates[0]!r}; rename one, or exclude them with --keep")
    _require([text, *(keep or ())], schema.names)
    found = schema.field(text).type
    if not (pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found)):
        raise InputError(f"the column {text!r} contains {found}, not strings")
    kept = pa.schema([schema.field(name) for name in schema.names if keep is None or name in keep])
    return Columns(text, kept, keeps_all=keep is None)


def choose_unit_rows(files: Sequence[InputFile], cores: int) -> int:
    """Return the rows per unit for which progress shows, all *cores* work, and there are not too many files."""
    rows = sum(map(_estimate_rows, files))
    usual = min(max(rows // TARGET_UNITS, USUAL_UNIT_ROWS), MAX_UNIT_ROWS)
    busy = max(rows // (UNITS_PER_CORE * cores), MIN_UNIT_ROWS)  # few rows: smaller units, for all cores
    return max(min(usual, busy), -(-rows // MAX_UNITS))


def split_into_units(files: Sequence[InputFile], rows_per_unit: int) -> list[Unit]:
    """Split *files* into units, in order. JSON Lines units contain approximately *rows_per_unit* rows."""
    units: list[Unit] = []
    for file in files:
        if file.format == "parquet":
            end, step = file.rows, rows_per_unit
        else:
            end, step = file.size_bytes, _estimate_bytes(file, rows_per_unit)
        units += [
            Unit(len(units) + index, file.path, start, min(start + step, end))
            for index, start in enumerate(range(0, end, step))
        ]
    return units


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its class name; at most 300 characters."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _walk(folder: Path) -> Iterator[Path]:
    """Yield all files below *folder*; does not follow links to folders.

    Raises:
        InputError: a folder cannot be read, or an input file is compressed; skipping them would lose rows unnoticed.
    """

    def fail(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}")

    for parent, _, names in os.walk(folder, onerror=fail):
        for file in (Path(parent, name) for name in names):
            is_compressed = file.suffix in COMPRESSED_SUFFIXES and file.with_suffix("").suffix in FORMATS
            if is_compressed and not _is_hidden(file, folder):
                raise InputError(f"{file} is compressed; decompress it, or move it elsewhere")
            yield file


def _is_hidden(file: Path, below: Path) -> bool:
    return any(part.startswith((".", "_")) for part in file.relative_to(below).parts)


def _parquet_schema(files: Sequence[InputFile], wanted: set[str] | None) -> pa.Schema:
    def schema_of(file: InputFile) -> pa.Schema:
        return pa.schema([field for field in pq.read_schema(file.path) if wanted is None or field.name in wanted])

    first = schema_of(files[0])
    for file in files[1:]:
        if not (schema := schema_of(file)).equals(first):
            raise InputError(
                f"{file.path} has other columns than {files[0].path}: {_summary(schema)}, not {_summary(first)}; "
                "embed them in separate jobs, or choose common columns with --keep"
            )
    return first


def _require(names: Iterable[str], found: Iterable[str]) -> None:
    for name in names:
        if name not in found:
            raise InputError(f"there is no column {name!r}; the input has {', '.join(found) or 'none'}")


def _summary(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema) or "none"


def _sampled_schema(
    files: Sequence[InputFile], wanted: set[str] | None, text: str, *, skip_bad_rows: bool
) -> pa.Schema:
    """Return the columns of the sampled rows. *text* is a string: a row in which it is not is a bad row."""
    rows: list[dict[str, Any]] = []
    for file in files[:: max(1, len(files) // SAMPLED_FILES)]:
        rows += _sampled_rows(file)
    if not rows:  # nothing but broken lines, which are reported when their unit is read
        return pa.schema([(name, pa.string() if name == text else pa.null()) for name in sorted(wanted or {text})])
    names = dict.fromkeys(name for row in rows for name in row if wanted is None or name in wanted)
    _require([text], names)
    if not skip_bad_rows and not any(isinstance(row.get(text), str) for row in rows):
        raise InputError(f"the column {text!r} contains no string in the sampled lines")
    fields = []
    for name in names:
        if name == text:
            fields.append(pa.field(name, pa.string()))
            continue
        try:
            fields.append(pa.field(name, pa.array([row.get(name) for row in rows]).type))
        except (pa.ArrowException, OverflowError):
            raise InputError(
                f"the column {name!r} contains values of different types; exclude it with --keep"
            ) from None
    return pa.schema(fields)


def _sampled_rows(file: InputFile) -> list[dict[str, Any]]:
    """Parse the sampled lines. Skips broken lines: they are reported when their unit is read."""
    rows: list[dict[str, Any]] = []
    for line in _first_lines(file):
        try:
            row = orjson.loads(line.removeprefix(BYTE_ORDER_MARK))
        except orjson.JSONDecodeError:
            continue
        if isinstance(row, dict):
            rows.append(row)
            if len(rows) == SAMPLED_LINES:
                break
    return rows


def _first_lines(file: InputFile) -> Iterator[bytes]:
    """Yield lines until their size reaches `SAMPLED_BYTES`."""
    size_bytes = 0
    try:
        with Path(file.path).open("rb") as opened:
            while size_bytes < SAMPLED_BYTES and (line := opened.readline(MAX_LINE_BYTES)):
                yield line
                size_bytes += len(line)
    except OSError as error:
        raise InputError(f"{file.path} cannot be read: {first_line(error)}") from None


def _estimate_rows(file: InputFile) -> int:
    """Return the rows of a Parquet file; estimate those of JSON Lines from the mean size of the first lines."""
    if file.format == "parquet" or not file.size_bytes:
        return file.rows
    return max(1, file.size_bytes // _estimate_bytes(file, 1))


def _estimate_bytes(file: InputFile, rows: int) -> int:
    """Estimate the size of *rows* lines from the first ones."""
    sizes = [len(line) for line in islice(_first_lines(file), SAMPLED_LINES)] or [1]
    return min(MAX_UNIT_BYTES, max(1, rows * sum(sizes) // len(sizes)))
