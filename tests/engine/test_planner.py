"""The planner compared with every possible split, and on the cases that matter."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.planner import MAX_PLANNED_TEXTS, RUN_COST_TOKENS, Batching, cheapest_split, cost, plan_micro_batches

BUDGET = 512
properties = settings(deadline=None, max_examples=30, derandomize=True)


def total(lengths: list[int], batches: list[range]) -> int:
    return sum(cost(len(batch), lengths[batch.start]) for batch in batches)


def minimum_cost(lengths: list[int], budget: int) -> int:
    """Return the lowest cost among all 2^(n-1) ways to split the sequence."""
    costs = []
    for cuts in itertools.product((False, True), repeat=len(lengths) - 1):
        edges = [0, *(position for position, is_cut in enumerate(cuts, 1) if is_cut), len(lengths)]
        batches = [range(start, end) for start, end in itertools.pairwise(edges)]
        if all(len(batch) == 1 or len(batch) * lengths[batch.start] <= budget for batch in batches):
            costs.append(total(lengths, batches))
    return min(costs)


@pytest.mark.parametrize("seed", range(40))
def test_no_split_is_cheaper(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - seeded, so that a failure can be repeated
    budget = chance.choice([32, 100, 512])
    lengths = sorted((chance.randint(1, chance.choice([12, 60, 300])) for _ in range(10)), reverse=True)
    assert total(lengths, cheapest_split(lengths, budget_tokens=budget)) == minimum_cost(lengths, budget)


def test_texts_of_equal_length_share_batches_up_to_the_budget() -> None:
    assert [len(batch) for batch in cheapest_split([64] * 20, budget_tokens=BUDGET)] == [8, 8, 4]


def test_text_above_the_budget_runs_alone() -> None:
    assert cheapest_split([900, 10, 10], budget_tokens=BUDGET) == [range(1), range(1, 3)]


def test_padding_that_costs_more_than_a_run_is_avoided() -> None:
    longest = 100
    near, far = longest - RUN_COST_TOKENS + 1, longest - RUN_COST_TOKENS - 1
    assert len(cheapest_split([longest, near], budget_tokens=BUDGET)) == 1
    assert len(cheapest_split([longest, far], budget_tokens=BUDGET)) == 2


def test_no_texts_make_no_batch() -> None:
    assert cheapest_split([], budget_tokens=BUDGET) == []


@pytest.mark.parametrize(
    ("batching", "expected"),
    [
        pytest.param("mixed", [[3], [0, 4, 2], [1]], id="mixed"),
        pytest.param("equal", [[3], [0, 4], [2], [1]], id="equal"),
        pytest.param("single", [[3], [0], [4], [2], [1]], id="single"),
    ],
)
def test_batching_decides_which_texts_share_a_run(batching: Batching, expected: list[list[int]]) -> None:
    assert plan_micro_batches([30, 3, 29, 200, 30], batching, budget_tokens=256) == expected


@pytest.mark.parametrize("batching", ["mixed", "equal", "single"])
@properties
@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=2 * MAX_PLANNED_TEXTS))
def test_each_text_is_in_one_batch_within_the_budget(batching: Batching, lengths: list[int]) -> None:
    batches = plan_micro_batches(lengths, batching, budget_tokens=BUDGET)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        together = [lengths[index] for index in batch]
        assert len(batch) == 1 or len(batch) * max(together) <= BUDGET
        assert len(batch) <= MAX_PLANNED_TEXTS
        assert batching != "single" or len(batch) == 1
        assert batching != "equal" or len(set(together)) == 1
