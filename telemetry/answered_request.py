"""One answered request, as metrics and traces see it."""

from typing import NamedTuple

from telemetry.request_work import RequestWork

NATIVE = "native"
"""The dialect of requests to our own API."""
NO_ROUTE = "(no route)"
"""The route of requests that match none: method and path can be anything, and labels must come from closed sets."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
OTHER_METHOD = "_OTHER"
"""Stands for all other methods in log, metrics and traces, as OpenTelemetry names it."""


def known_method(method: str) -> str:
    """Return *method* if HTTP defines it: some servers accept any word as a method, with which callers could write."""
    return method if method in METHODS else OTHER_METHOD


class AnsweredRequest(NamedTuple):
    """One request whose answer has ended.

    Attributes:
        method: `GET`, `POST` and so on; empty without a route.
        route: the pattern of its path, or `NO_ROUTE`.
        status: of the answer; 499: the caller left before it.
        seconds: from the request's head to the end of its answer.
        problem_code: of the error; None: there was none.
        dialect: the API that the caller speaks.
        work: what the engine did; None: nothing, the request was rejected unread.
        trace_id: 32 hexadecimal digits; empty: it belongs to no trace, or to one that nobody records.
    """

    method: str
    route: str
    status: int
    seconds: float
    problem_code: str | None = None
    dialect: str = NATIVE
    work: RequestWork | None = None
    trace_id: str = ""

    @property
    def endpoint(self) -> str:
        """Method and route, such as `POST /embed`."""
        return f"{self.method} {self.route}" if self.method else self.route
