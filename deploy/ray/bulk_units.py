"""Embeds one unit of a bulk job: reads its rows and writes one Parquet file.

All texts of a unit are sorted by length and cut into micro-batches of least cost. This pads less than the service,
which can only batch the requests that wait. Each actor runs the model on one thread: one core per actor.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deploy.ray.bulk_inputs import Columns, InputError, Unit, first_line
from deploy.ray.bulk_output import atomic_file, write_skipped
from deploy.ray.bulk_rows import BadRow, UnitRows, numbers_of, places_of, read_unit, without
from engine.encoder import Encoder
from engine.errors import InvalidInputError, InvalidVectorError
from engine.options import EmbedOptions
from engine.pipeline import ModelInputs, postprocess, preprocess
from engine.planner import plan_micro_batches
from engine.vectors import Matrix, convert

NEW_COLUMNS = ("embedding", "tokens", "truncated")
METADATA_PREFIX = "fast_embedding"
"""Prefix of our keys in the metadata of a Parquet schema."""
TEXTS_PER_TOKENIZATION, CHARACTERS_PER_TOKENIZATION = 64, 1_000_000
"""Texts that are tokenised at a time. Bounds memory: the tokenizer's own result is much larger than the token ids."""
MAX_REPORTED_BAD_ROWS = 3
"""Bad rows of a unit in its result; a file beside the unit's lists all."""


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What all units of a job share.

    Attributes:
        run: id of this run of the job; a resumed job has several runs.
        skip_bad_rows: skip bad rows instead of failing.
        budget_tokens: maximum padded tokens in one model run.
    """

    output: str
    columns: Columns
    model: str
    fingerprint: str
    options: EmbedOptions
    run: str
    skip_bad_rows: bool
    budget_tokens: int


@dataclass(frozen=True, slots=True)
class UnitResult:
    """The result of one unit.

    Attributes:
        run: the run that embedded it, which is an earlier one if its file existed already.
        skipped: number of bad rows that were skipped.
        bad_rows: places and reasons of some of them.
        failure: why no file was written; empty on success.
    """

    number: int
    run: str
    texts: int = 0
    tokens: int = 0
    truncated: int = 0
    skipped: int = 0
    bad_rows: tuple[str, ...] = ()
    seconds: float = 0.0
    failure: str = ""

    @classmethod
    def from_json(cls, text: str | bytes) -> "UnitResult":
        """Read what `to_json` wrote.

        Raises:
            TypeError, ValueError, KeyError: *text* is something else.
        """
        fields = json.loads(text)
        return cls(**{**fields, "bad_rows": tuple(fields["bad_rows"])})

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def embed_unit(encoder: Encoder, unit: Unit, spec: JobSpec) -> UnitResult:
    """Embed *unit* and write its file, unless the file exists.

    Raises:
        InputError: the input cannot be read or the output cannot be written, or a row is bad and is not to be skipped.
        ServiceError: the model cannot embed it.
    """
    target = Path(spec.output) / unit.output_name
    if target.exists():
        return read_result(target)
    started_s = time.perf_counter()
    rows = read_unit(unit, spec.columns)
    _check_rows(unit, rows, spec)
    rows, vectors, prepared = _embed_rows(encoder, unit, rows, spec)
    numbers = numbers_of(unit, rows.bad)
    write_skipped(Path(spec.output), unit, [(at, bad.reason) for at, bad in zip(numbers, rows.bad, strict=True)])
    result = UnitResult(
        number=unit.number,
        run=spec.run,
        texts=len(rows.texts),
        tokens=sum(prepared.tokens),
        truncated=sum(prepared.truncated),
        skipped=len(rows.bad),
        bad_rows=_reported(unit, rows.bad),
        seconds=round(time.perf_counter() - started_s, 3),
    )
    _write(target, _build_table(rows, vectors, prepared), spec, result)
    return result


def read_result(target: Path) -> UnitResult:
    """Read the result of a finished unit from the metadata of its file.

    Raises:
        InputError: this job did not write the file.
    """
    try:
        return UnitResult.from_json((pq.read_schema(target).metadata or {})[f"{METADATA_PREFIX}.unit".encode()])
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{target} was not written by this job ({type(error).__name__}); remove it") from None


def _reported(unit: Unit, bad: Sequence[BadRow]) -> tuple[str, ...]:
    some = bad[:MAX_REPORTED_BAD_ROWS]
    return tuple(f"{place}: {row.reason}" for place, row in zip(places_of(unit, some), some, strict=True))


def _check_rows(unit: Unit, rows: UnitRows, spec: JobSpec) -> None:
    if rows.bad and not spec.skip_bad_rows:
        raise InputError(f"{_reported(unit, rows.bad)[0]}; correct it, or skip such rows with --on-bad-row skip")


def _embed_rows(
    encoder: Encoder, unit: Unit, rows: UnitRows, spec: JobSpec
) -> tuple[UnitRows, NDArray[Any], ModelInputs]:
    """Return the rows that could be embedded, and the others as bad rows; the vectors; and their inputs."""
    options = spec.options
    prepared, rejected = _prepare(encoder, rows.texts, options)
    rows = without(rows, rejected)
    _check_rows(unit, rows, spec)
    if rows.texts:
        raw = _encode(encoder.runnable(options.input_type), prepared, spec.budget_tokens)
    while rows.texts:
        try:
            return rows, postprocess(raw, prepared, options, encoder.model)[0], prepared
        except InvalidVectorError as error:
            rows = without(rows, {error.index: error.detail})
            _check_rows(unit, rows, spec)
            prepared, kept = _without_text(prepared, error.index)
            raw = raw[kept]
    one = np.ones((1, options.dimensions or encoder.dim), np.float32)
    return rows, convert(one, options.dtype)[:0], ModelInputs([])


def _prepare(encoder: Encoder, texts: Sequence[str], options: EmbedOptions) -> tuple[ModelInputs, dict[int, str]]:
    """Tokenise *texts*.

    Returns:
        The inputs of the accepted texts, and the reasons why others are rejected, by index.
    """
    prompt = encoder.model.card.prompt_for(options.input_type)
    parts: list[ModelInputs] = []
    rejected: dict[int, str] = {}
    for left in _batches(texts):
        while left:
            try:
                parts.append(preprocess(encoder.tokenizer, [texts[index] for index in left], prompt, options))
                break
            except InvalidInputError as error:
                if not isinstance(index := error.extensions.get("index"), int):
                    raise
                rejected[left.pop(index)] = f"the text {error.detail.removeprefix(f'Text {index} ')}"
    items = [item for part in parts for item in part.items]
    counts = [count for part in parts for count in part.window_counts or ()]
    return ModelInputs(items, counts or None), rejected


def _batches(texts: Sequence[str]) -> Iterator[list[int]]:
    """Yield the indexes of the texts that are tokenised together."""
    batch: list[int] = []
    characters = 0
    for index, text in enumerate(texts):
        if len(batch) == TEXTS_PER_TOKENIZATION or (batch and characters + len(text) > CHARACTERS_PER_TOKENIZATION):
            yield batch
            batch, characters = [], 0
        batch.append(index)
        characters += len(text)
    yield batch


def _without_text(prepared: ModelInputs, index: int) -> tuple[ModelInputs, list[int]]:
    """Return the inputs without those of one text, and the indexes of the items that remain."""
    text_indexes = prepared.text_indexes or range(len(prepared.items))
    kept = [item for item, text in enumerate(text_indexes) if text != index]
    counts = prepared.window_counts
    if counts is not None:
        counts = [count for text, count in enumerate(counts) if text != index]
    return ModelInputs([prepared.items[item] for item in kept], counts), kept


def _encode(runnable: Any, prepared: ModelInputs, budget_tokens: int) -> Matrix:
    """Run the model on all items, longest first; return float32 vectors of shape ``(items, dim)`` in item order."""
    items = prepared.items
    lengths = [item.length for item in items]
    vectors: Matrix = np.empty((len(items), runnable.dim), np.float32)
    for batch in plan_micro_batches(lengths, runnable.batching, budget_tokens=budget_tokens):
        vectors[batch] = runnable.encode([items[index] for index in batch])
    return vectors


def _build_table(rows: UnitRows, vectors: NDArray[Any], prepared: ModelInputs) -> pa.Table:
    numbers = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    new = (
        pa.FixedSizeListArray.from_arrays(numbers, vectors.shape[1]),
        pa.array(prepared.tokens, pa.int32()),
        pa.array(prepared.truncated, pa.bool_()),
    )
    kept = {name: rows.table[name] for name in rows.table.column_names}
    return pa.table(kept | dict(zip(NEW_COLUMNS, new, strict=True)))


def _write(target: Path, table: pa.Table, spec: JobSpec, result: UnitResult) -> None:
    metadata = {
        "model": spec.model,
        "fingerprint": spec.fingerprint,
        "options": json.dumps(asdict(spec.options)),
        "unit": result.to_json(),
    }
    table = table.replace_schema_metadata({f"{METADATA_PREFIX}.{name}": value for name, value in metadata.items()})
    with atomic_file(target) as file:
        try:
            pq.write_table(table, file, compression="zstd")
        except pa.ArrowException as error:  # for example a struct column without fields
            raise InputError(
                f"{target} cannot be written: {first_line(error)}; exclude the column with --keep"
            ) from None
