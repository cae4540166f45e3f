"""TEI's errors: kinds, statuses, names of fields, and the type that describes them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from engine.errors import InvalidInputError
from telemetry.answered_request import NATIVE
from web.dialects import Dialect, unknown_model_advice
from web.problems import MEDIA_TYPE, Problem

UNAVAILABLE, TOO_MANY_REQUESTS, BACKEND_FAILED, INVALID = 503, 429, 424, 422
STATUSES = {
    "invalid-input": INVALID,
    "unknown-model": 404,
    "model-unavailable": BACKEND_FAILED,
    "inference-failed": BACKEND_FAILED,
    "invalid-vector": BACKEND_FAILED,
}
"""Statuses that differ from the native ones, by problem code."""

NOT_SERVED = ("rerank", "predict", "decode", "embed_all", "embed_sparse")
"""Addresses of TEI's other kinds of models. They are a 404, in words that its clients show."""

ErrorType = Literal["Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer", "Empty"]


class EmptyInputError(InvalidInputError):
    """A list of texts is empty."""

    code = "empty-input"

    def __init__(self, field: str) -> None:
        super().__init__(f"`{field}` cannot be empty.", extensions={"field": field, "limit": 1})


@dataclass(frozen=True, slots=True, kw_only=True)
class TeiProblem(Problem):
    """A problem document with the members of TEI's errors."""

    error: str
    error_type: ErrorType


def status_of(code: str, status: int) -> int:
    """Return the status that TEI's clients expect. Never 503: one popular client repeats it at once, for ever."""
    found = STATUSES.get(code, status)
    return TOO_MANY_REQUESTS if found == UNAVAILABLE else found


def members_of(document: Mapping[str, object]) -> Mapping[str, object]:
    """Return TEI's members of an error, given its problem document."""
    error, advice = str(document["detail"]), unknown_model_advice(document, "GET /v1/models")
    if advice is not None and not error.endswith(advice):
        error = f"{error} {advice}"
    return {"error": error, "error_type": _error_type(document["code"], document["status"])}


def _error_type(code: object, status: object) -> ErrorType:
    if code == EmptyInputError.code:
        return "Empty"
    if status in {TOO_MANY_REQUESTS, UNAVAILABLE}:
        return "Overloaded"
    return "Backend" if isinstance(status, int) and (status == BACKEND_FAILED or status >= 500) else "Validation"  # noqa: PLR2004 - errors of the server


TEI = Dialect(
    name="tei",
    members=members_of,
    status=status_of,
    fields={"texts": "inputs", "text": "inputs", "model_name": "model", "input_type": "prompt_name"},
    prefixes=("/tei/", *(f"/{name}/" for name in NOT_SERVED)),
)
"""Requests to TEI's own paths, and to the shared ones once the body has the key `inputs`."""
TEI_SHARED = Dialect(name=NATIVE, members=members_of, media_type=MEDIA_TYPE)
"""Requests to the paths that TEI shares with the native API, until the body is read: native errors, TEI's members."""
