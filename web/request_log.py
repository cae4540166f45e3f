"""Request log: the outermost middleware. It gives each request an id and a log line, and answers every error."""

import asyncio
import time
from collections.abc import Callable

import structlog
from litestar.enums import HttpMethod, ScopeType
from litestar.types import (
    ASGIApp,
    HTTPReceiveMessage,
    HTTPScope,
    Message,
    Receive,
    Scope,
    Send,
    WebSocketReceiveMessage,
)

from access.principals import Principal
from engine.errors import CutOffError, ServiceError
from engine.fair_gate import FairGate
from telemetry.answered_request import NO_ROUTE, AnsweredRequest
from web.dialects import Dialect, label_of
from web.large_body_queue import LargeBodyQueue
from web.litestar_adapter import route_of
from web.problems import CALLER_LEFT, InternalError, problem_answer, request_id_of
from web.request_context import RequestContext, context_of, trace_of
from web.security_headers import Header, security_headers_for

WATCH_DELAY_S = 0.1
"""Seconds after which a task watches for a disconnect. Most answers are sent sooner and need no task."""
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
        polled: frozenset[str] = frozenset(),
        error_headers: Callable[[HTTPScope], list[Header]] = lambda _: [],
        large_bodies: LargeBodyQueue,
        find_dialect: Callable[[str], Dialect | None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wrap *app*.

        Args:
            app: all of Litestar.
            observe: called with each answered request.
            polled: routes whose GET requests monitoring polls; their answers are logged at level DEBUG only.
            error_headers: CORS headers for an error that is answered here.
            large_bodies: the queue for the large bodies of all requests.
            find_dialect: returns the dialect of a path; None: ours.
            clock: seconds, monotonic; the engine's.
        """
        self._app = app
        self._observe = observe
        self._polled = polled
        self._error_headers = error_headers
        self._clock = clock
        self._large_bodies = large_bodies
        self._answer_parts = FairGate()
        self._find_dialect = find_dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        started = self._clock()
        inner, context = _with_get_for_head(scope), context_of(scope)
        context.request_id = request_id_of(scope["headers"])
        context.trace = context.trace or trace_of(scope["headers"])  # with tracing, it is known by now
        context.large_bodies, context.answer_parts = self._large_bodies, self._answer_parts
        context.dialect = self._find_dialect(scope["path"])
        answer = _Answer(context, send, scope, self._error_headers)
        watch = _DisconnectWatch(receive, context)
        try:
            if context.rejection is not None:
                while (await receive()).get("more_body"):
                    pass  # closing a connection with unread bytes resets it, and the answer is lost
                await answer.send_error(context.rejection)
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
            watch.stop()
            self._record(inner, context, answer.status, self._clock() - started)

    def _record(self, scope: HTTPScope, context: RequestContext, status: int, seconds: float) -> None:
        # Without a route, method and path can be anything: one label for all of them keeps the metrics bounded.
        route = route_of(scope)
        self._observe(
            AnsweredRequest(
                method=scope["method"] if route else "",
                route=route or NO_ROUTE,
                status=status,
                seconds=seconds,
                problem_code=context.problem_code,
                dialect=label_of(context.dialect),
                work=context.work,
                trace_id="" if context.trace is None else context.trace.trace_id,
            )
        )
        if context.logged_elsewhere:
            return
        is_polled = route in self._polled and scope["method"] == HttpMethod.GET.value
        write = log.debug if is_polled else log.info
        write(
            "request_answered",
            **context.ids,
            method=scope["method"],
            route=route,
            status=status,
            ms=round(seconds * 1e3, 2),
            **_caller_fields(context.principal),
            **({"dialect": context.dialect.name} if context.dialect is not None else {}),
        )


def _caller_fields(principal: Principal | None) -> dict[str, str]:
    """Return who called: a key and a token may have the same name. Network addresses are not logged."""
    if principal is None or principal.kind == "address":
        return {}
    fields = {"caller": principal.name, "caller_kind": principal.kind}
    return {**fields, "caller_issuer": principal.issuer} if principal.issuer else fields


class _Answer:
    """The `send` of one request: records the status and adds the headers that every answer has."""

    def __init__(
        self,
        context: RequestContext,
        send: Send,
        scope: HTTPScope,
        error_headers: Callable[[HTTPScope], list[Header]],
    ) -> None:
        self.status = 0
        self._context = context
        self._send = send
        self._scope = scope
        self._error_headers = error_headers

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = list(message["headers"])
            request_id = (b"x-request-id", self._context.request_id.encode())
            message["headers"] = [*own, *self._context.answer_headers, request_id, *security_headers_for(own)]
        await self._send(message)

    async def send_error(self, error: ServiceError) -> None:
        self._context.problem_code = error.code
        status, headers, body = problem_answer(error, self._context.request_id, self._context.dialect)
        all_headers = [*headers, *self._error_headers(self._scope)]
        await self.send({"type": "http.response.start", "status": status, "headers": all_headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": False})


class _DisconnectWatch:
    """The `receive` of one request: cancels the task that answers it when the caller disconnects.

    A cancellation without `has_disconnected` comes from the server, whose shutdown time is over.

    Our own server calls `context.on_disconnect`. Other ASGI servers report a disconnect only as the result of
    `receive`, which must not be called here before the whole body has arrived: the call would take a part of it.
    """

    def __init__(self, receive: Receive, context: RequestContext) -> None:
        self.has_disconnected = False
        self._receive = receive
        self._answering = asyncio.current_task()
        self._has_body = False
        self._timer: asyncio.TimerHandle | None = None
        self._watching: asyncio.Task[None] | None = None
        self._server_reports = context.server_reports_disconnect
        context.on_disconnect = self._cancel

    async def receive(self) -> HTTPReceiveMessage | WebSocketReceiveMessage:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._has_body:
            self.has_disconnected = True
            raise asyncio.CancelledError
        if message["type"] == "http.request" and not message.get("more_body") and not self._has_body:
            self._has_body = True
            if not self._server_reports:
                self._timer = asyncio.get_running_loop().call_later(WATCH_DELAY_S, self._watch)
        return message

    def stop(self) -> None:
        """Stop watching: the answer is complete."""
        for pending in (self._timer, self._watching):
            if pending is not None:
                pending.cancel()

    def _watch(self) -> None:
        self._watching = asyncio.get_running_loop().create_task(self._wait_for_disconnect())

    async def _wait_for_disconnect(self) -> None:
        if (await self._receive())["type"] == "http.disconnect":
            self._cancel()

    def _cancel(self) -> None:
        self.has_disconnected = True
        if self._answering is not None:
            self._answering.cancel()


def _with_get_for_head(scope: HTTPScope) -> HTTPScope:
    """Return the scope with GET instead of HEAD; the server omits the body of the answer."""
    return {**scope, "method": HttpMethod.GET.value} if scope["method"] == "HEAD" else scope
