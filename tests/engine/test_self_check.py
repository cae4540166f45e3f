"""Models that pass the self-check, and models that fail: quantised, sensitive to padding, NaN, wrong references."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from config import BUNDLED_MODEL, BUNDLED_MODELS_DIR
from engine.catalog import read_catalog
from engine.encoder import Encoder, load_encoder
from engine.errors import ModelUnavailableError
from engine.self_check import MAX_DRIFT, MIN_COSINE, PROBES, SelfCheckResult, drift_of
from tests.support.tiny import MAX_TOKENS, Reference, TinyModel, mean_of
from tests.support.tiny_models import PROBE_WORDS, matmul, nan_for_unknown, write_padding_sensitive, write_quantised


def load(folder: Path, name: str) -> Encoder:
    return load_encoder(read_catalog([folder], bundled="").get(name), hub_cache_dir=folder / "cache")


def result_of(encoder: Encoder) -> SelfCheckResult:
    assert encoder.self_check
    return encoder.self_check


def cause_of_failure(folder: Path, name: str) -> str:
    with pytest.raises(ModelUnavailableError) as unavailable:
        load(folder, name)
    return unavailable.value.cause


def drift_among(encoder: Encoder, texts: Sequence[str]) -> float:
    """Return how far the vectors of *texts* in one run are from those of each text alone."""
    items = encoder.tokenizer.tokenize(texts)
    alone = np.concatenate([encoder.encode([item]) for item in items])
    return drift_of(encoder.encode(items), alone)


# --- The same vector whatever shares the run -------------------------------------------------------------------------


def test_bundled_model_passes() -> None:
    result = result_of(load(BUNDLED_MODELS_DIR, BUNDLED_MODEL))
    assert result.is_batch_invariant
    assert (result.batching, result.batching_cost, result.is_unit) == ("mixed", 1.0, True)
    assert result.seconds_per_token > 0


def test_model_that_is_not_quantised_shares_runs_among_any_texts(tmp_path: Path) -> None:
    TinyModel("acme/whole", dim=16, max_tokens=64, words=PROBE_WORDS, graph=matmul).write(tmp_path)
    encoder = load(tmp_path, "acme/whole")
    assert result_of(encoder).is_batch_invariant
    assert drift_among(encoder, PROBES) <= MAX_DRIFT
    assert encoder.batching == "mixed"


def test_dynamically_quantised_model_drifts_and_runs_each_text_alone(tmp_path: Path) -> None:
    write_quantised(tmp_path, "acme/int8")
    with capture_logs() as events:
        encoder = load(tmp_path, "acme/int8")
    assert drift_among(encoder, PROBES) > 100 * MAX_DRIFT  # so that the check is needed
    assert drift_among(encoder, ["one two", "three five"]) > MAX_DRIFT  # of equal length
    result = result_of(encoder)
    assert not result.is_batch_invariant
    assert result.batch_drift == pytest.approx(drift_among(encoder, PROBES))
    assert result.batching == encoder.batching == "single"
    assert result.batching_cost > 0
    [event] = [event for event in events if event["event"] == "model_not_batch_invariant"]
    assert (event["model"], event["batching"], event["drift"]) == ("acme/int8", "single", result.batch_drift)


def test_model_that_only_padding_disturbs_runs_texts_of_equal_length_together(tmp_path: Path) -> None:
    write_padding_sensitive(tmp_path, "acme/padded")
    with capture_logs() as events:
        encoder = load(tmp_path, "acme/padded")
    assert drift_among(encoder, ["one", "one two three"]) > MAX_DRIFT
    assert drift_among(encoder, ["one two", "three five"]) <= MAX_DRIFT
    assert result_of(encoder).batching == encoder.batching == "equal"
    assert "model_not_batch_invariant" in [event["event"] for event in events]


@pytest.mark.parametrize(
    ("vectors", "expected", "drift"),
    [
        pytest.param([[3.0, 4.0]], [[6.0, 8.0]], 0.0, id="only the length differs"),
        pytest.param([[1.0, 0.0]], [[0.0, 1.0]], 1.0, id="another direction"),
        pytest.param([[1.0, 0.0], [0.6, 0.8]], [[1.0, 0.0], [0.8, 0.6]], 0.2, id="the second of two"),
        pytest.param([[1.0, 0.0]], [[1.0]], float("inf"), id="another dimension"),
        pytest.param([[1.0]], [[1.0], [1.0]], float("inf"), id="another number of vectors"),
    ],
)
def test_drift_is_the_largest_difference_at_length_one(
    vectors: list[list[float]], expected: list[list[float]], drift: float
) -> None:
    assert drift_of(np.array(vectors, np.float32), np.array(expected, np.float32)) == pytest.approx(drift, abs=1e-6)


def test_model_is_batch_invariant_up_to_the_largest_accepted_drift() -> None:
    def is_invariant(drift: float | None) -> bool:
        result = SelfCheckResult(drift, "mixed", 1.0, None, is_unit=True, seconds_per_token=1.0)
        return result.is_batch_invariant

    drifts = (MAX_DRIFT, MAX_DRIFT * 1.01, float("nan"), None)
    assert [is_invariant(drift) for drift in drifts] == [True, False, False, False]


# --- Wrong vectors ---------------------------------------------------------------------------------------------------


def test_model_that_returns_nan_is_rejected(tmp_path: Path) -> None:
    TinyModel("acme/nan", graph=nan_for_unknown).write(tmp_path)
    assert cause_of_failure(tmp_path, "acme/nan") == "its vectors contain NaN or infinity"


def test_model_with_another_dimension_than_stated_is_rejected(tmp_path: Path) -> None:
    TinyModel("acme/wrong", dim=4, stated_dim=8).write(tmp_path)
    cause = "its output 'last_hidden_state' has vectors of 4 numbers, but dim is 8: set dim to 4"
    assert cause_of_failure(tmp_path, "acme/wrong") == cause


@pytest.mark.parametrize("is_unit", [True, False])
def test_whether_vectors_have_length_1_is_measured(*, is_unit: bool, tmp_path: Path) -> None:
    TinyModel("acme/length", words=PROBE_WORDS, normalized=is_unit).write(tmp_path)
    assert result_of(load(tmp_path, "acme/length")).is_unit is is_unit


def reference(text: str, words: Sequence[str], *, turned_by: float = 0.0) -> Reference:
    """Return *text* with the vector of *words*, turned by an angle (radians), so that the cosine is known."""
    vector = mean_of(words).astype(np.float64)
    across = np.array([-vector[1], vector[0], -vector[3], vector[2]])
    turned = np.cos(turned_by) * vector + np.sin(turned_by) * across
    return {"text": text, "vector": [float(number) for number in turned]}


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("turned_by", [0.0, 0.04])
def test_right_canary_passes_with_the_least_cosine(turned_by: float, *, normalized: bool, tmp_path: Path) -> None:
    canary = [reference("one two", ["one", "two"]), reference("five", ["five"], turned_by=turned_by)]
    TinyModel("acme/canary", canary=canary, normalized=normalized).write(tmp_path)
    cosine = result_of(load(tmp_path, "acme/canary")).canary_cosine
    assert cosine == pytest.approx(np.cos(turned_by), abs=1e-6)
    assert cosine is not None
    assert cosine >= MIN_COSINE


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(reference("five", ["four"]), id="vector of another text"),
        pytest.param(reference("five", ["five"], turned_by=0.05), id="turned a little too far"),
        pytest.param(reference("five", ["five"], turned_by=np.pi), id="opposite direction"),
        pytest.param(reference("null", ["five"]), id="model returns zeros"),
        pytest.param(reference("nan", ["five"]), id="model returns NaN"),
    ],
)
def test_model_with_a_wrong_canary_is_rejected(wrong: Reference, tmp_path: Path) -> None:
    TinyModel("acme/canary", canary=[reference("one two", ["one", "two"]), wrong]).write(tmp_path)
    cause = cause_of_failure(tmp_path, "acme/canary")
    assert cause.startswith("its vectors differ from its manifest's canary (cosine ")
    assert "expected 0.999 or more" in cause


def test_canary_is_embedded_without_the_prompt(tmp_path: Path) -> None:
    canary = [reference("one", ["one"])]
    TinyModel("acme/canary", canary=canary, prompts={"query": "five ", "document": "two "}).write(tmp_path)
    assert result_of(load(tmp_path, "acme/canary")).canary_cosine == pytest.approx(1.0, abs=1e-6)


def test_model_without_a_canary_has_no_cosine(tmp_path: Path) -> None:
    TinyModel("acme/plain").write(tmp_path)
    assert result_of(load(tmp_path, "acme/plain")).canary_cosine is None


# --- Prompts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("input_type", ["query", "document"])
def test_prompt_must_leave_space_for_a_token_of_the_text(input_type: str, tmp_path: Path) -> None:
    fitting = "one " * (MAX_TOKENS - 3)
    TinyModel("acme/fits", prompts={input_type: fitting}).write(tmp_path)
    [item] = load(tmp_path, "acme/fits").tokenizer.tokenize(["two three"], prompt=fitting, side="start")
    assert item.length == MAX_TOKENS
    for words in (MAX_TOKENS - 2, MAX_TOKENS + 9):
        TinyModel(f"acme/{words}", prompts={input_type: "one " * words}).write(tmp_path)
        space = f"{words + 2} tokens, which leaves no space for a text among {MAX_TOKENS}"
        assert cause_of_failure(tmp_path, f"acme/{words}") == f"one of its prompts has {space}"
