"""What the span of a request says: never a text, a vector or a key, nor who the caller is."""

from collections.abc import Sequence
from typing import Any

from litestar.types import HTTPScope

from telemetry import span_names as names
from telemetry.answered_request import OTHER_METHOD, known_method
from telemetry.request_work import Stage
from web.dialects import Rejection, label_of
from web.problems import CALLER_LEFT
from web.request_context import RequestContext, header_values

MAX_CHARACTERS = 200
"""Longest `url.path` and `user_agent.original`: callers may send more."""
FAILURE = 500
"""The first status that is the service's failure. Those below are the caller's, and say nothing of the service."""

Attributes = dict[str, Any]


def method_of(scope: HTTPScope) -> str:
    """Return the method as an attribute: callers may send any word."""
    return known_method(scope["method"])


def name_of(method: str, route: str | None, context: RequestContext | None = None, *, embeds: bool = False) -> str:
    """Return the name of a span. An embedding has that of its model, once the model is known."""
    if embeds and context is not None and context.work.model:
        return f"{names.EMBEDDINGS} {context.work.model}"
    method = "HTTP" if method == OTHER_METHOD else method
    return method if route is None else f"{method} {route}"


def at_start(scope: HTTPScope, route: str | None) -> Attributes:
    """Return what is known before the request is answered; samplers see it."""
    found: Attributes = {
        names.HTTP_METHOD: method_of(scope),
        names.URL_SCHEME: scope["scheme"],
        names.PROTOCOL_VERSION: scope["http_version"],
        **_place(scope["path"], route),
        **_server(scope),
    }
    if agents := header_values(scope, b"user-agent"):
        found[names.USER_AGENT] = agents[0][:MAX_CHARACTERS]
    return found


def at_end(scope: HTTPScope, route: str | None, status: int, context: RequestContext) -> Attributes:
    """Return the rest; *status* is 0 if no answer was sent."""
    found = _place(scope["path"], route)
    if status:
        found[names.HTTP_STATUS] = status
    if context.problem_code is not None or status >= 400:  # noqa: PLR2004 - HTTP's first status of errors
        found[names.ERROR_TYPE] = context.problem_code or str(status)
    return found


def of_work(context: RequestContext, *, embeds: bool) -> Attributes:
    """Return what the engine did for a request that embeds or tokenises."""
    work = context.work
    found: Attributes = {names.DIALECT: label_of(context.dialect)}
    if embeds:
        found |= {names.GENAI_OPERATION: names.EMBEDDINGS, names.GENAI_PROVIDER: names.PROVIDER}
    known = {
        names.GENAI_MODEL: work.model,
        names.GENAI_FORMATS: context.encoding_formats,
        names.GENAI_TOKENS: work.tokens,
        names.GENAI_DIMENSION: work.dimension,
        names.TEXTS: work.texts,
        names.TRUNCATED_TEXTS: work.truncated,
        names.CACHED_TEXTS: work.hits,
        names.COALESCED_TEXTS: work.coalesced,
    }
    return found | {name: value for name, value in known.items() if value}


def of_rejection(rejection: Rejection, route: str | None) -> Attributes:
    """Return what is known of a POST request that is rejected before the app sees it."""
    return {
        names.HTTP_METHOD: "POST",
        names.HTTP_STATUS: rejected_status(rejection),
        names.ERROR_TYPE: rejection.error.code,
        names.DIALECT: label_of(rejection.dialect),
        **({} if route is None else {names.HTTP_ROUTE: route}),
    }


def rejected_status(rejection: Rejection) -> int:
    """Return the status that the caller gets."""
    error, dialect = rejection.error, rejection.dialect
    return error.status if dialect is None else dialect.status(error.code, error.status)


def is_failure(status: int, problem_code: str | None) -> bool:
    """Return whether the service has failed, also in the middle of an answer that began well."""
    return status >= FAILURE or (problem_code not in {None, CALLER_LEFT} and status < 400)  # noqa: PLR2004 - as above


def joined_stages(stages: Sequence[Stage]) -> list[Stage]:
    """Return *stages* with one for each two of one name that follow each other: memory is looked up, then Redis."""
    found: list[Stage] = []
    for stage in stages:
        if found and found[-1].name == stage.name:
            stage = Stage(stage.name, found.pop().started_s, stage.ended_s)  # noqa: PLW2901 - the two are one
        found.append(stage)
    return found


def _place(path: str, route: str | None) -> Attributes:
    """Return route and path. The path of no route can be anything, a text included, so it is left out."""
    return {} if route is None else {names.HTTP_ROUTE: route, names.URL_PATH: path[:MAX_CHARACTERS]}


def _server(scope: HTTPScope) -> Attributes:
    """Return the address at which the request arrived; a Unix socket has no port."""
    if (server := scope["server"]) is None:
        return {}
    address, port = server
    return {names.SERVER_ADDRESS: address} | ({} if port is None else {names.SERVER_PORT: port})
