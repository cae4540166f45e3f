"""The lines of the log about answered requests: which fields they have, and which requests were slow."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import structlog
from litestar.types import HTTPScope

from access.principals import Principal
from telemetry.answered_request import NO_ROUTE, AnsweredRequest, known_method
from telemetry.request_work import StageName
from web.request_context import Client, RequestContext
from web.security_headers import Header

STAGE_FIELDS: tuple[tuple[StageName, str], ...] = (("queue", "queue_ms"), ("run", "inference_ms"))
SLOW_STAGE_FIELDS: tuple[tuple[StageName, str], ...] = (
    ("load", "load_ms"),
    ("cache", "cache_ms"),
    ("tokenize", "tokenize_ms"),
)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class CallerFields:
    """Which fields say who called. They are personal data.

    Attributes:
        has_name: the name of the key or token.
        find_address: returns the network address of the client; None: it is not logged.
    """

    has_name: bool = True
    find_address: Callable[[Client, Iterable[Header]], str | None] | None = None

    def add_to(self, fields: dict[str, Any], principal: Principal | None, scope: HTTPScope) -> None:
        """Add the fields to those of a line. A key and a token may have the same name."""
        if self.has_name and principal is not None and principal.kind != "address":
            fields["caller"], fields["caller_kind"] = principal.name, principal.kind
            if principal.issuer:
                fields["caller_issuer"] = principal.issuer
        if self.find_address is not None and (address := self.find_address(scope["client"], scope["headers"])):
            fields["client"] = address


class RequestLines:
    """Writes one line per answered request, and another one if it was slow."""

    def __init__(
        self,
        *,
        polled: frozenset[str] = frozenset(),
        caller_fields: CallerFields = CallerFields(),
        slow_s: float = 0.0,
    ) -> None:
        """Write nothing yet.

        Args:
            polled: routes whose GET requests monitoring polls; their answers are logged at level DEBUG only.
            caller_fields: which fields say who called.
            slow_s: requests for which the service took longer are slow; 0: none is.
        """
        self._polled = polled
        self._caller_fields = caller_fields
        self._slow_s = slow_s
        self._bound_log: Any = None
        self._configured: object = None

    def write(self, answered: AnsweredRequest, context: RequestContext, scope: HTTPScope, service_s: float) -> None:
        """Log the request of *scope*, for which the service took *service_s*."""
        log, work, seconds = self._logger(), context.work, context.work.seconds_by_stage()
        fields: dict[str, Any] = {
            **context.ids,
            "method": known_method(scope["method"]),
            "route": None if answered.route == NO_ROUTE else answered.route,
            "status": answered.status,
            "ms": _ms(answered.seconds),
            "dialect": answered.dialect,
        }
        if work.model:  # one that callers may use
            fields["model"], fields["texts"], fields["cached"] = work.model, work.texts, work.hits
            if work.tokens:
                fields["tokens"] = work.tokens
            _add_stages(fields, seconds, STAGE_FIELDS)
        self._caller_fields.add_to(fields, context.principal, scope)
        is_polled = answered.route in self._polled and answered.method == "GET"
        write = log.debug if is_polled else log.info
        write("request_answered", **fields)
        if 0 < self._slow_s < service_s:
            fields["service_ms"] = _ms(service_s)
            _add_stages(fields, seconds, SLOW_STAGE_FIELDS)
            log.warning("request_slow", **fields)

    def _logger(self) -> Any:
        """Return a logger as structlog is configured now. Its own proxy builds one for each line."""
        configured = structlog.get_config()["processors"]
        if configured is not self._configured:
            self._bound_log, self._configured = log.bind(), configured
        return self._bound_log


def _add_stages(
    fields: dict[str, Any], seconds: dict[StageName, float], names: Iterable[tuple[StageName, str]]
) -> None:
    for stage, name in names:
        if stage in seconds:
            fields[name] = _ms(seconds[stage])


def _ms(seconds: float) -> float:
    return round(seconds * 1e5) / 100  # a fifth of the time of `round(..., 2)`
