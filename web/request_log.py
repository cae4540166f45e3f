"""Request log: the outermost middleware. It gives each request an id and a log line, and answers every error."""

import asyncio
import time
from collections.abc import Callable
from http import HTTPStatus

import structlog
from litestar.enums import HttpMethod, ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from engine.errors import CutOffError, ServiceError
from engine.fair_gate import FairGate
from telemetry.answered_request import NO_ROUTE, AnsweredRequest
from web.dialects import Dialect, label_of
from web.disconnect_watch import DisconnectWatch
from web.large_body_queue import LargeBodyQueue
from web.litestar_adapter import route_of, set_route
from web.problems import CALLER_LEFT, InternalError, problem_answer, request_id_of
from web.request_context import RequestContext, context_of, trace_of
from web.request_lines import RequestLines
from web.request_times import RequestTimes
from web.security_headers import Header, security_headers_for
from web.server_timing import Timing, no_timing

CLIENT_CLOSED_REQUEST = 499
"""The logged status when the caller disconnected before the answer, as in nginx; it is never sent."""

log = structlog.get_logger()


class RequestLog:
    """ASGI middleware around all of Litestar, so that 404s, CORS answers and crashes are logged and counted, too.

    It reads the `RequestContext`, in which inner middleware puts answer headers or sets `logged_elsewhere`, and in
    which the server may put a `rejection`: then that is the answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        observe: Callable[[AnsweredRequest], None],
        lines: RequestLines | None = None,
        timing: Timing = no_timing,
        error_headers: Callable[[HTTPScope], list[Header]] = lambda _: [],
        large_bodies: LargeBodyQueue,
        find_dialect: Callable[[str], Dialect | None] = lambda _: None,
        find_route: Callable[[str], str | None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wrap *app*.

        Args:
            app: all of Litestar.
            observe: called with each answered request.
            lines: writes the lines about requests; None: with the defaults.
            timing: returns the headers that say where the time of a request went.
            error_headers: CORS headers for an error that is answered here.
            large_bodies: the queue for the large bodies of all requests.
            find_dialect: returns the dialect of a path; None: ours.
            find_route: returns the route of a path to which work is posted, for requests that the server rejects.
            clock: seconds, monotonic; the engine's.
        """
        self._app = app
        self._observe = observe
        self._lines = lines or RequestLines()
        self._timing = timing
        self._error_headers = error_headers
        self._clock = clock
        self._large_bodies = large_bodies
        self._piece_gate = FairGate()
        self._find_dialect = find_dialect
        self._find_route = find_route
        self.in_flight = 0
        """Requests that have begun and have no answer yet."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        inner, context = _with_get_for_head(scope), context_of(scope)
        times = _times_of(context, self._clock())
        _name(context, scope)
        context.large_bodies, context.piece_gate = self._large_bodies, self._piece_gate
        context.dialect = self._find_dialect(scope["path"])
        answer = _Answer(
            context, send, inner, times, error_headers=self._error_headers, timing=self._timing, clock=self._clock
        )
        watch = DisconnectWatch(receive, context, times, self._clock)
        self.in_flight += 1
        try:
            if context.rejection is not None:
                await self._reject(inner, context.rejection, watch, answer)
            else:
                await self._app(inner, watch.receive, answer.send)
        except asyncio.CancelledError:
            if watch.has_disconnected:
                answer.status, context.problem_code = CLIENT_CLOSED_REQUEST, CALLER_LEFT
            elif answer.status:
                raise  # a part of the answer is sent
            else:  # the server's shutdown time is over
                await answer.send_error(CutOffError())
        except ServiceError as error:  # raised by a middleware between here and Litestar
            await answer.send_error(error)
        except Exception:
            log.exception("request_failed", **context.ids, code="internal-error")
            if answer.status:
                context.problem_code = "internal-error"
                raise  # a part of the answer is sent: the server must close the connection
            await answer.send_error(InternalError())
        finally:
            self.in_flight -= 1
            watch.stop()
            self._record(scope, inner, context, answer.status, times)

    def record_early(self, scope: HTTPScope, own: list[Header], started_s: float) -> list[Header]:
        """Count and log a request that the server answers itself, with 200 and *own* headers; return all headers.

        The request was complete at *started_s*.
        """
        context = context_of(scope)
        times = _times_of(context, started_s)
        _name(context, scope)
        times.answered_s = now_s = self._clock()
        headers = _all_headers(context, own, self._timing(scope, context.work, times.service_s(now_s), own))
        self._record(scope, scope, context, HTTPStatus.OK.value, times)
        return headers

    async def _reject(self, scope: HTTPScope, error: ServiceError, watch: DisconnectWatch, answer: "_Answer") -> None:
        """Answer a request that the server rejects; the router does not see it."""
        if scope["method"] == "POST" and (route := self._find_route(scope["path"])) is not None:
            set_route(scope, route)
        await watch.receive_rest()  # closing a connection with unread bytes resets it, and loses the answer
        await answer.send_error(error)

    def _record(
        self, outer: HTTPScope, scope: HTTPScope, context: RequestContext, status: int, times: RequestTimes
    ) -> None:
        # Without a route, method and path can be anything: one label for all of them keeps the metrics bounded.
        route, now_s = route_of(scope), self._clock()
        if route is not None and outer is not scope:
            set_route(outer, route)  # for the middleware around this one
        answered = AnsweredRequest(
            method=scope["method"] if route else "",
            route=route or NO_ROUTE,
            status=status,
            seconds=now_s - times.started_s,
            problem_code=context.problem_code,
            dialect=label_of(context.dialect),
            work=context.work,
            trace_id=context.trace.trace_id if context.trace is not None and context.trace.is_recorded else "",
        )
        self._observe(answered)
        if not context.logged_elsewhere:
            self._lines.write(answered, context, scope, times.service_s(now_s))


class _Answer:
    """The `send` of one request: records the status and when it was sent, and adds the headers of every answer."""

    def __init__(
        self,
        context: RequestContext,
        send: Send,
        scope: HTTPScope,
        times: RequestTimes,
        *,
        error_headers: Callable[[HTTPScope], list[Header]],
        timing: Timing,
        clock: Callable[[], float],
    ) -> None:
        self.status = 0
        self._context = context
        self._send = send
        self._scope = scope
        self._times = times
        self._error_headers = error_headers
        self._timing = timing
        self._clock = clock

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, own, context = message["status"], list(message["headers"]), self._context
            context.has_answer_started = True
            self._times.answered_s = now_s = self._clock()
            timing = self._timing(self._scope, context.work, self._times.service_s(now_s), own)
            message["headers"] = _all_headers(context, own, timing)
        await self._send(message)

    async def send_error(self, error: ServiceError) -> None:
        self._context.problem_code = error.code
        status, headers, body = problem_answer(error, self._context.request_id, self._context.dialect)
        all_headers = [*headers, *self._error_headers(self._scope)]
        await self.send({"type": "http.response.start", "status": status, "headers": all_headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": False})


def _times_of(context: RequestContext, now_s: float) -> RequestTimes:
    """Return the times of a request that begins now; what the server waited for its client until now counts."""
    received_s = now_s if context.received_s is None else context.received_s
    return RequestTimes(received_s, client_s=now_s - received_s)


def _name(context: RequestContext, scope: HTTPScope) -> None:
    context.request_id = request_id_of(scope["headers"])
    context.trace = context.trace or trace_of(scope["headers"])  # with tracing, it is known by now


def _all_headers(context: RequestContext, own: list[Header], timing: list[Header]) -> list[Header]:
    """Return *own* headers of an answer with those that every answer has."""
    request_id: Header = (b"x-request-id", context.request_id.encode())
    return [*own, *context.answer_headers, request_id, *timing, *security_headers_for(own)]


def _with_get_for_head(scope: HTTPScope) -> HTTPScope:
    """Return the scope with GET instead of HEAD; the server omits the body of the answer."""
    return {**scope, "method": HttpMethod.GET.value} if scope["method"] == "HEAD" else scope
