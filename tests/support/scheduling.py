"""A scheduler on real threads whose clock a test moves, and requests for it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import Any

from engine.lane import Lane
from engine.scheduler import Scheduler
from engine.vectors import Matrix
from tests.support.clock import ManualClock
from tests.support.gated import GatedModel, Text
from tests.support.one_model import run_texts

MICRO_BATCH_TOKENS = 512
LARGE = 100
"""Tokens of a text whose request is large."""
SMALL = 10
"""Tokens of a text whose request is small."""
STUCK_S = 60.0


def open_lanes(clock: ManualClock, stack: ExitStack, *, count: int = 2) -> list[Lane]:
    """Return this many lanes and an express lane, which *stack* closes."""
    lanes = [Lane(name, clock=clock) for name in (*(f"lane-{number}" for number in range(count)), "express")]
    for lane in lanes:
        stack.callback(lane.close)
    return lanes


def scheduler_of(
    lanes: Sequence[Lane], clock: ManualClock, *, count: int, max_queue_s: float = 1e9, max_bulk_queue_s: float = 1e9
) -> Scheduler:
    return Scheduler(
        lanes=lanes[:count],
        express=lanes[-1],
        micro_batch_tokens=MICRO_BATCH_TOKENS,
        max_queue_s=max_queue_s,
        max_bulk_queue_s=max_bulk_queue_s,
        stuck_s=STUCK_S,
        clock=clock,
    )


def check_empty(scheduler: Scheduler) -> None:
    """Check that no request waits and the ledger counts nothing."""
    state = scheduler.state()
    assert (state.waiting_requests, state.waiting_texts, state.waiting_seconds) == (0, 0, 0.0)
    assert [account.held for account in scheduler.accounts] == [0.0, 0.0]


@asynccontextmanager
async def scheduler_checked_at_the_end(
    lanes: Sequence[Lane], clock: ManualClock, model: GatedModel, *, count: int
) -> AsyncIterator[Scheduler]:
    """Return a scheduler on *count* lanes. At the end, let runs of *model* end, and check that nothing is left."""
    scheduler = scheduler_of(lanes, clock, count=count)
    yield scheduler
    model.open()
    await scheduler.aclose()
    check_empty(scheduler)


def submit(scheduler: Scheduler, model: GatedModel, *texts: Text, **options: Any) -> asyncio.Task[Matrix]:
    return asyncio.create_task(run_texts(scheduler, model, texts, **options))


async def submitted() -> None:
    """Let the tasks that were just created submit their texts."""
    for _ in range(3):
        await asyncio.sleep(0)


def texts_of(length: int, count: int, *, first: int = 0) -> list[Text]:
    return [Text(length, first + number) for number in range(count)]
