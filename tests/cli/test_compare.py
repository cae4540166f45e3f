"""`python main.py compare`: real models, compared from the texts to the report."""

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnxruntime.quantization import quantize_dynamic

from cli.compare import read_texts
from cli.console import CommandError
from config import BUNDLED_MODEL
from engine.catalog import read_catalog
from engine.encoder import load_encoder
from tests.support.commands import HUB_MODEL, Outcome, RunCommand, change, command, write_matmul_model
from tests.support.tiny import WORDS, TinyModel

FLOAT, INT8, OTHER = "acme/float", "acme/int8", "acme/other"
TEXTS = [" ".join(words) for count in (2, 3, 4, 5) for words in combinations([*WORDS[:6], "warm"], count)]

Compare = Callable[..., Outcome]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, the same model quantised dynamically, and one with another number of dimensions."""
    parent = tmp_path_factory.mktemp("models")
    folder = write_matmul_model(parent, FLOAT)
    quantised = write_matmul_model(parent, INT8)
    quantize_dynamic(folder / "model.onnx", quantised / "model.onnx", op_types_to_quantize=["MatMul"])
    TinyModel(OTHER, dim=6).write(parent)
    return parent


@pytest.fixture
def compare(run_command: RunCommand, models: Path, tmp_path: Path) -> Compare:
    """Compare two models of *models*, or of the folder given, on texts."""

    def compare_here(*arguments: str, texts: Sequence[str] = TEXTS, folder: Path = models) -> Outcome:
        file = tmp_path / "texts.txt"
        file.write_text("\n".join(texts))
        return run_command("compare", *arguments, "--texts", str(file), MODELS_DIR=str(folder))

    return compare_here


def vectors_of(models: Path, name: str) -> NDArray[np.float64]:
    """Embed each text alone, as the quantised model must be run, and scale the vectors to length 1."""
    encoder = load_encoder(read_catalog([models], bundled="").get(name), hub_cache_dir=models)
    rows = np.concatenate([encoder.encode(encoder.tokenizer.tokenize([text])) for text in TEXTS]).astype(np.float64)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def nearest(vectors: NDArray[np.float64]) -> list[set[int]]:
    similarities = vectors @ vectors.T
    np.fill_diagonal(similarities, -2)
    return [set(np.argsort(-row.round(6), kind="stable")[:10].tolist()) for row in similarities]


@pytest.mark.timeout(60)  # starts processes
def test_models_in_processes_of_their_own_are_compared_on_texts_from_standard_input(models: Path) -> None:
    outcome = command(
        "compare", FLOAT, INT8, "--texts", "-", "--json",
        variables={"MODELS_DIR": str(models), "HUB_CACHE_DIR": str(models / "hub")},
        stdin="\n".join(TEXTS).encode(),
    )  # fmt: skip
    found = outcome.json  # so standard output contains nothing else
    assert (outcome.code, found["texts"]) == (0, len(TEXTS))
    assert f"Loading {FLOAT}" in outcome.err
    assert "  embedded: " in outcome.err
    first, second = found["models"]["a"], found["models"]["b"]
    assert (first["model"], first["source"], first["dimension"]) == (FLOAT, "local", 32)
    assert (first["batch_invariant"], first["batching"]) == (True, "mixed")
    assert (second["model"], second["batch_invariant"], second["batching"]) == (INT8, False, "single")
    assert first["fingerprint"] != second["fingerprint"]
    assert first["file_bytes"] > (models / "acme--float" / "model.onnx").stat().st_size
    for side in (first, second):
        assert side["ms_per_text"] > 0
        assert side["load_seconds"] > 0
        assert side["truncated"] == 0


def test_agreement_is_that_of_the_vectors(models: Path, compare: Compare) -> None:
    found = compare(FLOAT, INT8, "--json").json
    first, second = vectors_of(models, FLOAT), vectors_of(models, INT8)
    cosines = (first * second).sum(axis=1)
    shares = [len(ours & theirs) / 10 for ours, theirs in zip(nearest(first), nearest(second), strict=True)]
    assert found["cosine"]["mean"] == pytest.approx(cosines.mean(), abs=2e-6)
    assert found["cosine"]["p5"] == pytest.approx(np.percentile(cosines, 5), abs=2e-6)
    assert found["cosine"]["least"] == pytest.approx(cosines.min(), abs=2e-6)
    assert found["cosine"]["least_line"] == int(cosines.argmin()) + 1
    assert 0.5 < np.mean(shares) < 1.0
    assert found["overlap"]["mean"] == pytest.approx(np.mean(shares), abs=0.002)  # float32 may swap two near ones
    assert found["overlap"]["least"] == pytest.approx(min(shares))


def test_report_for_people_fits_into_100_columns_without_colours(compare: Compare) -> None:
    outcome = compare(FLOAT, OTHER, "--limit", "20")
    assert outcome.code == 0
    assert max(map(len, outcome.out.splitlines())) <= 100
    assert "\033" not in outcome.out + outcome.err
    for part in (FLOAT, OTHER, "ms per text", "MB in memory", "overlap@10", "B takes"):
        assert part in outcome.out
    assert f"--limit excludes {len(TEXTS) - 20} more" in outcome.err
    assert outcome.out.startswith(f"20 texts; skipped lines: {len(TEXTS) - 20} beyond --limit\n")


def test_models_of_different_dimensions_are_compared_by_neighbours_only(compare: Compare) -> None:
    outcome = compare(FLOAT, OTHER)
    assert "cosine: not comparable (32 and 6 dimensions)" in outcome.out
    assert "overlap@10" in outcome.out


def test_model_agrees_with_itself(compare: Compare) -> None:
    found = compare(FLOAT, FLOAT, "--json").json
    assert found["overlap"]["least"] == 1.0
    assert found["cosine"]["least"] == pytest.approx(1.0, abs=1e-6)
    assert (found["agreement"], found["may_share_index"]) == ("same", True)


def test_bundled_model_needs_no_hub(compare: Compare) -> None:
    found = compare(BUNDLED_MODEL, FLOAT, "--json", texts=TEXTS[:12]).json
    assert (found["cosine"], found["models"]["a"]["source"]) == (None, "bundled")


def test_input_type_selects_each_models_own_prompt(compare: Compare, tmp_path: Path) -> None:
    TinyModel("acme/plain").write(tmp_path)
    change(TinyModel("acme/prompted").write(tmp_path), prompts={"query": "five five five "})
    without = compare("acme/plain", "acme/prompted", folder=tmp_path)
    assert "B distinguishes queries from documents" in without.out
    assert "1.0000" in without.out
    found = compare("acme/plain", "acme/prompted", "--input-type", "query", "--json", folder=tmp_path).json
    assert found["input_type"] == "query"
    assert found["cosine"]["mean"] < 0.99


def test_too_few_texts_give_no_verdict_and_truncated_texts_are_counted(compare: Compare) -> None:
    found = compare(FLOAT, INT8, "--json", texts=[*TEXTS[:10], "one " * 30]).json
    assert (found["agreement"], found["may_share_index"]) == ("unknown", False)
    assert "Too few texts" in found["verdict"]
    assert (found["models"]["a"]["truncated"], found["models"]["b"]["truncated"]) == (1, 1)


def test_failure_names_the_model_and_the_line_but_not_the_text(compare: Compare, tmp_path: Path) -> None:
    TinyModel("acme/tiny").write(tmp_path)
    outcome = compare("acme/tiny", "acme/tiny", texts=["one two", "", "one poison"], folder=tmp_path)
    assert (outcome.code, outcome.out) == (1, "")
    last = outcome.err.splitlines()[-1]
    assert last == "The model 'acme/tiny' cannot be compared: it failed (InvalidArgument) (line 3)."
    assert "poison" not in outcome.err


def test_model_that_cannot_be_loaded_is_reported(compare: Compare, tmp_path: Path) -> None:
    (TinyModel("acme/broken").write(tmp_path) / "tokenizer.json").write_bytes(b"no tokenizer")
    outcome = compare(BUNDLED_MODEL, "acme/broken", folder=tmp_path)
    assert (outcome.code, outcome.out) == (1, "")
    assert "'acme/broken' cannot be compared: its file 'tokenizer.json' is not valid JSON" in outcome.err
    assert str(tmp_path) not in outcome.err


def test_model_that_cannot_be_downloaded_is_reported(compare: Compare) -> None:
    outcome = compare(FLOAT, HUB_MODEL)
    assert (outcome.code, outcome.out) == (1, "")
    assert "the hub cannot be reached" in outcome.err


def test_every_unknown_model_is_reported_with_the_closest_names(compare: Compare) -> None:
    outcome = compare("acme/flaot", "acme/in8")
    assert (outcome.code, outcome.out) == (2, "")
    first, second = outcome.err.splitlines()
    assert first.startswith("No model named 'acme/flaot' is offered. Did you mean 'acme/float'")
    assert second.startswith("No model named 'acme/in8' is offered. Did you mean 'acme/int8'")


def test_lines_of_the_file_are_numbered_as_in_an_editor(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_bytes("\ufeffone\r\n\r\n two \none\n  \nfünf\u2028fünf\ntwo".encode())
    texts = read_texts(str(file), limit=100)
    assert texts.texts == ["one", "two", "fünf\u2028fünf"]
    assert texts.lines == [1, 3, 6]
    assert (texts.skipped.blank, texts.skipped.repeated, texts.skipped.beyond_limit) == (2, 2, 0)


@pytest.mark.parametrize(
    ("content", "limit", "reason"),
    [
        pytest.param(b"", 9, "at least 2", id="empty"),
        pytest.param(b"one\none\n\n", 9, "at least 2", id="one text twice"),
        pytest.param(b"one\ntwo\n\xff\n", 9, "line 3 is not UTF-8", id="not UTF-8"),
        pytest.param(None, 9, "No such file", id="missing"),
        pytest.param(b"one\ntwo", 1, "--limit", id="limit too small"),
    ],
)
def test_unusable_texts_are_wrong_use(content: bytes | None, limit: int, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CommandError, match=reason) as failure:
        read_texts(str(file), limit=limit)
    assert failure.value.exit_code == 2
