"""Overload guard: rejects requests under overload before their bodies are read, decoded or tokenised."""

import asyncio
import time
from collections import deque
from collections.abc import Callable

import structlog
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

from engine.errors import OverloadedError, ServiceError
from web.litestar_adapter import normalize_path, set_route
from web.request_context import context_of

MAX_STARTS_PER_ITERATION = 4
"""Requests that start in one iteration of the event loop. They take some milliseconds; then sockets are read again."""
MAX_WAITING, MAX_WAIT_S = 1000, 1.0
"""How many requests may wait to start, and for how many seconds."""
LOG_INTERVAL_S = 1.0
"""Seconds of rejections that one log line sums up."""

log = structlog.get_logger()


class OverloadGuard:
    """ASGI middleware inside the `RequestLog`, which answers the errors raised here and adds the common headers.

    At ten times the load that the service can handle, nine of ten requests are rejected, so a rejection must be cheap:
    rejections are logged in one line per second. Requests that arrive faster than the event loop can start them wait
    here, a few start in each iteration, and those that must be rejected do not wait behind them.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        queued: frozenset[str],
        unqueued: frozenset[str],
        overload: Callable[[], ServiceError | None],
        count: Callable[[str, float, str | None], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wrap *app*.

        Args:
            app: receives the requests that start.
            queued: routes whose POST requests wait for a lane; rejected while the queue of the lanes is full.
            unqueued: routes whose POST requests occupy the event loop (decoding, tokenising) but no lane.
            overload: returns the error that any queued work would get now; None: some is accepted.
            count: counts a rejection that the `RequestLog` never sees: endpoint, seconds, problem code.
            clock: seconds, monotonic.
        """
        self._app = app
        self._queued = queued
        self._guarded = queued | unqueued
        self._overload = overload
        self._count = count
        self._clock = clock
        self._waiting: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._started = 0  # in this iteration of the event loop
        self._rejected = 0
        self._rejected_since = 0.0

    def reject_early(self, path: str) -> ServiceError | None:
        """Return the error with which the server should answer a POST to *path*, and count it; None: call the app."""
        error = self._overload() if path in self._queued else None
        if error is not None:
            self._count_rejection()
            self._count(f"POST {path}", 0.0, error.code)
        return error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Start guarded requests a few at a time, and all others at once.

        Raises:
            OverloadedError: the queue of the lanes is full, or too many requests wait to start.
        """
        if scope["type"] == ScopeType.HTTP and scope["method"] == "POST":
            route = self._route(scope["path"])
            if route in self._guarded:
                self._check(scope, route)
                if self._waiting or self._started >= MAX_STARTS_PER_ITERATION:
                    since = await self._wait()
                    self._check(scope, route, since)
                else:
                    self._count_start()
        await self._app(scope, receive, send)

    def _route(self, path: str) -> str:
        """Return the route that Litestar finds for *path*: it ignores doubled slashes and those at the end."""
        return path if path in self._guarded else normalize_path(path)

    async def _wait(self) -> float:
        """Wait until the request may start; return the time when it began to wait."""
        may_start = asyncio.get_running_loop().create_future()
        since = self._clock()
        self._waiting.append((since, may_start))
        await may_start
        return since

    def _check(self, scope: Scope, route: str, since: float | None = None) -> None:
        """Reject the request if the service is overloaded; *since* is the time when it began to wait."""
        error = self._overload() if route in self._queued else None
        if error is None and (self._is_late(since) if since is not None else len(self._waiting) >= MAX_WAITING):
            error = OverloadedError("Requests arrive faster than they can be read.", retry_after_s=MAX_WAIT_S)
        if error is not None:
            set_route(scope, route)  # type: ignore[arg-type]  # only HTTP requests are checked
            context_of(scope).logged_elsewhere = True
            self._count_rejection()
            raise error

    def _is_late(self, since: float) -> bool:
        return self._clock() - since > MAX_WAIT_S

    def _count_start(self) -> None:
        if not self._started:
            asyncio.get_running_loop().call_soon(self._begin_iteration)
        self._started += 1

    def _begin_iteration(self) -> None:
        """After the event loop has read the sockets, wake the next requests, and all that will be rejected."""
        self._started = 0
        is_full = self._overload() is not None
        while self._waiting and (
            is_full or self._started < MAX_STARTS_PER_ITERATION or self._is_late(self._waiting[0][0])
        ):
            _, may_start = self._waiting.popleft()
            if not may_start.done():  # done: the caller has disconnected, so the task was cancelled
                may_start.set_result(None)
                self._count_start()

    def _count_rejection(self) -> None:
        if not self._rejected:
            self._rejected_since = self._clock()
            asyncio.get_running_loop().call_later(LOG_INTERVAL_S, self._log_rejections)
        self._rejected += 1

    def _log_rejections(self) -> None:
        seconds = round(self._clock() - self._rejected_since, 3)
        log.warning("requests_refused", requests=self._rejected, seconds=seconds)
        self._rejected = 0
