"""Serves an app in the server process, with the address and the connection limits of its settings."""

from functools import partial

from litestar import Litestar

from assembly.app import AppParts, parts_of
from assembly.client_addresses import client_addresses
from assembly.reloading import Reloading
from config import Settings
from serving.connection_limits import ConnectionLimits
from serving.connection_pool import ConnectionPool, EarlyRejection
from serving.server import serve
from serving.worker_process import WorkerLink
from web.allowed_hosts import AllowedHosts
from web.path_prefix import PathPrefix

MAX_LARGE_BODIES = 16
"""Bodies of the maximum size that may be in memory at a time, from their first byte until they are answered; of all
workers together, but at least one of each."""


def serve_app(app: Litestar, *, worker: WorkerLink | None = None) -> int:
    """Serve *app* until a signal stops the process; return the exit code, as `serving.server.serve` does."""
    parts = parts_of(app)
    settings = parts.settings
    reloading = Reloading(read_keys=parts.keys.reload, read_models=parts.service.reload)
    return serve(
        app,
        host=settings.host,
        port=settings.port,
        drain_s=settings.shutdown_timeout,
        limits=connection_limits(settings, workers=1 if worker is None else worker.workers),
        open_pool=partial(open_pool, parts),
        state=parts.service.lifecycle,
        reload=reloading.request,
        watch_connections=parts.metrics.watch_connections,
        worker=worker,
    )


def open_pool(parts: AppParts, limits: ConnectionLimits) -> ConnectionPool:
    """Return the pool of the connections to the app with these *parts*."""
    settings = parts.settings
    reject_early = parts.tracing.reject_early(parts.outer.guard.reject_early)
    return ConnectionPool(
        limits,
        count_failure=parts.metrics.count_error,
        reject_early=early_rejections(settings, parts.paths.prefix, reject_early),
        early_reuse=parts.outer.early_reuse,
        find_dialect=parts.paths.find_dialect,
        address_of=client_addresses(settings).network_of_peer,
    )


def early_rejections(settings: Settings, prefix: PathPrefix, reject: EarlyRejection) -> EarlyRejection:
    """Return *reject* for requests as they arrive: to any host, and with or without *prefix*."""
    found = prefix.reject_early(reject)
    return AllowedHosts(settings.allowed_hosts).reject_early(found) if settings.allowed_hosts else found


def connection_limits(settings: Settings, *, workers: int = 1) -> ConnectionLimits:
    """Return the limits of connections of one of several *workers*, in seconds and bytes."""
    return ConnectionLimits(
        header_timeout_s=settings.header_timeout,
        body_timeout_s=settings.body_timeout,
        keep_alive_timeout_s=settings.keep_alive_timeout,
        max_header_bytes=int(settings.max_header_size),
        max_bodies_bytes=max(1, MAX_LARGE_BODIES // workers) * int(settings.max_request_size),
        max_connections=settings.max_connections,
        max_connections_per_address=settings.max_connections_per_address,
        workers=workers,
    )
