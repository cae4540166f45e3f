"""Errors of requests that never reach the app, and the bytes that answer them."""

from collections.abc import Sequence

from engine.errors import ServiceError
from serving.connection_limits import MAX_FIELDS
from serving.joined_send import head_of
from web.dialects import Dialect
from web.problems import new_request_id, problem_answer
from web.security_headers import Header, security_headers_for


class MalformedRequestError(ServiceError):
    """The received bytes are not valid HTTP/1.1."""

    status, code, title = 400, "malformed-request", "The request is not valid HTTP"

    def __init__(self) -> None:
        super().__init__(
            "Malformed HTTP/1.1, too many pipelined requests or too many tiny chunks. Closing the connection."
        )


class SlowRequestError(ServiceError):
    """The client took too long to send a head or a body."""

    status, code, title = 408, "request-too-slow", "The request came in too slowly"

    def __init__(self, part: str, setting: str, limit_s: float) -> None:
        detail = f"The request's {part} did not arrive within {limit_s:g} s ({setting}). Closing the connection."
        super().__init__(detail, extensions={"limit": limit_s})


class LargeHeadError(ServiceError):
    """The request line and the headers, or a trailer, are too long or too many."""

    status, code, title = 431, "headers-too-large", "The headers are too large"

    def __init__(self, limit_bytes: int) -> None:
        detail = (
            f"Request line and headers exceed {limit_bytes} bytes (MAX_HEADER_SIZE) or {MAX_FIELDS} fields. "
            "Closing the connection."
        )
        super().__init__(detail, extensions={"limit": limit_bytes, "max_fields": MAX_FIELDS})


class NoConnectionError(ServiceError):
    """As many connections as allowed are open, and none of them has to give way."""

    status, code, title = 503, "too-many-connections", "Too many connections are in use"

    def __init__(self, limit: int, setting: str) -> None:
        detail = f"All {limit} connections ({setting}) are in use."
        super().__init__(detail, retry_after_s=1, extensions={"limit": limit})


def complete_answer(
    error: ServiceError, headers: Sequence[Header], *, request_id: str | None = None, dialect: Dialect | None = None
) -> bytes:
    """Return an HTTP/1.1 answer: *headers*, the headers that every answer has, and *error* as problem details."""
    request_id = request_id or new_request_id()
    status, own, body = problem_answer(error, request_id, dialect)
    all_headers = [*headers, *own, (b"x-request-id", request_id.encode()), *security_headers_for(own)]
    return head_of(status, all_headers) + body
