"""A unit becomes one complete file with the service's vectors, and is never embedded twice."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

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
from engine.tokenizer import TokenizedText
from engine.vectors import Matrix

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


class NaNEncoder:
    """A real encoder whose model returns NaN for items of some lengths."""

    def __init__(self, encoder: Encoder, lengths: set[int]) -> None:
        self._encoder = encoder
        self._lengths = lengths

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def runnable(self, _: str | None) -> Any:
        return self

    def encode(self, items: list[TokenizedText]) -> Matrix:
        vectors = self._encoder.encode(items)
        vectors[[item.length in self._lengths for item in items]] = np.nan
        return vectors


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


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()], ids=str)
def test_text_that_is_not_utf_8_is_a_bad_row(
    kind: pa.DataType, tmp_path: Path, encoder: Encoder, spec: JobSpec
) -> None:
    file = tmp_path / "in.parquet"
    texts = pa.array([b"x", b"\xff\xfe", None, "ä".encode()], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"id": range(4), "text": texts.cast(kind)}), file)
    unit = Unit(0, str(file), 0, 4)
    assert embed_unit(encoder, unit, spec).bad_rows == (
        f"{file}, row 1: the text is not valid UTF-8",
        f"{file}, row 2: the text is missing or null",
    )
    assert read_output(spec, unit)["id"].to_pylist() == [0, 3]


def test_all_skipped_rows_are_listed_in_a_file(tmp_path: Path, encoder: Encoder, spec: JobSpec) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text('{"text": "x"}\n{"text": 1}\n\n{"text": 2}\n{"text": "y"}\n{"text": 3}\n{"text": 4}\n{')
    unit = Unit(7, str(file), 14, file.stat().st_size)
    result = embed_unit(encoder, unit, spec)
    assert (result.texts, result.skipped, len(result.bad_rows)) == (1, 5, 3)
    lines = [json.loads(line) for line in (Path(spec.output) / "_skipped-000007.jsonl").read_text().splitlines()]
    assert [line["line"] for line in lines] == [2, 4, 6, 7, 8]
    assert lines[0] == {"file": str(file), "line": 2, "reason": "the text is not a string but a number"}


@pytest.mark.parametrize("long_text", ["truncate", "mean"])
def test_row_whose_vector_is_unusable_is_a_bad_row(
    long_text: Literal["truncate", "mean"], encoder: Encoder, unit: Unit, spec: JobSpec
) -> None:
    """An encoder that returns NaN for some texts: the others keep their own vectors."""
    spec = replace(spec, options=EmbedOptions(long_text=long_text))
    embed_unit(encoder, unit, spec)
    expected = read_output(spec, unit)
    other = replace(unit, number=4)
    bad = {len(encoder.tokenizer.tokenize([text])[0].ids) for text in (GOOD[0], GOOD[1])}  # "x" is there twice
    result = embed_unit(cast("Encoder", NaNEncoder(encoder, bad)), other, spec)
    assert (result.texts, result.skipped) == (2, 4)
    found = read_output(spec, other)
    assert found["id"].to_pylist() == [2, 3]
    np.testing.assert_allclose(
        np.stack(found["embedding"].to_numpy()), np.stack(expected["embedding"].to_numpy())[[2, 3]], atol=1e-6
    )
    with pytest.raises(InputError, match=r"row 0: The vector of text 0 contains NaN"):
        embed_unit(
            cast("Encoder", NaNEncoder(encoder, bad)),
            replace(unit, number=5, stop=1),
            replace(spec, skip_bad_rows=False),
        )


def test_text_that_the_tokenizer_rejects_is_a_bad_row(encoder: Encoder, unit: Unit, spec: JobSpec) -> None:
    spec = replace(spec, options=EmbedOptions(truncate="none"))
    result = embed_unit(encoder, unit, spec)
    assert result.bad_rows[0].startswith(f"{unit.path}, row 2: the text has 602 tokens; the model accepts at most 256")
    assert read_output(spec, unit)["id"].to_pylist() == [0, 1, 3, 5]
    with pytest.raises(InputError, match=r"row 2: the text has 602 tokens"):
        embed_unit(encoder, replace(unit, number=4, stop=4), replace(spec, skip_bad_rows=False))


@pytest.mark.parametrize("long_text", ["truncate", "mean"])
def test_text_in_which_the_model_sees_nothing_is_a_bad_row(
    long_text: Literal["truncate", "mean"], tmp_path: Path, encoder: Encoder, spec: JobSpec
) -> None:
    file = tmp_path / "in.parquet"
    texts = ["\u200b", "a", "\ufeff\u00ad", "\x00", "b", "\ufe0f", "[SEP]"]
    pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), file)
    unit, spec = Unit(0, str(file), 0, len(texts)), replace(spec, options=EmbedOptions(long_text=long_text))
    result = embed_unit(encoder, unit, spec)
    assert (result.texts, result.skipped) == (2, 5)
    assert result.bad_rows[0].startswith(f"{file}, row 0: the text is blank for this model")
    assert read_output(spec, unit)["id"].to_pylist() == [1, 4]


def test_many_characters_are_tokenised_in_parts(
    encoder: Encoder, unit: Unit, spec: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed_unit(encoder, unit, spec)
    monkeypatch.setattr("deploy.ray.bulk_units.CHARACTERS_PER_TOKENIZATION", 30)
    other = replace(unit, number=4)
    embed_unit(encoder, other, spec)
    assert read_output(spec, other).equals(read_output(spec, unit))
