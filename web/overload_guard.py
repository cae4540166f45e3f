"""Overload guard: under overload, work is rejected before it is read, decoded or tokenised."""

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

MAX_ENTRIES_PER_TURN = 4
"""Requests that enter in one turn of the event loop: some milliseconds of decoding, then sockets are read again."""
MAX_WAITING, MAX_WAIT_S = 1000, 1.0
"""Requests that may wait to enter, and for how long."""
LOG_INTERVAL_S = 1.0

log = structlog.get_logger()


class OverloadGuard:
    """ASGI middleware inside the `RequestLog`, which answers the errors raised here and adds the common headers.

    At ten times the load that can be served there are nine rejections to each answer, so their cost is taken from
    useful work. Therefore rejections are logged in one line per second, not one each. When requests arrive faster than
    the event loop can start them, they wait here, where the loop still gets to those that it has to reject.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        queued: frozenset[str],
        unqueued: frozenset[str],
        rejection: Callable[[], ServiceError | None],
        count: Callable[[str, float, str | None], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wrap *app*.

        Args:
            app: gets the requests that may enter.
            queued: routes whose POST requests wait for a lane; they are rejected while its queue is full.
            unqueued: routes whose POST requests occupy the event loop (decoding, tokenising) but no lane.
            rejection: returns why any queued work would be rejected now, or None while some has room.
            count: gets endpoint, seconds and problem code of each rejection that the `RequestLog` never sees.
            clock: seconds, monotonic.
        """
        self._app = app
        self._queued = queued
        self._guarded = queued | unqueued
        self._rejection = rejection
        self._count = count
        self._clock = clock
        self._waiting: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._entered = 0  # in this turn of the event loop
        self._rejected = 0
        self._rejected_since = 0.0

    def reject_early(self, path: str) -> ServiceError | None:
        """Return why a POST to *path* is rejected now, and count it; None: it may enter. For servers that answer."""
        error = self._rejection() if path in self._queued else None
        if error is not None:
            self._note_rejection()
            self._count(f"POST {path}", 0.0, error.code)
        return error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let guarded work enter bit by bit, and everything else at once.

        Raises:
            OverloadedError: the queue is full, or too many requests wait to enter.
        """
        if scope["type"] == ScopeType.HTTP and scope["method"] == "POST":
            route = self._route(scope["path"])
            if route in self._guarded:
                self._check(scope, route)
                if self._waiting or self._entered >= MAX_ENTRIES_PER_TURN:
                    since = await self._wait()
                    self._check(scope, route, since)
                else:
                    self._note_entry()
        await self._app(scope, receive, send)

    def _route(self, path: str) -> str:
        """Return the route that Litestar finds at *path*, even if slashes are doubled or stand at its end."""
        return path if path in self._guarded else normalize_path(path)

    async def _wait(self) -> float:
        """Wait until the request may enter; return when it began to wait."""
        entry = asyncio.get_running_loop().create_future()
        since = self._clock()
        self._waiting.append((since, entry))
        await entry
        return since

    def _check(self, scope: Scope, route: str, since: float | None = None) -> None:
        """Reject what cannot be served; *since* is when the request began to wait."""
        error = self._rejection() if route in self._queued else None
        if error is None and (self._is_late(since) if since is not None else len(self._waiting) >= MAX_WAITING):
            error = OverloadedError("Requests arrive faster than they can be read.", retry_after_s=MAX_WAIT_S)
        if error is not None:
            set_route(scope, route)  # type: ignore[arg-type]  # only HTTP requests are checked
            context_of(scope).logged_elsewhere = True
            self._note_rejection()
            raise error

    def _is_late(self, since: float) -> bool:
        return self._clock() - since > MAX_WAIT_S

    def _note_entry(self) -> None:
        if not self._entered:
            asyncio.get_running_loop().call_soon(self._start_turn)
        self._entered += 1

    def _start_turn(self) -> None:
        """The event loop has looked at the sockets: let the next requests enter, and those that will be rejected."""
        self._entered = 0
        is_full = self._rejection() is not None
        while self._waiting and (is_full or self._entered < MAX_ENTRIES_PER_TURN or self._is_late(self._waiting[0][0])):
            _, entry = self._waiting.popleft()
            if not entry.done():  # done: the caller has left, so its task was cancelled
                entry.set_result(None)
                self._note_entry()

    def _note_rejection(self) -> None:
        if not self._rejected:
            self._rejected_since = self._clock()
            asyncio.get_running_loop().call_later(LOG_INTERVAL_S, self._log_rejections)
        self._rejected += 1

    def _log_rejections(self) -> None:
        seconds = round(self._clock() - self._rejected_since, 3)
        log.warning("requests_refused", requests=self._rejected, seconds=seconds)
        self._rejected = 0
