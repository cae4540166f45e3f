"""Models that prove themselves, and models that cannot: quantised, disturbed by padding, NaN, another's vectors."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from config import BUNDLED_MODEL, BUNDLED_MODELS_DIR
from engine.catalog import read_catalog
from engine.encoder import Encoder, load_encoder
from engine.errors import ModelUnavailableError
from engine.jobs import Batching
from engine.self_check import MAX_DRIFT, MIN_COSINE, PROBES, SelfCheckResult, drift_of
from tests.support.tiny import MAX_TOKENS, Reference, TinyModel, mean_of
from tests.support.tiny_models import PROBE_WORDS, matmul, nan_for_unknown, write_padding_sensitive, write_quantised


def load(folder: Path, name: str) -> Encoder:
    return load_encoder(read_catalog([folder], bundled="").get(name), hub_cache_dir=folder / "cache")


def checked(encoder: Encoder) -> SelfCheckResult:
    assert encoder.self_check
    return encoder.self_check


def drift_among(encoder: Encoder, texts: Sequence[str]) -> float:
    """How far vectors of *texts* are from their own when all share one run."""
    items = encoder.tokenizer.tokenize(texts)
    alone = np.concatenate([encoder.encode([item]) for item in items])
    return drift_of(encoder.encode(items), alone)


def test_bundled_model_proves_itself() -> None:
    check = checked(load(BUNDLED_MODELS_DIR, BUNDLED_MODEL))
    assert check.is_batch_invariant
    assert (check.batching, check.batching_cost, check.is_unit) == ("mixed", 1.0, True)
    assert check.seconds_per_token > 0


def test_model_that_is_not_quantised_is_the_same_in_any_company(tmp_path: Path) -> None:
    TinyModel("acme/whole", dim=16, max_tokens=64, words=PROBE_WORDS, graph=matmul).write(tmp_path)
    encoder = load(tmp_path, "acme/whole")
    assert checked(encoder).is_batch_invariant
    assert drift_among(encoder, PROBES) <= MAX_DRIFT
    assert encoder.batching == "mixed"


def test_dynamically_quantised_model_drifts_and_runs_each_text_alone(tmp_path: Path) -> None:
    write_quantised(tmp_path, "acme/int8")
    with capture_logs() as events:
        encoder = load(tmp_path, "acme/int8")
    assert drift_among(encoder, PROBES) > 100 * MAX_DRIFT  # so that the check is needed
    assert drift_among(encoder, ["one two", "three five"]) > MAX_DRIFT  # of equal length
    check = checked(encoder)
    assert not check.is_batch_invariant
    assert check.batch_drift == pytest.approx(drift_among(encoder, PROBES))
    assert check.batching == encoder.batching == "single"
    assert check.batching_cost > 0
    [event] = [event for event in events if event["event"] == "model_not_batch_invariant"]
    assert (event["model"], event["batching"], event["drift"]) == ("acme/int8", "single", check.batch_drift)


def test_model_that_only_padding_disturbs_runs_texts_of_equal_length_together(tmp_path: Path) -> None:
    write_padding_sensitive(tmp_path, "acme/padded")
    with capture_logs() as events:
        encoder = load(tmp_path, "acme/padded")
    assert drift_among(encoder, ["one", "one two three"]) > MAX_DRIFT
    assert drift_among(encoder, ["one two", "three five"]) <= MAX_DRIFT
    assert checked(encoder).batching == encoder.batching == "equal"
    assert "model_not_batch_invariant" in [event["event"] for event in events]


def test_model_that_gives_nan_is_refused(tmp_path: Path) -> None:
    TinyModel("acme/nan", graph=nan_for_unknown).write(tmp_path)
    with pytest.raises(ModelUnavailableError) as refused:
        load(tmp_path, "acme/nan")
    assert refused.value.cause == "its vectors contain NaN or infinity"


def test_model_with_other_dimensions_than_stated_is_refused(tmp_path: Path) -> None:
    TinyModel("acme/liar", dim=4, stated_dim=8).write(tmp_path)
    with pytest.raises(ModelUnavailableError) as refused:
        load(tmp_path, "acme/liar")
    assert refused.value.cause == "its vectors have 4 dimensions, but its description states 8"


def reference(text: str, words: Sequence[str], *, turned_by: float = 0.0) -> Reference:
    """What the model gives for *words*, turned away from it so that the cosine is that of *turned_by* (radians)."""
    vector = mean_of(words).astype(np.float64)
    across = np.array([-vector[1], vector[0], -vector[3], vector[2]])
    turned = np.cos(turned_by) * vector + np.sin(turned_by) * across
    return {"text": text, "vector": [float(number) for number in turned]}


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(
    ("turned_by", "cosine"),
    [pytest.param(0.0, 1.0, id="the-same"), pytest.param(0.04, np.cos(0.04), id="hardly-turned")],
)
def test_right_canary_passes_and_its_cosine_is_told(
    turned_by: float, cosine: float, *, normalized: bool, tmp_path: Path
) -> None:
    canary = [reference("one two", ["one", "two"]), reference("five", ["five"], turned_by=turned_by)]
    TinyModel("acme/canary", canary=canary, normalized=normalized).write(tmp_path)
    told = checked(load(tmp_path, "acme/canary")).canary_cosine
    assert told == pytest.approx(cosine, abs=1e-6)
    assert told is not None
    assert told >= MIN_COSINE


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(reference("five", ["four"]), id="another-texts"),
        pytest.param(reference("five", ["five"], turned_by=0.05), id="a-little-too-far"),
        pytest.param(reference("five", ["five"], turned_by=np.pi), id="upside-down"),
        pytest.param(reference("null", ["five"]), id="where-the-model-gives-nothing"),
        pytest.param(reference("nan", ["five"]), id="where-the-model-gives-nan"),
    ],
)
def test_wrong_canary_refuses_the_model_with_its_cause(wrong: Reference, tmp_path: Path) -> None:
    TinyModel("acme/canary", canary=[reference("one two", ["one", "two"]), wrong]).write(tmp_path)
    with pytest.raises(ModelUnavailableError) as refused:
        load(tmp_path, "acme/canary")
    assert "its vectors differ from its manifest's canary (cosine " in refused.value.cause
    assert "expected 0.999 or more" in refused.value.cause


def test_canary_is_embedded_without_the_prompt(tmp_path: Path) -> None:
    canary = [reference("one", ["one"])]
    TinyModel("acme/canary", canary=canary, prompts={"query": "five ", "document": "two "}).write(tmp_path)
    assert checked(load(tmp_path, "acme/canary")).canary_cosine == pytest.approx(1.0, abs=1e-6)


def test_model_without_a_canary_has_no_cosine(tmp_path: Path) -> None:
    TinyModel("acme/plain").write(tmp_path)
    assert checked(load(tmp_path, "acme/plain")).canary_cosine is None


@pytest.mark.parametrize("kind", ["query", "document"])
@pytest.mark.parametrize(
    ("words", "fits"),
    [
        pytest.param(MAX_TOKENS - 3, True, id="room-for-one-token"),
        pytest.param(MAX_TOKENS - 2, False, id="no-room"),
        pytest.param(MAX_TOKENS + 9, False, id="longer-than-the-model"),
    ],
)
def test_prompt_must_leave_room_for_a_text(kind: str, words: int, *, fits: bool, tmp_path: Path) -> None:
    TinyModel("acme/wordy", prompts={kind: "one " * words}).write(tmp_path)
    if fits:
        [item] = load(tmp_path, "acme/wordy").tokenizer.tokenize(["two three"], prompt="one " * words, side="start")
        assert item.length == MAX_TOKENS
        return
    with pytest.raises(ModelUnavailableError) as refused:
        load(tmp_path, "acme/wordy")
    assert f"{words + 2} tokens, which leaves no space for a text among {MAX_TOKENS}" in refused.value.cause


@pytest.mark.parametrize("is_unit", [True, False])
def test_length_of_the_vectors_is_measured(*, is_unit: bool, tmp_path: Path) -> None:
    TinyModel("acme/length", words=PROBE_WORDS, normalized=is_unit).write(tmp_path)
    assert checked(load(tmp_path, "acme/length")).is_unit is is_unit


@pytest.mark.parametrize(
    ("vectors", "wanted", "drift"),
    [
        pytest.param([[3.0, 4.0]], [[6.0, 8.0]], 0.0, id="another-length"),
        pytest.param([[1.0, 0.0]], [[0.0, 1.0]], 1.0, id="another-direction"),
        pytest.param([[1.0, 0.0], [0.6, 0.8]], [[1.0, 0.0], [0.8, 0.6]], 0.2, id="the-second-of-two"),
        pytest.param([[1.0, 0.0]], [[1.0]], float("inf"), id="another-shape"),
        pytest.param([[1.0]], [[1.0], [1.0]], float("inf"), id="another-count"),
    ],
)
def test_drift_is_the_largest_difference_at_length_one(
    vectors: list[list[float]], wanted: list[list[float]], drift: float
) -> None:
    assert drift_of(np.array(vectors, np.float32), np.array(wanted, np.float32)) == pytest.approx(drift, abs=1e-6)


@pytest.mark.parametrize("batching", ["mixed", "equal", "single"])
def test_model_is_batch_invariant_by_its_drift(batching: Batching) -> None:
    def check(drift: float) -> SelfCheckResult:
        return SelfCheckResult(drift, batching, 1.0, None, is_unit=True, seconds_per_token=1.0)

    assert check(MAX_DRIFT).is_batch_invariant
    assert not check(MAX_DRIFT * 1.01).is_batch_invariant
    assert not check(float("nan")).is_batch_invariant
