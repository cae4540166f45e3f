"""The planner against all cuts there are, and on the cases that matter."""

import itertools
import random

import pytest

from engine.planner import CALL_COST_TOKENS, cost, plan

BUDGET = 512


def total(lengths: list[int], runs: list[range]) -> int:
    return sum(cost(len(run), lengths[run.start]) for run in runs)


def cheapest_cut(lengths: list[int], budget: int) -> int:
    """Least cost over all 2^(n-1) ways to cut the sequence."""
    best = None
    for cuts in itertools.product((False, True), repeat=len(lengths) - 1):
        edges = [0, *(at for at, cut in enumerate(cuts, 1) if cut), len(lengths)]
        runs = [range(start, end) for start, end in itertools.pairwise(edges)]
        if all(len(run) == 1 or len(run) * lengths[run.start] <= budget for run in runs):
            best = min(total(lengths, runs), best if best is not None else total(lengths, runs))
    assert best is not None
    return best


@pytest.mark.parametrize("seed", range(40))
def test_no_cut_costs_less(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - seeded, so that a failure can be repeated
    budget = chance.choice([32, 100, 512])
    lengths = sorted((chance.randint(1, chance.choice([12, 60, 300])) for _ in range(10)), reverse=True)
    runs = plan(lengths, budget_tokens=budget)
    assert total(lengths, runs) == cheapest_cut(lengths, budget)


@pytest.mark.parametrize("seed", range(10))
def test_every_text_is_in_one_run_and_no_run_is_over_the_budget(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    lengths = sorted((chance.randint(3, 700) for _ in range(64)), reverse=True)
    runs = plan(lengths, budget_tokens=BUDGET)
    assert [index for run in runs for index in run] == list(range(64))
    assert all(len(run) == 1 or len(run) * lengths[run.start] <= BUDGET for run in runs)


def test_texts_of_one_length_share_runs_up_to_the_budget() -> None:
    assert [len(run) for run in plan([64] * 20, budget_tokens=BUDGET)] == [8, 8, 4]


def test_a_text_over_the_budget_runs_alone() -> None:
    assert plan([900, 10, 10], budget_tokens=BUDGET) == [range(1), range(1, 3)]


def test_padding_that_costs_more_than_a_call_is_not_bought() -> None:
    longest = 100
    near, far = longest - CALL_COST_TOKENS + 1, longest - CALL_COST_TOKENS - 1
    assert len(plan([longest, near], budget_tokens=BUDGET)) == 1
    assert len(plan([longest, far], budget_tokens=BUDGET)) == 2


def test_nothing_makes_no_run() -> None:
    assert plan([], budget_tokens=BUDGET) == []
