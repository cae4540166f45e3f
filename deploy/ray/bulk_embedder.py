"""One unit of a bulk job: its texts in, one Parquet file out, which is there whole or not at all.

A unit's texts are cut into micro-batches of least cost over all of them, sorted by length, so less is padded than in
a service, which must take what waits. The model has one thread: a core for each actor, and nothing handed over.
"""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deploy.ray.bulk_inputs import Columns, InputError, Unit, first_line
from deploy.ray.bulk_rows import UnitRows, place_of, read_unit
from engine.encoder import Encoder
from engine.errors import InvalidVectorError
from engine.jobs import Matrix, cut_into_runs
from engine.options import EmbedOptions
from engine.pipeline import PreparedTexts, postprocess, prepare_texts
from engine.vectors import convert

ABOUT = "fast_embedding"
"""What the keys of our metadata in a file's schema begin with."""
TOKENIZED_AT_ONCE = 64
"""Texts; the tokenizer holds far more of a text than its tokens."""
TOLD_BAD_ROWS = 3
"""Bad rows of a unit that are told with their place; all are counted."""
MAX_TOLD_TEXT = 300


@dataclass(frozen=True, slots=True)
class Work:
    """What all units of a job have in common.

    Attributes:
        run: names the run of the job that embeds; a resumed job has more than one.
        skips_bad_rows: leaves bad rows out, instead of failing.
        budget_tokens: padded tokens in one model run at most.
    """

    output: str
    columns: Columns
    model: str
    fingerprint: str
    options: EmbedOptions
    run: str
    skips_bad_rows: bool
    budget_tokens: int


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a unit.

    Attributes:
        run: the run of the job that embedded it; not the present one where it was there already.
        skipped: bad rows that were left out; *bad_rows* tells some of them.
        failure: why nothing was written; empty: it was.
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


def embed_unit(encoder: Encoder, unit: Unit, work: Work) -> Done:
    """Embed *unit* and write its file, unless that is there already.

    Raises:
        InputError: the input or the output cannot be used, or a row is bad and bad rows are not skipped.
        ServiceError: the model cannot embed it.
    """
    target = Path(work.output) / unit.output_name
    if target.exists():
        return read_done(target)
    started = time.perf_counter()
    rows = read_unit(unit, work.columns)
    if rows.bad and not work.skips_bad_rows:
        told = f"{place_of(unit, rows.bad[0].position)}: {rows.bad[0].why}"
        raise InputError(f"{told}; mend it, or leave out such rows by --on-bad-row skip")
    vectors, read = _vectors_of(encoder, unit, rows, work)
    done = Done(
        number=unit.number,
        run=work.run,
        texts=len(rows.texts),
        tokens=sum(read.tokens),
        truncated=sum(read.truncated),
        skipped=len(rows.bad),
        bad_rows=tuple(f"{place_of(unit, bad.position)}: {bad.why}" for bad in rows.bad[:TOLD_BAD_ROWS]),
        seconds=round(time.perf_counter() - started, 3),
    )
    _write(target, _table_of(rows, vectors, read), {**_facts_of(work), "unit": json.dumps(asdict(done))})
    return done


def read_done(target: Path) -> Done:
    """What became of the unit whose file is there.

    Raises:
        InputError: it is no file of a bulk job.
    """
    try:
        found = json.loads((pq.read_schema(target).metadata or {})[f"{ABOUT}.unit".encode()])
        return Done(**{**found, "bad_rows": tuple(found["bad_rows"])})
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{target} is no file that this job has written ({type(error).__name__}); remove it") from None


def _vectors_of(encoder: Encoder, unit: Unit, rows: UnitRows, work: Work) -> tuple[NDArray[Any], PreparedTexts]:
    options = work.options
    if not rows.texts:
        one = np.ones((1, options.dimensions or encoder.dim), np.float32)
        return convert(one, options.dtype)[:0], PreparedTexts([])
    read = _read(encoder, rows.texts, options)
    runnable = encoder.runnable(options.input_type)
    try:
        finished, _ = postprocess(_encode(runnable, read, work.budget_tokens), read, options, encoder.model)
    except InvalidVectorError as error:
        raise InputError(f"{place_of(unit, rows.positions[error.index])}: {error.detail}") from error
    return finished, read


def _read(encoder: Encoder, texts: Sequence[str], options: EmbedOptions) -> PreparedTexts:
    prompt = encoder.model.card.prompt_for(options.input_type)
    parts = [
        prepare_texts(encoder.tokenizer, texts[start : start + TOKENIZED_AT_ONCE], prompt, options)
        for start in range(0, len(texts), TOKENIZED_AT_ONCE)
    ]
    items = [item for part in parts for item in part.items]
    if all(part.counts is None for part in parts):
        return PreparedTexts(items)
    return PreparedTexts(items, [count for part in parts for count in part.counts or [1] * len(part.items)])


def _encode(runnable: Any, read: PreparedTexts, budget_tokens: int) -> Matrix:
    """The vectors of all items, by runs of least cost, in the order of the items."""
    items = read.items
    order = sorted(range(len(items)), key=lambda index: -items[index].length)
    runs = cut_into_runs([items[index].length for index in order], runnable.batching, budget_tokens=budget_tokens)
    vectors: Matrix = np.empty((len(items), runnable.dim), np.float32)
    start = 0
    for count, _ in runs:
        chosen = order[start : start + count]
        vectors[chosen] = runnable.encode([items[index] for index in chosen])
        start += count
    return vectors


def _table_of(rows: UnitRows, vectors: NDArray[Any], read: PreparedTexts) -> pa.Table:
    numbers = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    return pa.table(
        {
            **{name: rows.table[name] for name in rows.table.column_names},
            "embedding": pa.FixedSizeListArray.from_arrays(numbers, vectors.shape[1]),
            "tokens": pa.array(read.tokens, pa.int32()),
            "truncated": pa.array(read.truncated, pa.bool_()),
        }
    )


NEW_COLUMNS = ("embedding", "tokens", "truncated")


def _facts_of(work: Work) -> dict[str, str]:
    return {"model": work.model, "fingerprint": work.fingerprint, "options": json.dumps(asdict(work.options))}


def _write(target: Path, table: pa.Table, facts: dict[str, str]) -> None:
    """Write beside the target, then rename: whoever reads the folder sees whole files only."""
    table = table.replace_schema_metadata({f"{ABOUT}.{name}": value for name, value in facts.items()})
    unfinished = target.with_name(f".{target.name}.{uuid4().hex}.unfinished")
    try:
        with unfinished.open("wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(target)
    except OSError as error:
        raise InputError(f"{target} cannot be written ({error.strerror})") from None
    except pa.ArrowException as error:  # such as an object without any field
        raise InputError(f"{target} cannot be written: {first_line(error)}; leave a column out by --keep") from None
    finally:
        unfinished.unlink(missing_ok=True)
