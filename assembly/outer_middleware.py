"""Builds what is around all of Litestar: rejection under overload, log, timing, traces, and the prefix of proxies.

Also builds `EarlyReuse`, with which the server sends cached answers without calling Litestar.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from litestar import Litestar
from litestar.config.cors import CORSConfig
from litestar.types import ASGIApp

from assembly.client_addresses import client_addresses
from assembly.paths import Paths
from assembly.running import RunningService
from assembly.tracing import Tracing
from config import Settings
from telemetry.metrics import Metrics
from web.allowed_hosts import AllowedHosts, HostGuard
from web.answer_reuse import AnswerReuse
from web.authentication import AuthenticationMiddleware
from web.cors import cors_headers, timing_headers
from web.early_reuse import EarlyReuse
from web.large_body_queue import LargeBodyQueue
from web.litestar_adapter import ShortWay, paths_with, wrap
from web.overload_guard import OverloadGuard
from web.request_context import context_of
from web.request_lines import CallerFields, RequestLines
from web.request_log import RequestLog
from web.route_table import RouteTable
from web.security_headers import Header
from web.server_timing import ServerTiming, Timing, no_timing


@dataclass(frozen=True, slots=True)
class OuterMiddleware:
    """What the server uses of the middleware around the app.

    Attributes:
        guard: rejects requests under overload.
        early_reuse: what the server may send itself; None: nothing.
    """

    guard: OverloadGuard
    early_reuse: EarlyReuse | None


def add_outer_middleware(
    app: Litestar,
    service: RunningService,
    *,
    paths: Paths,
    metrics: Metrics,
    authentication: AuthenticationMiddleware,
    reuse: AnswerReuse | None,
    settings: Settings,
    tracing: Tracing,
) -> OuterMiddleware:
    """Put the overload guard and the request log around *app*; their paths come from the options of its routes."""
    large_bodies = LargeBodyQueue()
    guard = OverloadGuard(
        ShortWay(app, has_started=lambda scope: context_of(scope).has_answer_started),
        queues={path: queue for work, queue in service.queues.items() for path in paths_with(app, "work", [work])},
        identify=authentication.find_embed_caller,
        locate=authentication.locate,
        observe=metrics.observe,
        find_dialect=paths.find_dialect,
    )
    service.web_accounts += [large_bodies.account, guard.lookup_account]
    inner: ASGIApp = guard
    if settings.allowed_hosts:
        exempt = paths_with(app, "any_host", [True])
        inner = HostGuard(guard, allowed=AllowedHosts(settings.allowed_hosts), exempt=exempt)
    embedding, tokenizing = (paths_with(app, "work", [work]) for work in service.queues)
    log = RequestLog(
        inner,
        observe=metrics.observe,
        lines=_request_lines(app, settings),
        timing=_timing(app, settings, app.cors_config),
        error_headers=partial(cors_headers, app.cors_config),
        large_bodies=large_bodies,
        find_dialect=paths.find_dialect,
        find_route=RouteTable(embedding | tokenizing).find,
    )
    wrap(app, lambda _: tracing.around(log, embedding=embedding, tokenizing=tokenizing))
    wrap(app, paths.prefix.around)
    early_reuse = None
    # Quotas may have to be asked over the network, and spans are recorded around the app.
    if reuse is not None and tracing.is_off and not settings.enable_rate_limit:
        early_reuse = EarlyReuse(
            reuse,
            routes=paths_with(app, "work", ["queued"]) & paths_with(app, "permission", ["embed"]),
            remove_prefix=paths.prefix.remove_from,
            allows_host=_allows_host(settings),
            identify=authentication.find_embed_principal,
            guard=guard,
            record=log.record_early,
            max_body_bytes=int(settings.max_request_size),
        )
    metrics.watch_requests(lambda: log.in_flight + (0 if early_reuse is None else early_reuse.held))
    return OuterMiddleware(guard, early_reuse)


def _allows_host(settings: Settings) -> Callable[[Iterable[Header]], bool]:
    """Return what accepts the `Host` in the headers of a request."""
    if not settings.allowed_hosts:
        return lambda _: True
    return partial(AllowedHosts(settings.allowed_hosts).include_all, None)


def _request_lines(app: Litestar, settings: Settings) -> RequestLines:
    shown = settings.log_client
    return RequestLines(
        polled=paths_with(app, "polled", [True]),
        caller_fields=CallerFields(
            has_name=shown in ("name", "both"),
            find_address=client_addresses(settings).address_of if shown in ("address", "both") else None,
        ),
        slow_s=settings.slow_request_seconds,
    )


def _timing(app: Litestar, settings: Settings, cors: CORSConfig | None) -> Timing:
    if not settings.server_timing:
        return no_timing
    routes = paths_with(app, "work", ["queued", "unqueued"])
    return ServerTiming(routes, origin_headers=partial(timing_headers, cors))
