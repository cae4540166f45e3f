"""The headers of the result cache: `Cache-Control` of requests, and `X-Cache` of answers."""

from typing import Any

from litestar import Request
from litestar.openapi.spec import OpenAPIType, Parameter, Schema

from engine.result_store import CacheCounts, CacheUse
from web.cache_control import cache_use
from web.request_context import header_values

CACHE_HEADER = "X-Cache"
CACHE_HEADERS = {
    CACHE_HEADER: "how many texts were kept, computed for this request, and computed once together with equal ones, "
    "such as `hit=3, miss=29, coalesced=0`"
}
"""The header of every answer with vectors, with its description for OpenAPI."""
PARAMETER = Parameter(
    name="Cache-Control",
    param_in="header",
    required=False,
    description="`no-store`: do not keep the results of this request. `no-cache` or `max-age=0`: compute anew, without "
    "results that were kept. Other directives are ignored.",
    schema=Schema(type=OpenAPIType.STRING),
)


def cache_use_of(request: Request[Any, Any, Any]) -> CacheUse:
    """Return what the headers of *request* allow of the result cache."""
    return cache_use(header_values(request.scope, b"cache-control"))


def cache_state(counts: CacheCounts) -> str:
    """Return the value of the answer header, from the counts at this moment."""
    return f"hit={counts.hit}, miss={counts.miss}, coalesced={counts.coalesced}"
