"""The parts of an `Embedder` around one model, as tests of the engine put them together."""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from engine.catalog import Model
from engine.encoder import Encoder
from engine.fair_queue import ANYONE, Caller
from engine.job_queue import Item, RunnableModel
from engine.lane import Lane
from engine.ledger import Reservation
from engine.scheduler import Scheduler
from engine.vectors import Matrix


class OneModel:
    """Leases one encoder, once the gate is open. *leases* is the number of leases that are held."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.gate = asyncio.Event()
        self.gate.set()
        self.leases = 0

    @asynccontextmanager
    async def lease(self, model: Model, *, caller: str = "") -> AsyncIterator[Encoder]:
        del caller
        assert model is self.encoder.model
        await self.gate.wait()
        self.leases += 1
        try:
            yield self.encoder
        finally:
            self.leases -= 1

    def peek(self, model: Model, *, caller: str = "") -> Encoder | None:
        del model, caller
        return self.encoder if self.gate.is_set() else None


@asynccontextmanager
async def one_lane(*, max_bulk_queue_s: float = 1e9) -> AsyncIterator[Scheduler]:
    lane, express = Lane("lane"), Lane("express")
    scheduler = Scheduler(
        lanes=[lane],
        express=express,
        micro_batch_tokens=512,
        max_queue_s=1e9,
        max_bulk_queue_s=max_bulk_queue_s,
        stuck_s=1e9,
    )
    yield scheduler
    await scheduler.aclose()
    lane.close()
    express.close()


async def run_texts(
    scheduler: Scheduler,
    model: RunnableModel,
    items: Sequence[Item],
    keys: Sequence[bytes] | None = None,
    *,
    caller: Caller = ANYONE,
    deadline_s: float = math.inf,
    reservation: Reservation | None = None,
) -> Matrix:
    """Admit *items* and run them, as `Embedder.embed` does."""
    admitted = scheduler.admit(model, items, caller=caller, deadline_s=deadline_s, reservation=reservation)
    with admitted.reservation:
        return await scheduler.run(admitted, items, keys)
