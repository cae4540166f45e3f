"""The terms of a request to the engine, from its headers and from what middleware found out."""

from typing import Any

from litestar import Request

from api.cache_headers import cache_use_of
from api.fingerprint_header import fingerprint_required_by
from engine.request_terms import RequestTerms
from web.request_context import context_of


def terms_of(request: Request[Any, Any, Any], timeout_s: float | None) -> RequestTerms:
    """Return the terms of *request*, which waits for at most *timeout_s*.

    Raises:
        InvalidInputError: the header `If-Model-Fingerprint` is not a fingerprint.
    """
    context = context_of(request.scope)
    return RequestTerms(
        caller=context.caller,
        timeout_s=timeout_s,
        on_tokens=context.charge_tokens,
        if_fingerprint=fingerprint_required_by(request),
        cache=cache_use_of(request),
        miss_error=context.miss_error,
        work=context.work,
    )
