"""Every failure becomes RFC 9457 problem details, here and nowhere else; handlers have no `try`."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from random import getrandbits
from typing import Any

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.types import ExceptionHandlersMap

from engine.errors import InvalidInputError, ServiceError
from web.json_bodies import invalid_input
from web.security_headers import Header

MEDIA_TYPE = "application/problem+json"
NEW_PHRASES = {HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "Content Too Large"}
"""Names as RFC 9110 has them, which Python has only from 3.13 on: a code must not depend on that."""
HEADERS = {"request_timeout": "X-Request-Timeout"}
"""The headers that Litestar names by the parameters they become."""
SANE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
"""Ids of callers that are taken over: short, and without anything that could forge a line of a log."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Problem:
    """Problem details (RFC 9457). Further members tell facts, such as `field`, `index` and `limit`."""

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


@dataclass(frozen=True, slots=True)
class _Told:
    """What a caller learns of a failure."""

    status: int
    code: str
    title: str
    detail: str
    facts: dict[str, object] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


class UnforeseenError(ServiceError):
    """A bug of the service."""

    def __init__(self) -> None:
        super().__init__("An unexpected failure; its record is in the service's log.")


def problem_handlers() -> ExceptionHandlersMap:
    """The three rows of the table: what we report on purpose, what Litestar reports, and bugs."""
    return {ServiceError: _of_service_error, HTTPException: _of_http_exception, Exception: _of_bug}


def request_id_of(headers: Iterable[Header]) -> str:
    """The id that the caller gave to the request, if it is sane, else a new one."""
    for name, value in headers:
        if name == b"x-request-id" and SANE_ID.fullmatch(value):
            return value.decode()
    return new_request_id()


def new_request_id() -> str:
    return f"{getrandbits(128):032x}"  # unique is enough: nothing is guarded by it


def of_error(error: ServiceError, request_id: str) -> tuple[list[Header], bytes]:
    """Headers and body for a failure that is reported outside of Litestar's reach."""
    told = _of(error)
    body = msgspec.json.encode(_body(told, request_id))
    headers = {"Content-Type": MEDIA_TYPE, "Content-Length": str(len(body)), **told.headers}
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()], body


def _of_service_error(request: Request[Any, Any, Any], error: ServiceError) -> Response[dict[str, object]]:
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR and error.__cause__ is not None:
        log.error("request_failed", request_id=_request_id(request), code=error.code, exc_info=error.__cause__)
    return _answer(request, _of(error))


def _of(error: ServiceError) -> _Told:
    headers = {} if error.retry_after_s is None else {"Retry-After": str(math.ceil(error.retry_after_s))}
    return _Told(error.status, error.code, error.title, error.detail, error.facts, headers)


def _of_http_exception(request: Request[Any, Any, Any], error: HTTPException) -> Response[dict[str, object]]:
    if isinstance(error, ValidationException):
        return _of_service_error(request, _of_validation(error))
    status = HTTPStatus(error.status_code)
    title = NEW_PHRASES.get(status, status.phrase)
    details = {
        HTTPStatus.NOT_FOUND: "There is nothing at this address. The API is described at /schema.",
        HTTPStatus.METHOD_NOT_ALLOWED: "This address does not take this method; the Allow header names those it does.",
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is larger than MAX_REQUEST_SIZE allows.",
    }
    facts: dict[str, object] = {}
    if status is HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        facts["limit"] = request.app.request_max_body_size
    told = _Told(
        status=status.value,
        code=title.lower().replace(" ", "-"),
        title=title,
        detail=details.get(
            status, error.detail if status < HTTPStatus.INTERNAL_SERVER_ERROR else UnforeseenError().detail
        ),
        facts=facts,
        headers=dict(error.headers or {}),
    )
    return _answer(request, told)


def _of_bug(request: Request[Any, Any, Any], error: Exception) -> Response[dict[str, object]]:
    log.error("request_failed", request_id=_request_id(request), code=UnforeseenError.code, exc_info=error)
    return _answer(request, _of(UnforeseenError()))


def _answer(request: Request[Any, Any, Any], told: _Told) -> Response[dict[str, object]]:
    request.scope["state"]["problem_code"] = told.code
    return Response(
        _body(told, _request_id(request)), status_code=told.status, media_type=MEDIA_TYPE, headers=told.headers
    )


def _body(told: _Told, request_id: str) -> dict[str, object]:
    return {
        "type": f"urn:fast-embedding:problem:{told.code}",
        "title": told.title,
        "status": told.status,
        "detail": told.detail,
        "code": told.code,
        "status_code": told.status,
        "request_id": request_id,
        **told.facts,
    }


def _request_id(request: Request[Any, Any, Any]) -> str:
    return str(request.scope["state"].get("request_id", ""))


def _of_validation(error: ValidationException) -> InvalidInputError:
    """Say what Litestar found wrong with anything but the body."""
    found = error.extra[0] if isinstance(error.extra, list) and error.extra else {}
    message, where = str(found.get("message", error.detail)), str(found.get("key", ""))
    where = HEADERS.get(where, where)
    if (where, message) == ("data", "'data'"):
        where, message = "", "The body is empty; send a JSON object"
    return invalid_input(message, where)
