"""Serves an app in this process, until a signal stops it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import Protocol

import structlog
from litestar import Litestar

from host.listening_socket import ListenError, listening_address
from host.open_files import raise_file_limit
from serving.connection_limits import ConnectionLimits
from serving.connection_pool import ConnectionPool
from serving.listening import listen
from serving.process_exit import exit_despite_threads, fail
from serving.process_start import finish_imports, prepare_process
from serving.protocol import HttpProtocol
from serving.uvicorn_server import DrainingServer
from serving.worker_process import WorkerLink
from serving.worker_protocol import WorkerProtocol
from telemetry.log_setup import log_unhandled_errors
from telemetry.metrics import ConnectionCounts

OTHER_FILES = 100
"""Open files kept for everything but client connections: models, the hub, Redis, the log."""

log = structlog.get_logger()


class ServiceState(Protocol):
    """What the server needs to know about the service behind the app."""

    address: str | None
    """Where the server listens."""

    @property
    def failure(self) -> str | None:
        """Why the service could not start; None: it could."""
        ...

    def start_draining(self) -> None:
        """Accept no new work."""


def serve(
    app: Litestar,
    *,
    host: str,
    port: int,
    drain_s: int,
    limits: ConnectionLimits,
    open_pool: Callable[[ConnectionLimits], ConnectionPool],
    state: ServiceState,
    reload: Callable[[], None] = lambda: None,
    watch_connections: Callable[[Callable[[], ConnectionCounts]], None] = lambda _: None,
    worker: WorkerLink | None = None,
) -> int:
    """Run *app* until a signal stops it.

    Args:
        app: the service.
        host: address to listen on.
        port: TCP port to listen on.
        drain_s: seconds from the signal to the end; accepted requests are answered meanwhile.
        limits: of every connection.
        open_pool: returns the pool of all connections, by the limits that this process can keep.
        state: the state of the service behind *app*.
        reload: called in the event loop at each SIGHUP.
        watch_connections: gets the function that returns what is open now, for metrics.
        worker: what this process has inherited, if it is one of several workers.

    Returns:
        The exit code: 0 after a signal; 1 if the service failed to start or to stop, with the reason on standard error.
    """
    signals = prepare_process()
    finish_imports()
    log_unhandled_errors()
    try:
        listening = listen(host, port) if worker is None else None  # a worker gets its connections
    except ListenError as error:
        return fail(str(error))
    if listening is not None:
        state.address = listening_address(listening)
    pool = open_pool(_within_file_limit(limits))
    watch_connections(pool.counts)
    server = _create_server(app, pool, state, drain_s=drain_s, on_reload=reload, worker=worker)
    stop = server.handle_exit if worker is None else _only_once(server.handle_exit)
    signals.hand_over(stop=stop, reload=server.reload, report_unused=server.report_unused)
    is_success = server.run_until_stopped(listening)
    signals.ignore_rest()
    return exit_despite_threads(_exit_code(state, worker, is_success=is_success))


def _create_server(
    app: Litestar,
    pool: ConnectionPool,
    state: ServiceState,
    *,
    drain_s: int,
    on_reload: Callable[[], None],
    worker: WorkerLink | None,
) -> DrainingServer:
    """Create the server of *app*, whose connections *pool* counts."""

    def start_draining() -> None:
        state.start_draining()
        pool.is_draining = True

    return DrainingServer(
        app,
        make_protocol=partial(HttpProtocol if worker is None else WorkerProtocol, pool=pool),
        keep_alive_s=pool.limits.keep_alive_timeout_s,
        drain_s=drain_s,
        on_stop=start_draining,
        on_reload=on_reload,
        connections_socket=None if worker is None else worker.connections_socket,
    )


def _only_once(stop: Callable[[int, FrameType | None], None]) -> Callable[[int, FrameType | None], None]:
    """Ignore all signals but the first one.

    A worker may get several: from the supervisor, and from whatever else signals all processes of a service. Only the
    supervisor decides on an end at once.
    """
    received: list[int] = []

    def stop_once(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:
            stop(number, frame)

    return stop_once


def _exit_code(state: ServiceState, worker: WorkerLink | None, *, is_success: bool) -> int:
    """Return the exit code, and write to standard error why it is not 0; a worker reports it to the supervisor."""
    if state.failure is not None:
        reason = f"Cannot start: {state.failure}"
    elif is_success:
        return 0
    else:
        reason = "The service failed; its log contains the reason."
    if worker is None:
        return fail(reason)
    worker.report_failure(reason)
    return 1


def _within_file_limit(limits: ConnectionLimits) -> ConnectionLimits:
    """Allow this process as many open files as possible, and limit the connections to that number."""
    if (max_files := raise_file_limit()) is None:
        return limits
    max_connections, wanted = max(1, max_files - OTHER_FILES), limits.share_of(limits.max_connections)
    if wanted <= max_connections:
        return limits
    log.warning("connections_limited", max_connections=max_connections, wanted=wanted, open_files=max_files)
    return replace(limits, max_connections=max_connections * limits.workers)
