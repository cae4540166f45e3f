import pytest

from engine.duration_estimator import SMOOTHING, DurationEstimator
from engine.planner import cost
from tests.support.garbage import collect_garbage
from tests.support.gated import GatedModel, batch_of


def test_first_estimate_is_the_models_own() -> None:
    model = GatedModel(seconds_per_token=0.25)
    assert DurationEstimator().seconds_per_token(model) == 0.25
    assert DurationEstimator().seconds(batch_of(model, length=20)) == cost(1, 20) * 0.25


def test_each_batch_moves_the_estimate_of_its_model_only() -> None:
    durations, model, other = DurationEstimator(), GatedModel(seconds_per_token=1.0), GatedModel(seconds_per_token=1.0)
    durations.record(batch_of(model, length=20), cost(1, 20) * 11.0)
    assert durations.seconds_per_token(model) == pytest.approx(SMOOTHING * 1.0 + (1 - SMOOTHING) * 11.0)
    assert durations.seconds_per_token(other) == 1.0


def test_lone_text_is_not_recorded_because_it_runs_on_all_cores() -> None:
    durations, model = DurationEstimator(), GatedModel(seconds_per_token=1.0)
    durations.record(batch_of(model, is_lone=True), 1e9)
    assert durations.seconds_per_token(model) == 1.0


def test_estimate_does_not_keep_its_model_in_memory() -> None:
    durations, model = DurationEstimator(), GatedModel()
    durations.record(batch_of(model), 1.0)
    del model
    collect_garbage()
    assert not durations._seconds_per_token  # noqa: SLF001 - nothing else shows that the memory is free
