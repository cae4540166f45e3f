"""Request context: one typed object that carries a request's state from the server through middleware to handler."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from access.principals import Principal
from engine.errors import ServiceError
from engine.fair_gate import FairGate
from engine.fair_queue import ANYONE, Caller
from telemetry.request_work import RequestWork
from telemetry.trace_context import TraceContext, parse_traceparent
from web.dialects import Dialect
from web.large_body_queue import LargeBodyQueue
from web.security_headers import Header

Client = tuple[str, int] | None
"""Address and port of a connection's other end; None: it has none, such as a Unix socket."""
KEY = "request_context"
"""The key of the context in ASGI's `scope["state"]`; no other key is used there."""
MAX_LENGTH_DIGITS = 9
"""A `Content-Length` with more digits is above all limits of `is_length_up_to`, and may have thousands."""


@dataclass(slots=True)
class RequestContext:
    """The state that server, middleware and handler of one request share.

    Attributes:
        request_id: sent back as `X-Request-ID` and logged; empty until the request log sets it.
        trace: the trace of the caller, by its header `traceparent`; with tracing, the span of the request in it or in a
            trace of its own. None: the request belongs to none.
        root_path: what proxies put before all paths (ROOT_PATH), for addresses in answers.
        received_s: set by the server: when the head was complete, in seconds on the monotonic clock; None: just now.
        rejection: set by the server: the request log answers with this error and does not call the app.
        authority: set by the server: host and port of a target in absolute form, as proxies get it; None: it is a path.
        server_reports_disconnect: the server calls `on_disconnect`; other ASGI servers report a disconnect only
            as the result of `receive`.
        on_disconnect: called when the caller disconnects before the answer is complete.
        dialect: the API of another server that the caller speaks; None: ours. The request log finds it by the path; a
            handler may replace it when it has seen the body.
        principal: the caller; None until authentication has run, and on routes that need no permission.
        charge_tokens: charges tokens to the principal's quota; None if quotas are off.
        answer_headers: added to the answer, whatever it is.
        has_answer_started: a part of the answer was sent to the server.
        problem_code: the code of the problem document that was sent, for metrics.
        logged_elsewhere: the request log writes no line for this request.
        miss_error: set by the overload guard: the queue is full, so this is the answer unless all results are cached.
        large_bodies: the queue in which large bodies wait to be decoded.
        piece_gate: lets one piece of all long answers be written at a time; None: there are no other answers.
        work: what the engine does for the request.
        encoding_formats: the formats of vectors that the caller asks for, in its own words.
        answer_key: the key of its answer among the cached ones; None: not looked up yet.
    """

    request_id: str = ""
    root_path: str = ""
    trace: TraceContext | None = None
    received_s: float | None = None
    rejection: ServiceError | None = None
    authority: bytes | None = None
    server_reports_disconnect: bool = False
    on_disconnect: Callable[[], None] | None = None
    dialect: Dialect | None = None
    principal: Principal | None = None
    charge_tokens: Callable[[int], None] | None = None
    answer_headers: list[Header] = field(default_factory=list)
    has_answer_started: bool = False
    problem_code: str | None = None
    logged_elsewhere: bool = False
    miss_error: ServiceError | None = None
    large_bodies: LargeBodyQueue | None = None
    piece_gate: FairGate | None = None
    work: RequestWork = field(default_factory=RequestWork)
    encoding_formats: tuple[str, ...] = ()
    answer_key: bytes | None = None

    @property
    def ids(self) -> dict[str, str]:
        """The fields of every log line about the request."""
        if self.trace is None:
            return {"request_id": self.request_id}
        return {"request_id": self.request_id, "trace_id": self.trace.trace_id}

    @property
    def caller(self) -> Caller:
        """The caller, for everything that is fair between callers."""
        return self.principal.share_keys if self.principal is not None else ANYONE


def context_of(scope: Mapping[str, object]) -> RequestContext:
    """Return the context of the request of *scope*, created at the first call."""
    state: dict[str, Any] = scope["state"]  # type: ignore[assignment]  # as ASGI says
    context: RequestContext | None = state.get(KEY)
    if context is None:
        context = state[KEY] = RequestContext()
    return context


def trace_of(headers: Iterable[Header]) -> TraceContext | None:
    """Return the trace of the caller; None: there is not exactly one `traceparent`, or it is malformed."""
    values = [value for name, value in headers if name == b"traceparent"]
    return parse_traceparent(values[0].decode("latin-1")) if len(values) == 1 else None


def is_length_up_to(length: bytes, max_bytes: int) -> bool:
    """Return whether the `Content-Length` *length* is a number of at most *max_bytes*."""
    return length.isdigit() and len(length) <= MAX_LENGTH_DIGITS and int(length) <= max_bytes


def header_values(scope: Mapping[str, Any], name: bytes) -> list[str]:
    """Return the values of all headers with this *name*, in lower case. Litestar would convert all headers."""
    return [value.decode("latin-1") for found, value in scope["headers"] if found == name]
