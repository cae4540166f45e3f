"""Long answers at the same time: one piece of one of them per iteration of the event loop, fair between callers."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from access.principals import Principal
from api.vector_answers import MAX_PIECE_NUMBERS, StreamedAnswer
from engine.fair_gate import FairGate
from web.request_context import RequestContext

PIECES = 5
VECTORS = np.ones((PIECES, MAX_PIECE_NUMBERS), dtype=np.float32)


class KeptRun:
    """A run whose results are all kept: nothing in it waits."""

    is_computed, fingerprint, used_tokens, truncated, cache = True, "", 0, (), None

    async def slices(self) -> AsyncGenerator[Any]:
        yield VECTORS


class Pieces:
    """Notes who writes, piece by piece."""

    def __init__(self, name: str, written: list[str]) -> None:
        self._name = name
        self._written = written

    def head(self, _: Any) -> bytes:
        return b""

    def rows(self, _: Any, first: int, __: Any) -> bytes:
        if first:  # the first piece is written at once: few requests start in an iteration
            self._written.append(self._name)
        return b"piece"

    def tail(self, _: Any) -> bytes:
        return b""


async def test_pieces_of_long_answers_take_turns(monkeypatch: Any) -> None:
    monkeypatch.setattr("api.vector_answers._headers", lambda _: {})
    gate, written = FairGate(), list[str]()

    @asynccontextmanager
    async def opened() -> AsyncIterator[Any]:
        yield KeptRun()

    async def send(_: Any) -> None:
        pass

    async def receive() -> Any:
        raise AssertionError

    def answer(name: str) -> asyncio.Task[None]:
        context = RequestContext(principal=Principal("key", name), answer_parts=gate)
        streamed = StreamedAnswer(opened(), Pieces(name, written), context)
        return asyncio.create_task(streamed({}, receive, send))  # type: ignore[arg-type]  # needs no scope

    many = [answer("many") for _ in range(20)]
    few = answer("few")
    most = 0
    while not all(task.done() for task in [*many, few]):
        before = len(written)
        await asyncio.sleep(0)
        most = max(most, len(written) - before)
    assert most == 1
    assert written.count("few") == PIECES - 1
    assert max(place for place, name in enumerate(written) if name == "few") < 3 * PIECES
    assert len(written) == 21 * (PIECES - 1)
