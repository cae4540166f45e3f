"""The lines of the log about answered requests: which fields they have, and which requests were slow."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import structlog
from litestar.types import HTTPScope

from access.principals import Principal
from telemetry.answered_request import NO_ROUTE, AnsweredRequest, known_method
from telemetry.request_work import RequestWork, StageName
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

    def of(self, principal: Principal | None, scope: HTTPScope) -> dict[str, str]:
        """Return the fields. A key and a token may have the same name."""
        fields: dict[str, str] = {}
        if self.has_name and principal is not None and principal.kind != "address":
            fields = {"caller": principal.name, "caller_kind": principal.kind}
            if principal.issuer:
                fields["caller_issuer"] = principal.issuer
        if self.find_address is not None and (address := self.find_address(scope["client"], scope["headers"])):
            fields["client"] = address
        return fields


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

    def write(self, answered: AnsweredRequest, context: RequestContext, scope: HTTPScope, service_s: float) -> None:
        """Log the request of *scope*, for which the service took *service_s*."""
        fields: dict[str, Any] = {
            **context.ids,
            "method": known_method(scope["method"]),
            "route": None if answered.route == NO_ROUTE else answered.route,
            "status": answered.status,
            "ms": _ms(answered.seconds),
            "dialect": answered.dialect,
            **_work_fields(context.work),
            **self._caller_fields.of(context.principal, scope),
        }
        is_polled = answered.route in self._polled and answered.method == "GET"
        write = log.debug if is_polled else log.info
        write("request_answered", **fields)
        if 0 < self._slow_s < service_s:
            stages = _stage_fields(context.work, SLOW_STAGE_FIELDS)
            log.warning("request_slow", **fields, service_ms=_ms(service_s), **stages)


def _work_fields(work: RequestWork) -> dict[str, Any]:
    """Return what was done for a request that named a model which callers may use."""
    if not work.model:
        return {}
    fields: dict[str, Any] = {"model": work.model, "texts": work.texts, "cached": work.hits}
    if work.tokens:
        fields["tokens"] = work.tokens
    return fields | _stage_fields(work, STAGE_FIELDS)


def _stage_fields(work: RequestWork, names: Iterable[tuple[StageName, str]]) -> dict[str, float]:
    found = ((name, work.seconds(stage)) for stage, name in names)
    return {name: _ms(seconds) for name, seconds in found if seconds is not None}


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 2)
