"""The state of one request, passed from the server through the middlewares to the handler as one typed object."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from access.principals import Principal
from engine.errors import ServiceError
from web.large_body_queue import LargeBodyQueue
from web.security_headers import Header

KEY = "request_context"
"""The only key that this service adds to ASGI's `scope["state"]`."""


@dataclass(slots=True)
class RequestContext:
    """What the parts that handle one request share about it.

    Attributes:
        request_id: sent back as `X-Request-ID` and logged; empty until the request log sets it.
        rejection: set by the server: answer with this error and do not call the app.
        server_reports_disconnect: the server calls `on_disconnect` when the caller leaves; other ASGI servers only
            report it to those who call `receive`.
        on_disconnect: called when the caller leaves before the answer is complete.
        principal: the caller; None until authentication has run, and on routes that need no permission.
        charge_tokens: charges tokens to the principal's quota; None if quotas are off.
        answer_headers: added to the answer, whatever it is.
        problem_code: the code of the problem that was answered, for metrics.
        logged_elsewhere: the request log writes no line for this request.
        large_bodies: where large bodies wait to be decoded.
    """

    request_id: str = ""
    rejection: ServiceError | None = None
    server_reports_disconnect: bool = False
    on_disconnect: Callable[[], None] | None = None
    principal: Principal | None = None
    charge_tokens: Callable[[int], None] | None = None
    answer_headers: list[Header] = field(default_factory=list)
    problem_code: str | None = None
    logged_elsewhere: bool = False
    large_bodies: LargeBodyQueue | None = None


def context_of(scope: Mapping[str, object]) -> RequestContext:
    """Return the context of the request of *scope*, created at the first call."""
    state = cast("dict[str, Any]", scope["state"])
    context: RequestContext | None = state.get(KEY)
    if context is None:
        context = state[KEY] = RequestContext()
    return context
