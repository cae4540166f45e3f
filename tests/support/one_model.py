"""The parts of an `Embedder` around one model, as tests of the engine put them together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from engine.catalog import Model
from engine.encoder import Encoder
from engine.lane import Lane
from engine.scheduler import Scheduler


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
