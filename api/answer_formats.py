"""Answer formats: chooses one by the header `Accept`, and writes vectors as bytes or Arrow."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Final, Literal

from api.cache_headers import CACHE_HEADER, cache_state
from engine.embed_results import EmbedResult
from engine.errors import InvalidInputError, ServiceError
from engine.vectors import little_endian
from web.responses import JSON, PlainAnswer

OCTETS: Final = "application/octet-stream"
ARROW: Final = "application/vnd.apache.arrow.stream"
Format = Literal["application/json", "application/octet-stream", "application/vnd.apache.arrow.stream"]

PLAIN: Final = "text/plain"
OPEN_METRICS: Final = "application/openmetrics-text"
TEXT_TYPES: Final = {
    OPEN_METRICS: f"{OPEN_METRICS}; version=1.0.0; charset=utf-8",
    PLAIN: f"{PLAIN}; version=0.0.4; charset=utf-8",
}
"""Text formats of metrics and their Content-Type, in the versions that all scrapers support."""
METRIC_FORMATS: Final = (JSON, *TEXT_TYPES)
"""The formats of `GET /metrics`, the default first."""
PROMETHEUS_FORMATS: Final = (PLAIN, OPEN_METRICS)
"""The formats of `GET /metrics/prometheus`, the default first."""

MAX_RANGES = 100
"""Most formats in a header that is read: browsers send ten. Thousands would block the event loop for 40 ms."""
FINGERPRINT_HEADER = "X-Model-Fingerprint"
EMBEDDING_HEADERS = {
    "X-Embedding-Shape": "rows and columns of the matrix, such as `2,384`",
    "X-Embedding-Dtype": "the matrix's type, as numpy names it; always little-endian",
    "X-Embedding-Tokens": "tokens of all texts together",
    "X-Embedding-Truncated": "the number of texts that were cut",
}


_NO_PYARROW = (
    f"{ARROW} needs pyarrow, which is not installed here (requirements/arrow.txt). {OCTETS} and {JSON} are available."
)


class NotAcceptableError(ServiceError):
    """The caller requests a format that this service cannot write."""

    status, code, title = 406, "not-acceptable", "The answer cannot be written in this format"


def accepted_format(accept: str | None) -> Format:
    """Return the format of vectors that the header *accept* prefers; JSON if it accepts none of ours."""
    if accept is None or ("octet-stream" not in accept and "arrow" not in accept):
        return JSON
    found = best_match(accept, [JSON, OCTETS, ARROW])
    return OCTETS if found == OCTETS else ARROW if found == ARROW else JSON


def metrics_format(accept: str | None, offered: Sequence[str]) -> str:
    """Return the format of *offered* that the header *accept* prefers; the first one if there is no preference.

    Raises:
        NotAcceptableError: it accepts none of them.
    """
    found = best_match(accept, offered) if accept else offered[0]
    if found is None:
        formats = ", ".join(offered)
        raise NotAcceptableError(f"Metrics are available as {formats}. The header Accept names none of them.")
    return found


def best_match(accept: str, offered: Sequence[str]) -> str | None:
    """Return the format of *offered* that the header *accept* prefers; None: it accepts none.

    The most specific range that matches a format states its quality (RFC 9110, section 12.5.1). Of equal ones, the
    format that is named wins, then the one named first, then the one offered first. Parameters such as `version` are
    ignored. A header that cannot be parsed, or is very long, accepts anything.
    """
    parts = accept.lower().split(",")
    if len(parts) > MAX_RANGES:
        return offered[0]
    try:
        ranges = [_read_range(part) for part in parts]
    except ValueError:  # a quality that is not a number
        return offered[0]
    best: tuple[float, int, int] | None = None
    found = None
    for kind in offered:
        places = kind, f"{kind.partition('/')[0]}/*", "*/*"
        for named in places:
            matching = [(quality, -place) for place, (name, quality) in enumerate(ranges) if name == named]
            if matching:
                rank = max(matching)[0], -places.index(named), max(matching)[1]
                if rank[0] > 0 and (best is None or rank > best):
                    best, found = rank, kind
                break
    return found


def _read_range(part: str) -> tuple[str, float]:
    """Return a range of media types, such as `text/*`, and its quality.

    Raises:
        ValueError: the quality is not a number from 0 to 1.
    """
    name, *parameters = part.split(";")
    qualities = [value for key, _, value in (text.partition("=") for text in parameters) if key.strip() == "q"]
    quality = float(qualities[0]) if qualities else 1.0
    if not 0 <= quality <= 1:
        raise ValueError("not a quality")
    return name.strip(), quality


def check_format(answer_format: Format, *, is_base64: bool, has_chunks: bool) -> None:
    """Reject options that *answer_format* cannot represent, before any work is done.

    Raises:
        InvalidInputError: an option of the body contradicts the format.
        NotAcceptableError: the format is Arrow, but pyarrow is not installed.
    """
    if answer_format != JSON and is_base64:
        raise InvalidInputError(
            f"encoding: base64 is for JSON, but the header 'Accept: {answer_format}' asks for bytes; "
            "leave one of them out.",
            extensions={"field": "encoding"},
        )
    if answer_format == OCTETS and has_chunks:
        raise InvalidInputError(
            f"long_text: a bare matrix has no place for the characters of each chunk; ask for JSON or {ARROW} with "
            "long_text='chunks'.",
            extensions={"field": "long_text"},
        )
    if answer_format == ARROW and find_spec("pyarrow") is None:
        raise NotAcceptableError(_NO_PYARROW)


def result_headers(result: EmbedResult) -> dict[str, str]:
    """Return the headers of an answer in any format."""
    return {FINGERPRINT_HEADER: result.fingerprint, CACHE_HEADER: cache_state(result.cache)}


def octets(result: EmbedResult) -> PlainAnswer:
    """Answer with the bytes of the matrix, row by row and little-endian."""
    vectors = little_endian(result.vectors)
    headers = {
        "X-Embedding-Shape": ",".join(map(str, vectors.shape)),
        "X-Embedding-Dtype": vectors.dtype.name,
        "X-Embedding-Tokens": str(sum(result.tokens)),
        "X-Embedding-Truncated": str(sum(result.truncated)),
        **result_headers(result),
    }
    return PlainAnswer(vectors.tobytes(), headers=headers, media_type=OCTETS, single_hit=result.single_hit)


def arrow(result: EmbedResult) -> PlainAnswer:
    """Answer with an Arrow stream of one table: a row per vector, with `tokens` and `truncated` of its text.

    With chunks, `index`, `start`, `end` and `tokens` are those of the chunk. The first call blocks for up to 1 s.
    """
    pa = _pyarrow()
    columns = result.vectors.shape[1]
    flat = pa.array(result.vectors.reshape(-1))
    table: dict[str, Any] = {"embedding": pa.FixedSizeListArray.from_arrays(flat, columns)}
    if result.chunks is None:
        table |= {"tokens": pa.array(result.tokens, pa.int32()), "truncated": pa.array(result.truncated, pa.bool_())}
    else:
        for name in ("index", "start", "end", "tokens"):
            table[name] = pa.array([getattr(chunk, name) for chunk in result.chunks], pa.int32())
    batch = pa.record_batch(table).replace_schema_metadata(_metadata(result))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return PlainAnswer(sink.getvalue().to_pybytes(), headers=result_headers(result), media_type=ARROW)


def _metadata(result: EmbedResult) -> Mapping[str, str]:
    return {
        "model_name": result.model.name,
        "dimension": str(result.dimension),
        "fingerprint": result.fingerprint,
    }


def _pyarrow() -> Any:
    try:
        import pyarrow as pa  # noqa: PLC0415 - optional, and 100 MB of memory that only Arrow answers need
        import pyarrow.ipc  # noqa: PLC0415
    except ImportError:
        raise NotAcceptableError(_NO_PYARROW) from None
    return pa
