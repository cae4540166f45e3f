"""OpenAI's errors: messages, types, statuses, names of fields, and the types that describe them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

from web.dialects import Dialect, not_found_for_unknown_model, unknown_model_advice
from web.problems import Problem

MODEL_CODES = {"unknown-model", "model-not-allowed", "model-unavailable"}
"""Problem codes about the field `model`."""
CODES = {
    "unauthenticated": "invalid_api_key",
    "unknown-model": "model_not_found",
    "rate-limited": "rate_limit_exceeded",
}
"""OpenAI's codes by ours; the others are ours with underscores."""
TYPES: Mapping[int, str] = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_exceeded",
}


@dataclass(frozen=True, slots=True)
class OpenAIError:
    """The member that OpenAI's clients read. `param` is the field, if the error is about one."""

    message: str
    type: str
    param: str | None
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAIProblem(Problem):
    """A problem document (RFC 9457) that also is OpenAI's error."""

    error: OpenAIError


def _error_members(problem: Mapping[str, object]) -> Mapping[str, object]:
    """Return the member `error` that OpenAI's clients read, for a *problem* document."""
    code = str(problem["code"])
    return {
        "error": {
            "message": _message_of(problem),
            "type": _type_of(int(str(problem["status"]))),
            "param": _param_of(problem),
            "code": CODES.get(code, code.replace("-", "_")),
        }
    }


def _message_of(problem: Mapping[str, object]) -> object:
    if (advice := unknown_model_advice(problem, "GET /v1/models")) is None:
        return problem["detail"]
    return f"The model {problem['model']!r} does not exist. {advice}"


def _param_of(problem: Mapping[str, object]) -> object:
    """Return the field that the problem is about; None: it is about none."""
    if problem["code"] in MODEL_CODES:
        return "model"
    if "field" in problem:
        return problem["field"]
    # A place such as `input[3][1]` is too deep for the member `field`.
    place = re.match(r"([a-z_]+)[\[\d\]]*: ", str(problem["detail"]))
    return place[1] if place else "input" if "index" in problem else None


def _type_of(status: int) -> str:
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return "server_error"
    return TYPES.get(status, "invalid_request_error")


OPENAI = Dialect(
    name="openai",
    members=_error_members,
    status=not_found_for_unknown_model,
    fields={
        "text": "input",
        "texts": "input",
        "model_name": "model",
        "dtype": "output_dtype",
        "normalize": "normalized",
    },
    prefixes=("/v1/", "/embeddings/", "/openai/"),
)
