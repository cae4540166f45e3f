"""A unit becomes one complete file with the service's vectors, and is never embedded twice."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from config import BUNDLED_MODEL, BUNDLED_MODELS_DIR
from deploy.ray.bulk_inputs import Columns, InputError, Unit
from deploy.ray.bulk_units import NEW_COLUMNS, JobSpec, embed_unit
from engine.catalog import read_catalog
from engine.encoder import Encoder, load_encoder
from engine.options import EmbedOptions

TEXTS = ["How do I reset my password?", "x", "many words " * 300, "One, two, three.", None, "x"]
GOOD = [text for text in TEXTS if text]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    model = read_catalog([BUNDLED_MODELS_DIR], bundled=BUNDLED_MODEL).get(BUNDLED_MODEL)
    return load_encoder(model, hub_cache_dir=Path("unused"))


@pytest.fixture
def unit(tmp_path: Path) -> Unit:
    pq.write_table(pa.table({"id": range(len(TEXTS)), "text": TEXTS}), tmp_path / "in.parquet")
    return Unit(3, str(tmp_path / "in.parquet"), 0, len(TEXTS))


@pytest.fixture
def spec(tmp_path: Path, encoder: Encoder) -> JobSpec:
    (tmp_path / "out").mkdir()
    return JobSpec(
        output=str(tmp_path / "out"),
        columns=Columns("text", pa.schema([("id", pa.int64())]), keeps_all=False),
        model=encoder.name,
        fingerprint=encoder.fingerprint.digest if encoder.fingerprint else "",
        options=EmbedOptions(),
        run="first",
        skip_bad_rows=True,
        budget_tokens=256,
    )


def read_output(spec: JobSpec, unit: Unit) -> pa.Table:
    return pq.read_table(Path(spec.output) / unit.output_name)


def test_output_has_the_vectors_of_each_text_alone_and_the_options_of_the_job(
    encoder: Encoder, unit: Unit, spec: JobSpec
) -> None:
    result = embed_unit(encoder, unit, spec)
    table = read_output(spec, unit)
    alone = np.concatenate([encoder.encode(encoder.tokenizer.tokenize([text])) for text in GOOD])
    np.testing.assert_allclose(np.stack(table["embedding"].to_numpy()), alone, atol=1e-6)
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 384)
    assert table["id"].to_pylist() == [0, 1, 2, 3, 5]
    assert table["tokens"].to_pylist() == [item.tokens for item in encoder.tokenizer.tokenize(GOOD)]
    assert table["truncated"].to_pylist() == [False, False, True, False, False]
    assert (result.texts, result.truncated, result.skipped, result.failure) == (5, 1, 1, "")
    assert result.bad_rows == (f"{unit.path}, row 4: the text is missing or null",)
    metadata = table.schema.metadata
    assert metadata[b"fast_embedding.model"] == encoder.name.encode()
    assert metadata[b"fast_embedding.fingerprint"] == spec.fingerprint.encode()
    assert json.loads(metadata[b"fast_embedding.options"])["dtype"] == "float32"


def test_existing_file_is_not_embedded_again(encoder: Encoder, unit: Unit, spec: JobSpec) -> None:
    """Ray repeats the unit of an actor that died after it wrote the file and before it returned the result."""
    first = embed_unit(encoder, unit, spec)
    written = (Path(spec.output) / unit.output_name).stat().st_mtime_ns
    assert embed_unit(encoder, unit, replace(spec, run="second")) == first
    assert (Path(spec.output) / unit.output_name).stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("options", "type_"),
    [
        (EmbedOptions(dtype="float16"), pa.list_(pa.float16(), 384)),
        (EmbedOptions(dtype="int8"), pa.list_(pa.int8(), 384)),
        (EmbedOptions(dtype="ubinary"), pa.list_(pa.uint8(), 48)),
        (EmbedOptions(dimensions=64, allow_untrained_dimensions=True), pa.list_(pa.float32(), 64)),
        (EmbedOptions(long_text="mean"), pa.list_(pa.float32(), 384)),
    ],
)
def test_options_determine_the_vectors(
    options: EmbedOptions, type_: pa.DataType, encoder: Encoder, unit: Unit, spec: JobSpec
) -> None:
    """A unit without good rows gives an empty file with the same columns."""
    spec = replace(spec, options=options)
    embed_unit(encoder, unit, spec)
    table = read_output(spec, unit)
    assert table.schema.field("embedding").type == type_
    assert table.num_rows == len(GOOD)
    assert any(table["truncated"].to_pylist()) is (options.long_text != "mean")
    without_good_rows = replace(unit, number=4, start=4, stop=5)
    assert embed_unit(encoder, without_good_rows, spec).texts == 0
    assert read_output(spec, without_good_rows).schema == table.schema


def test_bad_row_fails_the_job_unless_bad_rows_are_skipped(encoder: Encoder, unit: Unit, spec: JobSpec) -> None:
    with pytest.raises(InputError, match=r"in\.parquet, row 4: the text is missing or null; correct it, or skip such"):
        embed_unit(encoder, unit, replace(spec, skip_bad_rows=False))
    assert list(Path(spec.output).iterdir()) == []


def test_output_can_have_no_columns_of_the_input(encoder: Encoder, unit: Unit, spec: JobSpec) -> None:
    embed_unit(encoder, unit, replace(spec, columns=Columns("text", pa.schema([]), keeps_all=False)))
    assert read_output(spec, unit).column_names == [*NEW_COLUMNS]
    assert read_output(spec, unit).num_rows == len(GOOD)


def test_file_of_another_program_is_reported(encoder: Encoder, unit: Unit, spec: JobSpec) -> None:
    (Path(spec.output) / unit.output_name).write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"part-000003\.parquet was not written by this job"):
        embed_unit(encoder, unit, spec)


def test_value_that_parquet_cannot_store_is_reported(tmp_path: Path, encoder: Encoder, spec: JobSpec) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text('{"text": "x", "meta": {}}\n')
    columns = Columns("text", pa.schema([("meta", pa.struct([]))]), keeps_all=False)
    with pytest.raises(InputError, match=r"part-000000\.parquet cannot be written: .*; exclude the column with --keep"):
        embed_unit(encoder, Unit(0, str(file), 0, file.stat().st_size), replace(spec, columns=columns))
    assert list(Path(spec.output).iterdir()) == []


def test_text_that_is_not_utf_8_is_reported(tmp_path: Path, encoder: Encoder, spec: JobSpec) -> None:
    file = tmp_path / "in.parquet"
    pq.write_table(pa.table({"id": [1], "text": pa.array([b"\xff\xfe"], pa.binary()).view(pa.string())}), file)
    with pytest.raises(InputError, match=r"in\.parquet cannot be read: "):
        embed_unit(encoder, Unit(0, str(file), 0, 1), spec)
