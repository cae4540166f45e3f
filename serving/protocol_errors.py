"""What is told to callers whose request never becomes one, and how."""

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from engine.errors import ServiceError
from web.problems import new_request_id, problem_answer
from web.security_headers import Header, security_headers_for


class MalformedRequestError(ServiceError):
    """What came in is not HTTP."""

    status, code, title = 400, "malformed-request", "The request is not valid HTTP"

    def __init__(self) -> None:
        super().__init__("What came in is not valid HTTP/1.1, or too much of it at once, so the connection ends.")


class SlowRequestError(ServiceError):
    """The caller took too long to send."""

    status, code, title = 408, "request-too-slow", "The request came in too slowly"

    def __init__(self, part: str, setting: str, limit_s: float) -> None:
        detail = f"The request's {part} was not there after {limit_s:g} s ({setting}), so the connection ends."
        super().__init__(detail, extensions={"limit": limit_s})


class LargeHeadError(ServiceError):
    """The request line and the headers are too long."""

    status, code, title = 431, "headers-too-large", "The headers are too large"

    def __init__(self, limit_bytes: int) -> None:
        detail = f"Request line and headers are more than the {limit_bytes} bytes that MAX_HEADER_SIZE allows."
        super().__init__(detail, extensions={"limit": limit_bytes})


class NoConnectionError(ServiceError):
    """Every connection is at work."""

    status, code, title = 503, "too-many-connections", "Too many connections are at work"

    def __init__(self, limit: int) -> None:
        detail = f"All {limit} connections (MAX_CONNECTIONS) wait for answers of the service."
        super().__init__(detail, retry_after_s=1, extensions={"limit": limit})


def whole_answer(error: ServiceError, headers: list[Header], *, request_id: str | None = None) -> bytes:
    """A whole answer with these *headers* and those that every one has, for requests that no route sees."""
    request_id = request_id or new_request_id()
    own, body = problem_answer(error, request_id)
    all_headers = [*headers, *own, (b"x-request-id", request_id.encode()), *security_headers_for(own)]
    lines = b"".join(b"%s: %s\r\n" % header for header in all_headers)
    return STATUS_LINE[error.status] + lines + b"\r\n" + body
