import gc

import pytest

from engine.jobs import Job, Run
from engine.planner import cost
from engine.run_time import MEMORY, RunTimeEstimator
from tests.support.gated import GatedModel, Text


def run_of(model: GatedModel, length: int, *, is_lone: bool = False) -> Run:
    job = Job(model, [Text(length)], answer=None, token_s=1.0, order=0.0, is_small=True)  # type: ignore[arg-type]
    return Run(model, [(job, 0)], is_lone=is_lone)


def test_model_that_has_not_run_has_the_pace_that_it_guesses() -> None:
    assert RunTimeEstimator().of(GatedModel(seconds_per_token=0.25)) == 0.25


def test_run_is_expected_to_take_its_cost_at_the_models_pace() -> None:
    model = GatedModel(seconds_per_token=0.25)
    assert RunTimeEstimator().seconds(run_of(model, 20)) == cost(1, 20) * 0.25


def test_each_run_moves_the_pace_of_its_model_a_little() -> None:
    pace, model, other = RunTimeEstimator(), GatedModel(seconds_per_token=1.0), GatedModel(seconds_per_token=1.0)
    pace.learn(run_of(model, 20), cost(1, 20) * 11.0)
    assert pace.of(model) == pytest.approx(MEMORY * 1.0 + (1 - MEMORY) * 11.0)
    assert pace.of(other) == 1.0


def test_lone_run_teaches_nothing_as_all_cores_worked_on_it() -> None:
    pace, model = RunTimeEstimator(), GatedModel(seconds_per_token=1.0)
    pace.learn(run_of(model, 20, is_lone=True), 1e9)
    assert pace.of(model) == 1.0


def test_pace_of_a_model_is_forgotten_with_it() -> None:
    pace, model = RunTimeEstimator(), GatedModel()
    pace.learn(run_of(model, 20), 1.0)
    del model
    gc.collect()
    assert not pace._known  # noqa: SLF001 - nobody else can see that memory is not held
