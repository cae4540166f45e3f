"""Estimates the micro-batches and the duration of one request on an idle service."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from engine.planner import MAX_PLANNED_TEXTS, MAX_SMALL_TOKENS, RUN_COST_TOKENS, Batching, cost, plan_micro_batches


@dataclass(frozen=True, slots=True)
class Estimate:
    """The work for some texts on an idle service: the number of model runs, and the seconds until they are done."""

    micro_batches: int
    seconds: float


def budget_tokens(waiting_tokens: int, idle_lanes: int, *, micro_batch_tokens: int) -> int:
    """Return the maximum padded tokens of the next micro-batch.

    Several idle lanes share the waiting tokens, so that a single request ends sooner. A run of few tokens is not worth
    its fixed cost, though: short texts share one until they take twice that. If only two lanes are idle, they share a
    whole small run, because the event loop needs a core as well.
    """
    if idle_lanes <= 1:
        return micro_batch_tokens
    least_tokens = MAX_SMALL_TOKENS if idle_lanes == 2 else 2 * RUN_COST_TOKENS  # noqa: PLR2004 - as stated above
    return min(micro_batch_tokens, max(least_tokens, math.ceil(waiting_tokens / idle_lanes)))


def estimate_work(
    lengths: Sequence[int], batching: Batching, *, lanes: int, micro_batch_tokens: int, seconds_per_token: float
) -> Estimate:
    """Return the micro-batches of texts of these *lengths* on idle *lanes*, and their duration at the given speed."""
    waiting, batches = sorted(lengths, reverse=True), []
    for idle in range(lanes, 1, -1):  # as the scheduler does while lanes are idle
        budget = budget_tokens(sum(waiting), idle, micro_batch_tokens=micro_batch_tokens)
        first = plan_micro_batches(waiting[:MAX_PLANNED_TEXTS], batching, budget_tokens=budget)[:1]
        batches += [(len(batch), waiting[0]) for batch in first]
        waiting = waiting[batches[-1][0] :]
    rest = plan_micro_batches(waiting, batching, budget_tokens=micro_batch_tokens)
    batches += [(len(batch), waiting[batch[0]]) for batch in rest]
    lane_s = sum(cost(texts, longest) for texts, longest in batches) * seconds_per_token
    return Estimate(len(batches), lane_s / min(lanes, max(1, len(batches))))
