"""The header `Server-Timing`: where the time of a request went. Browsers draw it."""

from collections.abc import Callable, Iterable

from litestar.types import HTTPScope

from telemetry.request_work import RequestWork, StageName
from web.litestar_adapter import route_of
from web.security_headers import Header

METRICS: tuple[tuple[StageName, str], ...] = (
    ("load", "load"),
    ("cache", "cache"),
    ("tokenize", "tokenize"),
    ("queue", "queue"),
    ("run", "infer"),
)
"""The stages of a request's work, in their usual order, and what the header calls them."""

Timing = Callable[[HTTPScope, RequestWork, float, Iterable[Header]], list[Header]]
"""Returns headers for an answer, by the work for it, the seconds that the service took, and the headers it has."""


def no_timing(_scope: HTTPScope, _work: RequestWork, _seconds: float, _own: Iterable[Header]) -> list[Header]:
    """Return no headers: the setting is off."""
    return []


class ServerTiming:
    """Says where the time of requests went, to callers of some routes."""

    def __init__(self, routes: frozenset[str], *, origin_headers: Callable[[HTTPScope], list[Header]]) -> None:
        """Add the header to all answers to POST requests.

        Args:
            routes: the templates of these requests' paths.
            origin_headers: returns the headers by which the caller's page may read it.
        """
        self._routes = routes
        self._origin_headers = origin_headers

    def __call__(self, scope: HTTPScope, work: RequestWork, seconds: float, own: Iterable[Header]) -> list[Header]:
        if scope["method"] != "POST" or route_of(scope) not in self._routes:
            return []
        is_whole = b"content-length" in [name for name, _ in own]
        return [(b"server-timing", _value(work, seconds if is_whole else None)), *self._origin_headers(scope)]


def _value(work: RequestWork, total_s: float | None) -> bytes:
    """Return the value of the header.

    Without *total_s*, the answer begins while the rest is computed: what has not ended is not known, so it is left out.
    """
    sums = work.seconds_by_stage()
    if total_s is None:
        sums.pop("run", None)
    parts = [f"{metric};dur={sums[stage] * 1e3:.2f}" for stage, metric in METRICS if stage in sums]
    if total_s is not None:
        parts.append(f"total;dur={total_s * 1e3:.2f}")
    return ", ".join(parts).encode()
