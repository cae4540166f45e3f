"""A unit becomes one whole file, with the vectors that the service gives, and is never embedded twice."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from config import BUNDLED_MODEL, BUNDLED_MODELS_DIR
from deploy.ray.bulk_embedder import Work, embed_unit
from deploy.ray.bulk_inputs import Columns, InputError, Unit
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
def work(tmp_path: Path, encoder: Encoder) -> Work:
    (tmp_path / "out").mkdir()
    return Work(
        output=str(tmp_path / "out"),
        columns=Columns("text", pa.schema([("id", pa.int64())]), are_all=False),
        model=encoder.name,
        fingerprint=encoder.fingerprint.digest if encoder.fingerprint else "",
        options=EmbedOptions(),
        run="first",
        skips_bad_rows=True,
        budget_tokens=256,
    )


def output_of(work: Work, unit: Unit) -> pa.Table:
    return pq.read_table(Path(work.output) / unit.output_name)


def test_vectors_are_those_of_each_text_alone(encoder: Encoder, unit: Unit, work: Work) -> None:
    done = embed_unit(encoder, unit, work)
    table = output_of(work, unit)
    alone = np.concatenate([encoder.encode(encoder.tokenizer.tokenize([text])) for text in GOOD])
    np.testing.assert_allclose(np.stack(table["embedding"].to_numpy()), alone, atol=1e-6)
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 384)
    assert table["id"].to_pylist() == [0, 1, 2, 3, 5]
    assert table["tokens"].to_pylist() == [item.tokens for item in encoder.tokenizer.tokenize(GOOD)]
    assert table["truncated"].to_pylist() == [False, False, True, False, False]
    assert (done.texts, done.truncated, done.skipped, done.failure) == (5, 1, 1, "")
    assert done.bad_rows == (f"{unit.path}, row 4: the text is missing or null",)


def test_file_tells_its_model_and_options(encoder: Encoder, unit: Unit, work: Work) -> None:
    embed_unit(encoder, unit, work)
    metadata = output_of(work, unit).schema.metadata
    assert metadata[b"fast_embedding.model"] == encoder.name.encode()
    assert metadata[b"fast_embedding.fingerprint"] == work.fingerprint.encode()
    assert json.loads(metadata[b"fast_embedding.options"])["dtype"] == "float32"


def test_file_that_is_there_is_not_made_again(encoder: Encoder, unit: Unit, work: Work) -> None:
    """An actor that dies between writing its file and telling of it is stood in for by another."""
    first = embed_unit(encoder, unit, work)
    made = (Path(work.output) / unit.output_name).stat().st_mtime_ns
    assert embed_unit(encoder, unit, replace(work, run="second")) == first
    assert (Path(work.output) / unit.output_name).stat().st_mtime_ns == made


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
def test_vectors_are_as_asked(
    options: EmbedOptions, type_: pa.DataType, encoder: Encoder, unit: Unit, work: Work
) -> None:
    embed_unit(encoder, unit, replace(work, options=options))
    table = output_of(work, unit)
    assert table.schema.field("embedding").type == type_
    assert table.num_rows == len(GOOD)
    assert any(table["truncated"].to_pylist()) is (options.long_text != "mean")


def test_bad_row_ends_the_job_unless_it_is_to_be_left_out(encoder: Encoder, unit: Unit, work: Work) -> None:
    with pytest.raises(InputError, match=r"in\.parquet, row 4: the text is missing or null; mend it, or .*skip"):
        embed_unit(encoder, unit, replace(work, skips_bad_rows=False))
    assert list(Path(work.output).iterdir()) == []


@pytest.mark.parametrize("dtype", ["float32", "ubinary"])
def test_unit_without_good_rows_is_an_empty_file_of_the_same_columns(
    dtype: str, encoder: Encoder, unit: Unit, work: Work
) -> None:
    work = replace(work, options=EmbedOptions(dtype=dtype))  # type: ignore[arg-type]
    embed_unit(encoder, unit, work)
    empty = replace(unit, number=4, start=4, stop=5)
    assert embed_unit(encoder, empty, work).texts == 0
    assert output_of(work, empty).schema == output_of(work, unit).schema


def test_all_columns_may_be_left_out(encoder: Encoder, unit: Unit, work: Work) -> None:
    embed_unit(encoder, unit, replace(work, columns=Columns("text", pa.schema([]), are_all=False)))
    assert output_of(work, unit).column_names == ["embedding", "tokens", "truncated"]
    assert output_of(work, unit).num_rows == len(GOOD)


def test_nothing_is_left_behind_where_the_disk_fails(
    encoder: Encoder, unit: Unit, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="cannot be written \\(No space left on device\\)"):
        embed_unit(encoder, unit, work)
    assert list(Path(work.output).iterdir()) == []


def test_file_that_another_program_has_written_is_told(encoder: Encoder, unit: Unit, work: Work) -> None:
    (Path(work.output) / unit.output_name).write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"part-000003\.parquet is no file that this job has written"):
        embed_unit(encoder, unit, work)


def test_value_that_no_file_can_hold_is_told_in_one_line(tmp_path: Path, encoder: Encoder, work: Work) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text('{"text": "x", "meta": {}}\n')
    columns = Columns("text", pa.schema([("meta", pa.struct([]))]), are_all=False)
    with pytest.raises(InputError, match=r"part-000000\.parquet cannot be written: .*; leave a column out by --keep"):
        embed_unit(encoder, Unit(0, str(file), 0, file.stat().st_size), replace(work, columns=columns))
    assert list(Path(work.output).iterdir()) == []


def test_text_that_is_no_utf_8_is_told_in_one_line(tmp_path: Path, encoder: Encoder, work: Work) -> None:
    file = tmp_path / "in.parquet"
    pq.write_table(pa.table({"id": [1], "text": pa.array([b"\xff\xfe"], pa.binary()).view(pa.string())}), file)
    with pytest.raises(InputError, match=r"in\.parquet cannot be read: "):
        embed_unit(encoder, Unit(0, str(file), 0, 1), work)
