"""Answers of the dialects that contain vectors, written while they are computed."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, Protocol

import structlog
from litestar import Request
from litestar.response.base import ASGIResponse
from litestar.types import Receive, Scope, Send
from numpy.typing import NDArray

from api.answer_formats import FINGERPRINT_HEADER
from api.answer_pieces import rows_per_piece, yield_to_others
from api.cache_headers import CACHE_HEADER, cache_state
from api.request_terms import terms_of
from engine.catalog import Model
from engine.embed_run import SLICE_TEXTS, EmbedRun
from engine.embedder import Embedder
from engine.errors import ServiceError
from engine.model_cards import InputType
from engine.options import EmbedOptions
from web.request_context import RequestContext, context_of
from web.responses import JSON, Duration, PlainAnswer, encoded_headers

log = structlog.get_logger()


class VectorsWriter(Protocol):
    """Writes an answer as it is made: pieces of one JSON document."""

    def head(self, run: EmbedRun) -> bytes:
        """Return what comes before the vectors."""

    def rows(self, vectors: NDArray[Any], first: int, run: EmbedRun) -> bytes:
        """Return consecutive vectors, of which the first has the index *first*, with commas between them only.

        May be empty.
        """

    def tail(self, run: EmbedRun) -> bytes:
        """Return what comes after the vectors."""


async def vectors_answer(
    embedder: Embedder,
    request: Request[Any, Any, Any],
    writer: VectorsWriter,
    *,
    model_name: str | None,
    texts: Sequence[str],
    options: EmbedOptions,
    timeout_s: float | None,
    check_tokens: Callable[[Sequence[int]], None] | None = None,
    is_repeatable: bool = True,
    duration: Duration | None = None,
) -> ASGIResponse:
    """Embed *texts* for the caller of *request*, and answer with what *writer* makes of the vectors.

    Args:
        embedder: runs the model.
        request: states the caller, and the headers `If-Model-Fingerprint` and `Cache-Control`.
        writer: of the dialect.
        model_name: as `Embedder.open`, like the other arguments.
        texts: at least one.
        options: how to embed them.
        timeout_s: maximum seconds to wait.
        check_tokens: checks the tokens per text before truncation.
        is_repeatable: the same vectors make the same answer, which contains nothing of the texts.
        duration: the only member of the answer for which that is not true; None: there is none.

    Raises:
        ServiceError: as `Embedder.open`.
    """
    context = context_of(request.scope)
    opened = embedder.open(
        model_name,
        texts,
        options,
        terms_of(request, timeout_s),
        check_tokens=check_tokens,
    )
    if len(texts) > SLICE_TEXTS and request.scope["http_version"] != "1.0":  # which has no chunked bodies
        return StreamedAnswer(opened, writer, context)
    body: list[bytes] = []

    async def put(_: EmbedRun, *pieces: bytes) -> None:
        body.extend(pieces)

    run = await _write(opened, writer, put, context)
    single_hit = run.single_hit if is_repeatable else None
    return PlainAnswer(b"".join(body), headers=_headers(run), single_hit=single_hit, duration=duration)


class StreamedAnswer(ASGIResponse):
    """An answer of unknown length that is sent while its vectors are computed. Its status is sent after the first ones.

    An error before that is an ordinary one. After it, the answer stays incomplete, and the server closes the
    connection: a client must not take a part of the vectors for all of them.
    """

    def __init__(
        self, opened: AbstractAsyncContextManager[EmbedRun], writer: VectorsWriter, context: RequestContext
    ) -> None:
        """Answer with the vectors of the request that *opened* admits."""
        self._opened = opened
        self._writer = writer
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Compute and send the answer. `send` waits while the client does not receive."""
        has_started = False

        async def put(run: EmbedRun, *pieces: bytes) -> None:
            nonlocal has_started
            if not has_started:
                has_started = True
                headers = [(b"content-type", JSON.encode()), *encoded_headers(_headers(run))]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"".join(pieces), "more_body": True})

        try:
            await _write(self._opened, self._writer, put, self._context)
        except ServiceError as error:
            if not has_started:
                raise
            self._context.problem_code = error.code
            write = log.warning if error.__cause__ is None else log.error
            write("answer_cut_off", **self._context.ids, code=error.code, exc_info=error.__cause__)
            return  # an ASGI server closes the connection of an answer that has no end
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _write(
    opened: AbstractAsyncContextManager[EmbedRun],
    writer: VectorsWriter,
    put: Callable[..., Awaitable[None]],
    context: RequestContext,
) -> EmbedRun:
    """Call *put* with the run and pieces of the answer, and pause between calls; return the run, which has ended.

    Of all answers, one piece is written per iteration of the event loop, in an order that is fair between callers: when
    results are kept, nothing else slows down a caller who asks for many long answers at once.

    The last slice is written after the end of the run: neither the lease nor the deadline waits for the client then.
    """
    first, has_rows = 0, False

    async def write_rows(vectors: NDArray[Any]) -> None:
        nonlocal first, has_rows
        size = rows_per_piece(vectors.shape[1])
        for start in range(0, len(vectors), size):
            if first:
                await yield_to_others(context)
            rows = vectors[start : start + size]
            piece = writer.rows(rows, first, run)
            comma = b"," if has_rows and piece else b""
            await put(run, b"" if first else writer.head(run), comma, piece)
            has_rows = has_rows or bool(piece)
            first += len(rows)

    async with opened as run, aclosing(run.slices()) as slices:
        async for vectors in slices:
            if run.is_computed:
                break
            await write_rows(vectors)
    await write_rows(vectors)
    await put(run, writer.tail(run))
    return run


def _headers(run: EmbedRun) -> dict[str, str]:
    """Return the headers as they are known now: of a streamed answer, texts that have not begun count as computed."""
    return {
        FINGERPRINT_HEADER: run.fingerprint,
        "X-Embedding-Tokens": str(run.used_tokens),
        "X-Embedding-Truncated": str(sum(run.truncated)),
        CACHE_HEADER: cache_state(run.cache),
    }


def without_prompt(texts: Sequence[str], model: Model, input_type: InputType | None) -> Sequence[str]:
    """Return *texts* without the prompt of *model* that some of them already begin with: it is added again to all."""
    prompt = model.card.prompt_for(input_type)
    return [text.removeprefix(prompt) for text in texts] if prompt else texts
