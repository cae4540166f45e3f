"""Which format a caller asks for with `Accept`, and vectors as bytes."""

import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Final, Literal

from litestar import Response
from litestar.datastructures.headers import Accept

from engine.embedder import EmbedResult
from engine.errors import InvalidInputError, ServiceError
from engine.vectors import little_endian
from web.responses import JSON

OCTETS: Final = "application/octet-stream"
ARROW: Final = "application/vnd.apache.arrow.stream"
Format = Literal["application/json", "application/octet-stream", "application/vnd.apache.arrow.stream"]

PLAIN: Final = "text/plain"
OPEN_METRICS: Final = "application/openmetrics-text"
TEXT_TYPES: Final = {
    OPEN_METRICS: f"{OPEN_METRICS}; version=1.0.0; charset=utf-8",
    PLAIN: f"{PLAIN}; version=0.0.4; charset=utf-8",
}
"""Metrics for Prometheus: the Content-Type of each format, in the versions that every reader knows."""

REFUSED = re.compile(r";\s*q=0(\.0*)?\s*$")
"""A quality of zero says what is not wanted; Litestar takes it for the least wanted."""
FINGERPRINT_HEADER = "X-Model-Fingerprint"
EMBEDDING_HEADERS = {
    "X-Embedding-Shape": "rows and columns of the matrix, such as `2,384`",
    "X-Embedding-Dtype": "of the matrix, as numpy names it; always little-endian",
    "X-Embedding-Tokens": "of all texts together",
    "X-Embedding-Truncated": "how many texts the model saw less than all of",
}


_NO_PYARROW = (
    f"{ARROW} needs pyarrow, which is not installed here (requirements/arrow.txt). {OCTETS} and {JSON} are there."
)


class NotAcceptableError(ServiceError):
    """The caller wants a format that this service cannot write."""

    status, code, title = 406, "not-acceptable", "The answer cannot be written that way"


def accepted_format(accept: str | None) -> Format:
    """The format that the header asks for; whatever is not known here gets JSON, as every error does."""
    if accept is None or ("octet-stream" not in accept and "arrow" not in accept):
        return JSON
    found = _best_match(accept, [JSON, OCTETS, ARROW])
    return OCTETS if found == OCTETS else ARROW if found == ARROW else JSON


def accepted_text_format(accept: str | None) -> str | None:
    """Which of TEXT_TYPES the header wants rather than JSON; None: neither, as in `*/*`."""
    found = JSON if accept is None else _best_match(accept, [JSON, *TEXT_TYPES])
    return None if found == JSON else found


def _best_match(accept: str, offered: Sequence[str]) -> str:
    """The one of *offered* that is wanted most, the first of them if it is all the same; JSON if none is wanted."""
    wanted = ",".join(part for part in accept.split(",") if not REFUSED.search(part))
    try:
        return Accept(wanted).best_match([*offered], default=JSON)
    except (ValueError, OverflowError):  # a quality that is no number
        return JSON


def check_format(wanted: Format, *, is_base64: bool, has_chunks: bool) -> None:
    """Refuse what *wanted* cannot carry, before any work is done.

    Raises:
        InvalidInputError: an option of the body contradicts it.
        NotAcceptableError: Arrow is wanted, but pyarrow is not installed.
    """
    if wanted != JSON and is_base64:
        raise InvalidInputError(
            f"encoding: base64 is for JSON, and the header 'Accept: {wanted}' asks for bytes; leave one of them out.",
            facts={"field": "encoding"},
        )
    if wanted == OCTETS and has_chunks:
        raise InvalidInputError(
            f"long_text: a bare matrix cannot tell which characters its rows are of; ask for JSON or {ARROW} with "
            "long_text='chunks'.",
            facts={"field": "long_text"},
        )
    if wanted == ARROW and find_spec("pyarrow") is None:
        raise NotAcceptableError(_NO_PYARROW)


def octets(answer: EmbedResult) -> Response[bytes]:
    """The bare matrix, row by row and little-endian."""
    vectors = little_endian(answer.vectors)
    headers = {
        "X-Embedding-Shape": ",".join(map(str, vectors.shape)),
        "X-Embedding-Dtype": vectors.dtype.name,
        "X-Embedding-Tokens": str(sum(answer.tokens)),
        "X-Embedding-Truncated": str(sum(answer.truncated)),
        FINGERPRINT_HEADER: answer.fingerprint,
    }
    return Response(vectors.tobytes(), media_type=OCTETS, headers=headers)


def arrow(answer: EmbedResult) -> Response[bytes]:
    """An Arrow stream of one table: a row per vector, with `tokens` and `truncated` of its text. May block for 1 s.

    With chunks, `index`, `start`, `end` and `tokens` are those of the chunk.
    """
    pa = _pyarrow()
    columns = answer.vectors.shape[1]
    flat = pa.array(answer.vectors.reshape(-1))
    table: dict[str, Any] = {"embedding": pa.FixedSizeListArray.from_arrays(flat, columns)}
    if answer.chunks is None:
        table |= {"tokens": pa.array(answer.tokens, pa.int32()), "truncated": pa.array(answer.truncated, pa.bool_())}
    else:
        for name in ("index", "start", "end", "tokens"):
            table[name] = pa.array([getattr(chunk, name) for chunk in answer.chunks], pa.int32())
    batch = pa.record_batch(table).replace_schema_metadata(_metadata(answer))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return Response(sink.getvalue().to_pybytes(), media_type=ARROW, headers={FINGERPRINT_HEADER: answer.fingerprint})


def _metadata(answer: EmbedResult) -> Mapping[str, str]:
    return {
        "model_name": answer.model.name,
        "dimension": str(answer.dimension),
        "fingerprint": answer.fingerprint,
    }


def _pyarrow() -> Any:
    try:
        import pyarrow as pa  # noqa: PLC0415 - optional, and 100 MB of memory for those who ask for it only
        import pyarrow.ipc  # noqa: PLC0415
    except ImportError:
        raise NotAcceptableError(_NO_PYARROW) from None
    return pa
