"""Overload guard: rejects requests under overload before their bodies are read, decoded or tokenised."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import structlog
from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

from engine.errors import OverloadedError, ServiceError
from engine.fair_queue import Caller, FairQueue
from engine.ledger import Account, Reservation
from telemetry.answered_request import AnsweredRequest
from web.cache_lookups import CacheLookups
from web.dialects import Dialect, Rejection, label_of
from web.litestar_adapter import set_route
from web.request_context import Client, context_of
from web.route_table import RouteTable
from web.security_headers import Header

MAX_ITERATION_S = 0.005
"""Requests start in one iteration of the event loop until it has taken this long; then sockets are read again. The next
ones wait, and waiting is work: a place in the queue, a future and one more step of the task."""
MAX_WOKEN = 4
"""Requests that wait, and are woken in one iteration: how long they take is known only when they have started."""
MAX_WAITING, MAX_WAIT_S = 1000, 10.0
"""How many requests may wait to start, of which one caller may hold 80 %, and for how many seconds.

Some clients send hundreds of texts at once, one per request, and give up if one request is rejected. Requests of other
callers do not wait behind theirs.
"""
RETRY_AFTER_S = 1.0
"""`Retry-After` of requests that are rejected because too many wait to start."""
LOG_INTERVAL_S = 1.0
"""Seconds of rejections that one log line sums up."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class RouteQueue:
    """The queue in which the work of some routes waits.

    Attributes:
        is_tight: returns whether `overload` may return an error for any caller at all.
        overload: returns the error that any work of this caller would get now; None: some is accepted.
        has_results: returns whether results are kept, by which a request may be answered without the queue.
    """

    is_tight: Callable[[], bool]
    overload: Callable[[Caller], ServiceError | None]
    has_results: Callable[[], bool] = lambda: False


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A request that waits to start: its route and headers, since when it waits, and the future that lets it start."""

    route: str
    headers: Iterable[Header]
    since: float
    may_start: asyncio.Future[None]


class OverloadGuard:
    """ASGI middleware inside the `RequestLog`, which answers the errors raised here and adds the common headers.

    At ten times the load that the service can handle, nine of ten requests are rejected, so a rejection must be cheap:
    rejections are logged in one line per second. Requests that arrive faster than the event loop can start them wait
    here, a few start in each iteration, in an order that is fair between callers. Those that must be rejected do not
    wait behind them. While results are kept, small requests are read although the queue is full (`web.cache_lookups`).

    Attributes:
        lookup_account: as `CacheLookups.account`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        queues: Mapping[str, RouteQueue],
        identify: Callable[[Client, Iterable[Header]], Caller | None],
        locate: Callable[[Client, Iterable[Header]], Caller],
        observe: Callable[[AnsweredRequest], None],
        find_dialect: Callable[[str], Dialect | None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wrap *app*.

        Args:
            app: receives the requests that start.
            queues: routes whose POST requests are work, and the queue in which that work waits.
            identify: returns the caller of a request with these headers; None: authentication has to find it out.
            locate: returns the caller by network address, for requests that `identify` does not know.
            observe: called with each rejection that the `RequestLog` never sees.
            find_dialect: returns the dialect of a path; None: ours.
            clock: seconds, monotonic.
        """
        self._app = app
        self._queues = queues
        self._routes = RouteTable(queues)
        self._identify = identify
        self._locate = locate
        self._observe = observe
        self._find_dialect = find_dialect
        self._clock = clock
        self._lookups = CacheLookups(clock=clock)
        self.lookup_account = self._lookups.account
        self._waiting: FairQueue[_Waiting] = FairQueue()
        self._account = Account("start", MAX_WAITING)
        self._began: float | None = None  # when the first request of this iteration of the event loop started
        self._rejected = 0
        self._rejected_since = 0.0

    def reject_early(self, path: str, client: Client, headers: Iterable[Header]) -> Rejection | None:
        """Return how the server should answer a POST to *path* with an error, and count it; None: call the app.

        *path* may have a query, as Azure's clients always send one.
        """
        route = self._routes.find(path.partition("?")[0])
        if route is None or (error := self._refusal_of(route, client, headers)) is None:
            return None
        rejection = Rejection(error, self._find_dialect(path))
        self._count_rejection()
        self._observe(
            AnsweredRequest(
                method="POST",
                route=route,
                status=rejection.status,
                seconds=0.0,
                problem_code=error.code,
                dialect=label_of(rejection.dialect),
            )
        )
        return rejection

    def may_start_now(self, route: str) -> bool:
        """Return whether a request may be answered at once, out of turn: none waits, and no queue is full."""
        return not (self._waiting or self._queues[route].is_tight() or self._is_iteration_over())

    def note_start(self) -> None:
        """Note that the event loop is at work for a request, if that is the first one since it has read the sockets."""
        if self._began is None:
            self._began = self._clock()
            asyncio.get_running_loop().call_soon(self._begin_iteration)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Start guarded requests a few at a time, and all others at once.

        Raises:
            OverloadedError: the queue of the lanes is full, or too many requests wait to start.
        """
        if scope["type"] == ScopeType.HTTP and scope["method"] == "POST":
            route = self._routes.find(scope["path"])
            if route is not None:
                self._check(scope, route, self._refusal_of(route, scope["client"], scope["headers"]))
                if self._waiting or self._is_iteration_over():
                    await self._wait(scope, route)
                else:
                    self.note_start()
                queue = self._queues[route]
                if queue.is_tight() and queue.has_results():
                    await self._run_tight(queue, scope, receive, send)
                    return
        await self._app(scope, receive, send)

    async def _run_tight(self, queue: RouteQueue, scope: HTTPScope, receive: Receive, send: Send) -> None:
        """Call the app. If *queue* has no room for the caller, a refusal by the app counts as a rejection here."""
        caller = self._identify(scope["client"], scope["headers"])
        error = None if caller is None else queue.overload(caller)
        if caller is None or error is None:
            await self._app(scope, receive, send)
            return
        context = context_of(scope)
        context.miss_error = error
        is_answered = await self._lookups.run(self._app, scope, receive, send, caller=caller)
        if not is_answered and context.problem_code == OverloadedError.code:
            context.logged_elsewhere = True
            self._count_rejection()

    def _refusal_of(self, route: str, client: Client, headers: Iterable[Header]) -> ServiceError | None:
        """Return the error with which the request is rejected unread; None: it is read."""
        queue = self._queues[route]
        if not queue.is_tight():
            return None
        caller = self._identify(client, headers)
        return None if caller is None else self._refusal_to(caller, queue, headers)

    def _refusal_to(self, caller: Caller, queue: RouteQueue, headers: Iterable[Header]) -> ServiceError | None:
        error = queue.overload(caller)
        if error is not None and queue.has_results() and self._lookups.may_look_up(caller, headers):
            return None
        return error

    async def _wait(self, scope: HTTPScope, route: str) -> None:
        """Wait until the request may start; reject it if that takes too long, or if too many of its caller's wait."""
        client, headers = scope["client"], scope["headers"]
        caller = self._identify(client, headers) or self._locate(client, headers)
        if self._account.excess(caller, 1) > 0:
            self._check(scope, route, _too_fast())
        waiting = _Waiting(route, headers, self._clock(), asyncio.get_running_loop().create_future())
        with Reservation((self._account,), caller) as reservation:
            reservation.resize(1)
            self._waiting.push(waiting, caller=caller, cost=1)
            try:
                await waiting.may_start
            except asyncio.CancelledError:  # the caller has disconnected
                self._waiting.remove(waiting, caller)
                raise
        self._check(scope, route, self._refusal_of(route, client, headers))
        self._check(scope, route, _too_fast() if self._is_late(waiting) else None)

    def _check(self, scope: HTTPScope, route: str, error: ServiceError | None) -> None:
        """Reject the request if there is an *error*."""
        if error is not None:
            set_route(scope, route)
            context_of(scope).logged_elsewhere = True
            self._count_rejection()
            raise error

    def _is_late(self, waiting: _Waiting) -> bool:
        return self._clock() - waiting.since > MAX_WAIT_S

    def _is_iteration_over(self) -> bool:
        return self._began is not None and self._clock() - self._began >= MAX_ITERATION_S

    def _begin_iteration(self) -> None:
        """After the event loop has read the sockets, wake the next requests, and all that will be rejected."""
        self._began = None
        for caller in self._waiting.callers:
            while (first := self._waiting.first(caller)) is not None and self._must_reject(first, caller):
                self._waiting.remove(first, caller)
                self._wake(first)
        woken = 0
        while self._waiting and woken < MAX_WOKEN:
            woken += self._wake(self._waiting.pop())

    def _must_reject(self, waiting: _Waiting, caller: Caller) -> bool:
        queue = self._queues[waiting.route]
        return self._is_late(waiting) or (
            queue.is_tight() and self._refusal_to(caller, queue, waiting.headers) is not None
        )

    def _wake(self, waiting: _Waiting) -> bool:
        """Let a request start, and return whether it does: its caller may have disconnected, which cancelled it."""
        if waiting.may_start.done():
            return False
        waiting.may_start.set_result(None)
        self.note_start()
        return True

    def _count_rejection(self) -> None:
        if not self._rejected:
            self._rejected_since = self._clock()
            asyncio.get_running_loop().call_later(LOG_INTERVAL_S, self._log_rejections)
        self._rejected += 1

    def _log_rejections(self) -> None:
        seconds = round(self._clock() - self._rejected_since, 3)
        log.warning("requests_refused", requests=self._rejected, seconds=seconds)
        self._rejected = 0


def _too_fast() -> OverloadedError:
    return OverloadedError("Requests arrive faster than they can be read.", retry_after_s=RETRY_AFTER_S)
