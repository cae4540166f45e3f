"""Answers of the dialects that contain vectors, written while they are computed."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from litestar import Request
from litestar.response.base import ASGIResponse
from numpy.typing import NDArray

from api.answer_formats import FINGERPRINT_HEADER
from api.fingerprint_header import IF_FINGERPRINT_HEADER, expected_fingerprint
from engine.catalog import Model
from engine.embed_results import EmbedRun
from engine.embedder import Embedder
from engine.model_cards import InputType
from engine.options import EmbedOptions
from web.request_context import context_of
from web.responses import PlainJsonAnswer


class VectorsWriter(Protocol):
    """Writes an answer as it is made: pieces of one JSON document."""

    def head(self, run: EmbedRun) -> bytes:
        """Return what comes before the vectors."""

    def rows(self, vectors: NDArray[Any], first: int, run: EmbedRun) -> bytes:
        """Return consecutive vectors, of which the first has the index *first*, with commas between them only."""

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
) -> ASGIResponse:
    """Embed *texts* for the caller of *request*, and answer with what *writer* makes of the vectors.

    Args:
        embedder: runs the model.
        request: states the caller and the header `If-Model-Fingerprint`.
        writer: of the dialect.
        model_name: as `Embedder.open`, like the other arguments.
        texts: at least one.
        options: how to embed them.
        timeout_s: maximum seconds to wait.
        check_tokens: checks the tokens per text before truncation.

    Raises:
        ServiceError: as `Embedder.open`.
    """
    context = context_of(request.scope)
    async with embedder.open(
        model_name,
        texts,
        options,
        caller=context.caller,
        timeout_s=timeout_s,
        on_tokens=context.charge_tokens,
        if_fingerprint=expected_fingerprint(request.headers.getall(IF_FINGERPRINT_HEADER, [])),
        check_tokens=check_tokens,
    ) as run:
        rows, first = [], 0
        async for vectors in run.slices():
            rows.append(writer.rows(vectors, first, run))
            first += len(vectors)
        body = b"".join([writer.head(run), b",".join(rows), writer.tail(run)])
        return PlainJsonAnswer(200, body, _headers(run))


def _headers(run: EmbedRun) -> dict[str, str]:
    return {
        FINGERPRINT_HEADER: run.fingerprint,
        "X-Embedding-Tokens": str(run.used_tokens),
        "X-Embedding-Truncated": str(sum(run.truncated)),
    }


def without_prompt(texts: Sequence[str], model: Model, input_type: InputType | None) -> Sequence[str]:
    """Return *texts* without the prompt of *model* that some of them already begin with: it is added again to all."""
    prompt = model.card.prompt_for(input_type)
    return [text.removeprefix(prompt) for text in texts] if prompt else texts
