"""Turns every error into a problem document (RFC 9457), here and nowhere else: handlers need no `try`."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from random import randbytes
from typing import Any, cast

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.types import ExceptionHandlersMap

from engine.errors import InvalidInputError, ServiceError
from web.dialects import Dialect
from web.input_errors import EMPTY_BODY, invalid_input
from web.request_context import context_of
from web.security_headers import Header

MEDIA_TYPE = "application/problem+json"
NEW_PHRASES = {HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "Content Too Large"}
"""Titles as in RFC 9110. Python has them only from 3.13 on, and an error code must not depend on its version."""
HTTP_DETAILS = {
    HTTPStatus.NOT_FOUND: "There is nothing at this address.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is larger than MAX_REQUEST_SIZE allows.",
}
"""Details of errors that Litestar raises itself; other errors keep Litestar's message."""
SEE_DOCS = " The API is described at {root_path}/docs."
"""What a 404 adds if there are docs."""
CALLER_LEFT = "caller-left"
"""Counted like an error code: a caller that closed its connection before its answer."""
FRAMEWORK_CODES = frozenset({"bad-request", "not-found", "method-not-allowed", "content-too-large"})
"""Codes of errors that Litestar raises itself."""
RETRIED_STATUSES = frozenset({408, 409, 429, *range(500, 600)})
"""The statuses after which OpenAI's clients send a request again, unless `x-should-retry` forbids it."""
MAX_RETRY_AFTER_S = 60
"""The longest wait that clients of other servers obey: above it some fail at once, others retry at once."""
HEADER_NAMES = {"request_timeout": "X-Request-Timeout"}
"""Names of headers, by the handler's parameter that Litestar's messages contain instead."""
VALID_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
"""Request ids that are accepted from callers: short, and without characters that could forge a log line."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem document (RFC 9457), for OpenAPI. Its extension members depend on the error."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    status_code: int
    request_id: str
    field: str | None = None
    index: int | None = None
    limit: int | None = None
    tokens: int | None = None
    choices: list[str] | None = None


class InternalError(ServiceError):
    """An error that the service did not raise on purpose: a bug."""

    def __init__(self) -> None:
        super().__init__("An unexpected error; the service's log has the details.")


def problem_handlers(*, has_docs: bool = True) -> ExceptionHandlersMap:
    """Return the handlers of errors we raise on purpose, of errors that Litestar raises, and of bugs.

    Args:
        has_docs: whether a 404 leads to `/docs`.
    """
    of_http_exception = partial(_of_http_exception, has_docs=has_docs)
    return {ServiceError: _of_service_error, HTTPException: of_http_exception, Exception: _of_bug}


def known_codes() -> frozenset[str]:
    """Return every code that the errors of a running service can have."""
    return frozenset({kind.code for kind in _kinds_of(ServiceError)}) | FRAMEWORK_CODES | {CALLER_LEFT}


def _kinds_of(kind: type[ServiceError]) -> Iterator[type[ServiceError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _kinds_of(below)


def request_id_of(headers: Iterable[Header]) -> str:
    """Return the caller's `X-Request-ID` if it is valid, else a new id."""
    for name, value in headers:
        if name == b"x-request-id" and VALID_REQUEST_ID.fullmatch(value):
            return value.decode()
    return new_request_id()


def new_request_id() -> str:
    return randbytes(16).hex()  # noqa: S311 - unique, not secret: it protects nothing


def problem_answer(
    error: ServiceError, request_id: str, dialect: Dialect | None = None
) -> tuple[int, list[Header], bytes]:
    """Return status, headers and body that answer *error* outside of Litestar."""
    status, document = _document_of(error, request_id, dialect)
    body = msgspec.json.encode(document)
    content = {"Content-Type": _media_type(dialect), "Content-Length": str(len(body))}
    headers = {**content, **_headers_of(status, error, dialect)}
    return status, [(name.lower().encode(), value.encode()) for name, value in headers.items()], body


def problem_document(
    *, status: int, code: str, title: str, detail: str, request_id: str, extensions: Mapping[str, object]
) -> dict[str, object]:
    """Return the problem document: the members of RFC 9457, `code` and `request_id`, and *extensions*."""
    return {
        "type": f"urn:fast-embedding:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "status_code": status,
        "request_id": request_id,
        **extensions,
    }


def dialect_document(document: Mapping[str, object], dialect: Dialect) -> dict[str, object]:
    """Return the problem *document* as *dialect* sends it: with its status, names of fields, and own members."""
    status = int(dialect.status(str(document["code"]), cast("int", document["status"])))  # not an HTTPStatus
    found = {**document, "status": status, "status_code": status, "detail": dialect.rename(str(document["detail"]))}
    if (name := found.get("field")) is not None:
        found["field"] = dialect.fields.get(str(name), name)
    found |= dialect.members(found)
    return {name: value for name, value in found.items() if name not in dialect.omits}


def _document_of(error: ServiceError, request_id: str, dialect: Dialect | None) -> tuple[int, dict[str, object]]:
    """Return the status of the answer to *error*, and its body."""
    document = problem_document(
        status=error.status,
        code=error.code,
        title=error.title,
        detail=error.detail if dialect is None else error.plain_detail,
        request_id=request_id,
        extensions=error.extensions,
    )
    if dialect is not None:
        document = dialect_document(document, dialect)
    return cast("int", document["status_code"]), document


def _media_type(dialect: Dialect | None) -> str:
    return MEDIA_TYPE if dialect is None else dialect.media_type


def _headers_of(status: int, error: ServiceError, dialect: Dialect | None) -> dict[str, str]:
    """Return the headers that state whether and when to retry."""
    wait_s = error.retry_after_s
    if dialect is None or status not in RETRIED_STATUSES:
        return {} if wait_s is None else {"Retry-After": str(math.ceil(wait_s))}
    if wait_s is None:
        return {"x-should-retry": "false"}
    if error.status == HTTPStatus.SERVICE_UNAVAILABLE:  # an estimate; a quota's wait is exact
        wait_s = min(wait_s, MAX_RETRY_AFTER_S)
    return {
        "Retry-After": str(math.ceil(wait_s)),
        "retry-after-ms": str(math.ceil(wait_s * 1e3)),
        "x-should-retry": "true" if wait_s <= MAX_RETRY_AFTER_S else "false",
    }


def _of_service_error(request: Request[Any, Any, Any], error: ServiceError) -> Response[dict[str, object]]:
    context = context_of(request.scope)
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR and error.__cause__ is not None:
        log.error("request_failed", **context.ids, code=error.code, exc_info=error.__cause__)
    status, document = _document_of(error, context.request_id, context.dialect)
    return _response(request, document, _headers_of(status, error, context.dialect))


def _of_http_exception(
    request: Request[Any, Any, Any], error: HTTPException, *, has_docs: bool
) -> Response[dict[str, object]]:
    if isinstance(error, ValidationException):
        return _of_service_error(request, _of_validation(error))
    status = HTTPStatus(error.status_code)
    title = NEW_PHRASES.get(status, status.phrase)
    is_too_large = status is HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    context = context_of(request.scope)
    document = problem_document(
        status=status.value,
        code=title.lower().replace(" ", "-"),
        title=title,
        detail=_http_detail(request, status, error, has_docs=has_docs),
        request_id=context.request_id,
        extensions={"limit": request.app.request_max_body_size} if is_too_large else {},
    )
    if context.dialect is not None:
        document = dialect_document(document, context.dialect)
    return _response(request, document, dict(error.headers or {}))


def _http_detail(request: Request[Any, Any, Any], status: HTTPStatus, error: HTTPException, *, has_docs: bool) -> str:
    if status is HTTPStatus.METHOD_NOT_ALLOWED and (allowed := (error.headers or {}).get("allow")):
        methods = " or ".join(method for method in allowed.split(", ") if method != "OPTIONS")
        return f"This address does not accept {request.method}. Use {methods}."
    if status is HTTPStatus.NOT_FOUND and has_docs:
        return HTTP_DETAILS[status] + SEE_DOCS.format(root_path=context_of(request.scope).root_path)
    if status in HTTP_DETAILS:
        return HTTP_DETAILS[status]
    return error.detail if status < HTTPStatus.INTERNAL_SERVER_ERROR else InternalError().detail


def _of_bug(request: Request[Any, Any, Any], error: Exception) -> Response[dict[str, object]]:
    context = context_of(request.scope)
    log.error("request_failed", **context.ids, code=InternalError.code, exc_info=error)
    status, document = _document_of(InternalError(), context.request_id, context.dialect)
    return _response(request, document, _headers_of(status, InternalError(), context.dialect))


def _response(
    request: Request[Any, Any, Any], document: dict[str, object], headers: dict[str, str]
) -> Response[dict[str, object]]:
    context = context_of(request.scope)
    context.problem_code = str(document["code"])
    status = cast("int", document["status_code"])
    return Response(document, status_code=status, media_type=_media_type(context.dialect), headers=headers)


def _of_validation(error: ValidationException) -> InvalidInputError:
    """Return the error for a header, path or query that Litestar rejects; bodies are checked in `json_bodies`."""
    found = error.extra[0] if isinstance(error.extra, list) and error.extra else {}
    message, where = str(found.get("message", error.detail)), str(found.get("key", ""))
    where = HEADER_NAMES.get(where, where)
    if (where, message) == ("data", "'data'"):
        where, message = "", EMPTY_BODY
    return invalid_input(message, where)
