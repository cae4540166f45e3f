"""Long answers at the same time: one piece of one of them per iteration of the event loop, fair between callers."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, get_args

import numpy as np
import pytest

from access.principals import Principal
from api.answer_pieces import MAX_PIECE_NUMBERS, yield_to_others
from api.build_answers import batch_answer
from api.request_types import Encoding
from api.vector_answers import StreamedAnswer
from engine.catalog import Model
from engine.embed_results import EmbedResult
from engine.fair_gate import FairGate
from engine.vectors import to_base64
from web.request_context import RequestContext
from web.responses import JSON

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


async def test_pieces_of_long_answers_are_written_fairly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.vector_answers._headers", lambda _: {})
    written = list[str]()

    @asynccontextmanager
    async def opened() -> AsyncIterator[Any]:
        yield KeptRun()

    async def send(_: Any) -> None:
        pass

    async def receive() -> Any:
        raise AssertionError

    async def answer(context: RequestContext) -> None:
        streamed = StreamedAnswer(opened(), Pieces(context.caller[0], written), context)
        await streamed({}, receive, send)  # type: ignore[arg-type]  # needs no scope

    await assert_pieces_are_fair(answer, written)


@pytest.mark.parametrize("encoding", get_args(Encoding))
async def test_pieces_of_long_native_answers_are_written_fairly(
    encoding: Encoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model("acme/any", VECTORS.shape[1], 8, 0, 0, "", "", "bundled")
    result = EmbedResult(model, VECTORS, model.dim, [1] * PIECES, [False] * PIECES)
    written, bodies = list[str](), list[bytes]()

    async def noted(context: RequestContext) -> None:
        await yield_to_others(context)
        written.append(context.caller[0])

    monkeypatch.setattr("api.build_answers.yield_to_others", noted)

    async def answer(context: RequestContext) -> None:
        whole = await batch_answer(result, context, encoding=encoding, answer_format=JSON, started_s=0)
        bodies.append(whole.body)

    await assert_pieces_are_fair(answer, written)
    rows = VECTORS.tolist() if encoding == "list" else to_base64(VECTORS)
    assert [json.loads(body)["embeddings"] for body in bodies] == [rows] * len(bodies)


async def assert_pieces_are_fair(
    answer: Callable[[RequestContext], Coroutine[Any, Any, None]], written: list[str]
) -> None:
    """Run 20 answers of one caller and one of another; *written* gets the caller of each piece but the first."""
    gate = FairGate()
    names = [*["many"] * 20, "few"]
    contexts = [RequestContext(principal=Principal("key", name), piece_gate=gate) for name in names]
    tasks = [asyncio.create_task(answer(context)) for context in contexts]
    few, most = contexts[-1].caller[0], 0
    while not all(task.done() for task in tasks):
        before = len(written)
        await asyncio.sleep(0)
        most = max(most, len(written) - before)
    assert most == 1
    assert written.count(few) == PIECES - 1
    assert max(place for place, name in enumerate(written) if name == few) < 3 * PIECES
    assert len(written) == len(tasks) * (PIECES - 1)
