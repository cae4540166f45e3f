"""`python main.py compare`, from end to end on real models."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnxruntime.quantization import quantize_dynamic

from cli.compare import prepare_texts
from cli.console import CommandError
from config import BUNDLED_MODEL
from engine.catalog import read_catalog
from engine.encoder import load_encoder
from tests.support.commands import HUB_MODEL, Outcome, change, command, write_matmul_model
from tests.support.tiny import WORDS, TinyModel

pytestmark = pytest.mark.timeout(60)

FLOAT, INT8, OTHER = "acme/float", "acme/int8", "acme/other"
PLAIN_WORDS = WORDS[:6]
TEXTS = [" ".join(words) for count in (2, 3, 4, 5) for words in combinations([*PLAIN_WORDS, "warm"], count)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, the same one quantised dynamically, and one of other dimensions."""
    parent = tmp_path_factory.mktemp("models")
    folder = write_matmul_model(parent, FLOAT)
    quantised = write_matmul_model(parent, INT8)
    quantize_dynamic(folder / "model.onnx", quantised / "model.onnx", op_types_to_quantize=["MatMul"])
    TinyModel(OTHER, dim=6).write(parent)
    return parent


def compare(models: Path, *arguments: str, texts: Sequence[str] = TEXTS) -> Outcome:
    """Compare on *texts*, given on standard input."""
    folders = {"MODELS_DIR": str(models), "HUB_CACHE_DIR": str(models / "hub")}
    return command("compare", *arguments, "--texts", "-", variables=folders, stdin="\n".join(texts).encode())


@pytest.fixture(scope="module")
def quantised(models: Path) -> Outcome:
    return compare(models, FLOAT, INT8, "--json")


def vectors_of(models: Path, name: str) -> NDArray[np.float64]:
    """Each text run alone, which is how the quantised model must be run; at length 1."""
    encoder = load_encoder(read_catalog([models], bundled="").get(name), hub_cache_dir=models)
    rows = np.concatenate([encoder.encode(encoder.tokenizer.tokenize([text])) for text in TEXTS]).astype(np.float64)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def nearest(vectors: NDArray[np.float64]) -> list[set[int]]:
    similarities = vectors @ vectors.T
    np.fill_diagonal(similarities, -2)
    return [set(np.argsort(-row.round(6), kind="stable")[:10].tolist()) for row in similarities]


def test_agreement_is_that_of_the_vectors(models: Path, quantised: Outcome) -> None:
    first, second = vectors_of(models, FLOAT), vectors_of(models, INT8)
    cosines = (first * second).sum(axis=1)
    shares = [len(ours & theirs) / 10 for ours, theirs in zip(nearest(first), nearest(second), strict=True)]
    found = quantised.json
    assert found["cosine"]["mean"] == pytest.approx(cosines.mean(), abs=2e-6)
    assert found["cosine"]["p5"] == pytest.approx(np.percentile(cosines, 5), abs=2e-6)
    assert found["cosine"]["least"] == pytest.approx(cosines.min(), abs=2e-6)
    assert found["cosine"]["least_line"] == int(cosines.argmin()) + 1
    assert 0.5 < np.mean(shares) < 1.0
    assert found["overlap"]["mean"] == pytest.approx(np.mean(shares), abs=0.002)  # float32 may order two near ones anew
    assert found["overlap"]["least"] == pytest.approx(min(shares))


def test_each_model_is_described(models: Path, quantised: Outcome) -> None:
    first, second = quantised.json["models"]["a"], quantised.json["models"]["b"]
    assert (first["model"], first["source"], first["dimension"]) == (FLOAT, "local", 32)
    assert (second["model"], second["batch_invariant"], second["batching"]) == (INT8, False, "single")
    assert (first["batch_invariant"], first["batching"]) == (True, "mixed")
    assert first["fingerprint"] != second["fingerprint"]
    assert first["file_bytes"] > (models / "acme--float" / "model.onnx").stat().st_size
    for side in (first, second):
        assert side["ms_per_text"] > 0
        assert side["load_seconds"] > 0
        assert side["truncated"] == 0


def test_json_is_all_there_is_on_standard_output(quantised: Outcome) -> None:
    assert quantised.code == 0
    assert set(quantised.json) >= {"texts", "models", "cosine", "overlap", "agreement", "verdict"}
    assert quantised.json["texts"] == len(TEXTS)


def test_progress_is_shown_on_standard_error(quantised: Outcome) -> None:
    assert f"Loading {FLOAT}" in quantised.err
    assert "embedded" in quantised.err


@pytest.fixture(scope="module")
def for_people(models: Path) -> Outcome:
    """Models of other dimensions, as a table."""
    return compare(models, FLOAT, OTHER, "--limit", "20")


def test_result_for_people_fits_the_terminal_and_has_no_colours(for_people: Outcome) -> None:
    assert for_people.code == 0
    assert max(map(len, for_people.out.splitlines())) <= 100
    assert "\033" not in for_people.out + for_people.err
    for part in (FLOAT, OTHER, "ms per text", "MB in memory", "overlap@10", "B takes"):
        assert part in for_people.out


def test_models_of_other_dimensions_are_compared_by_neighbours(for_people: Outcome) -> None:
    assert "cosine: not comparable (32 and 6 dimensions)" in for_people.out
    assert "overlap@10" in for_people.out


def test_more_texts_than_the_limit_are_left_out_and_told(for_people: Outcome) -> None:
    told = f"{len(TEXTS) - 20} more are left out"
    assert told in for_people.err
    assert for_people.out.startswith(f"20 texts; lines left out: {len(TEXTS) - 20} beyond the limit\n")


def test_model_compared_with_itself_agrees_wholly(models: Path) -> None:
    found = compare(models, FLOAT, FLOAT, "--json").json
    assert found["overlap"]["least"] == 1.0
    assert found["cosine"]["least"] == pytest.approx(1.0, abs=1e-6)
    assert (found["agreement"], found["may_share_index"]) == ("same", True)


def test_bundled_model_is_compared_without_a_hub(models: Path) -> None:
    found = compare(models, BUNDLED_MODEL, FLOAT, "--json", texts=TEXTS[:12]).json
    assert found["cosine"] is None
    assert found["models"]["a"]["source"] == "bundled"


def test_input_type_puts_each_models_own_prompt_before_the_texts(tmp_path: Path) -> None:
    TinyModel("acme/plain").write(tmp_path)
    change(TinyModel("acme/prompted").write(tmp_path), prompts={"query": "five five five "})
    without = compare(tmp_path, "acme/plain", "acme/prompted")
    assert "B wants to know what texts are" in without.out
    assert "1.0000" in without.out
    found = compare(tmp_path, "acme/plain", "acme/prompted", "--input-type", "query", "--json").json
    assert found["input_type"] == "query"
    assert found["cosine"]["mean"] < 0.99


def test_few_texts_are_no_ground_for_a_verdict_and_long_ones_are_counted(models: Path) -> None:
    found = compare(models, FLOAT, INT8, "--json", texts=[*TEXTS[:10], "one " * 30]).json
    assert (found["agreement"], found["may_share_index"]) == ("unknown", False)
    assert "Too few texts" in found["verdict"]
    assert (found["models"]["a"]["truncated"], found["models"]["b"]["truncated"]) == (1, 1)


def test_failure_tells_model_and_line_but_not_the_text(tmp_path: Path) -> None:
    TinyModel("acme/tiny").write(tmp_path)
    outcome = compare(tmp_path, "acme/tiny", "acme/tiny", texts=["one two", "", "one poison"])
    assert (outcome.code, outcome.out) == (1, "")
    last = outcome.err.splitlines()[-1]
    assert last == "The model 'acme/tiny' cannot be compared: it failed (InvalidArgument) (line 3)."
    assert "poison" not in outcome.err


def test_model_that_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    folder = TinyModel("acme/broken").write(tmp_path)
    (folder / "model.onnx").write_bytes(b"no model")
    outcome = compare(tmp_path, BUNDLED_MODEL, "acme/broken")
    assert (outcome.code, outcome.out) == (1, "")
    assert "'acme/broken' cannot be compared: its files are missing or broken" in outcome.err
    assert str(tmp_path) not in outcome.err


def test_model_that_the_hub_does_not_give_is_told(models: Path) -> None:
    outcome = compare(models, FLOAT, HUB_MODEL)
    assert (outcome.code, outcome.out) == (1, "")
    assert "the hub cannot be reached" in outcome.err


def test_unknown_models_are_told_with_the_closest_names(models: Path) -> None:
    outcome = compare(models, "acme/flaot", "acme/in8")
    assert (outcome.code, outcome.out) == (2, "")
    first, second = outcome.err.splitlines()
    assert first.startswith("No model is named 'acme/flaot'. Did you mean 'acme/float'")
    assert second.startswith("No model is named 'acme/in8'. Did you mean 'acme/int8'")


def test_lines_of_the_file_are_counted_as_an_editor_does(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_bytes("\ufeffone\r\n\r\n two \none\n  \nfünf\u2028fünf\ntwo".encode())
    texts = prepare_texts(str(file), limit=100)
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
def test_texts_that_cannot_be_used_are_wrong_use(
    content: bytes | None, limit: int, reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "texts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CommandError, match=reason) as refusal:
        prepare_texts(str(file), limit=limit)
    assert refusal.value.exit_code == 2
