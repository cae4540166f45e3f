"""Traces of requests: the middleware around the request log. It exists only with ENABLE_TRACING."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from threading import Thread

import structlog
from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from telemetry.tracing import ServerSpan, Tracer
from telemetry.tracing_trouble import TracingTrouble
from web.allowed_hosts import EarlyRejection
from web.dialects import Rejection
from web.litestar_adapter import route_of
from web.request_context import Client, context_of, trace_of
from web.route_table import RouteTable
from web.security_headers import Header
from web.span_attributes import (
    at_end,
    at_start,
    is_failure,
    joined_stages,
    method_of,
    name_of,
    of_rejection,
    of_work,
    rejected_status,
)

FLUSH_S = 1.5
"""Seconds that the end of the service waits for spans to be sent. Less than the time after which the supervisor kills a
worker that has drained."""
MAX_STATE_CHARACTERS = 512
"""Longest `tracestate` that is passed on, the least that the standard asks for. Each span keeps it until it is sent."""

log = structlog.get_logger()


class RequestTraces:
    """Records a span for each request that does work; of all others, only for callers that record theirs."""

    is_off = False

    def __init__(
        self,
        *,
        version: str,
        protocol: str,
        clock: Callable[[], float] = time.monotonic,
        time_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Record nothing before `lifespan`.

        Args:
            version: of the service.
            protocol: by which spans are sent, as for `Tracer`.
            clock: seconds, monotonic; the engine's.
            time_ns: nanoseconds since 1970.
        """
        self._version = version
        self._protocol = protocol
        self._clock = clock
        self._time_ns = time_ns
        self._tracer: Tracer | None = None
        self._routes = RouteTable(())
        self._embedding: frozenset[str] = frozenset()

    @asynccontextmanager
    async def lifespan(self, _: object) -> AsyncIterator[None]:
        """Record spans until the end of the block; then send what waits. Without a usable exporter, record none."""
        with TracingTrouble().attached():
            try:
                self._tracer = tracer = Tracer(version=self._version, protocol=self._protocol)
            except Exception:  # any, of several libraries that read variables
                log.exception("tracing_unavailable")
                yield
                return
            try:
                yield
            finally:
                self._tracer = None
                await _in_thread(lambda: tracer.close(FLUSH_S))

    def around(self, app: ASGIApp, *, embedding: frozenset[str], tokenizing: frozenset[str]) -> ASGIApp:
        """Return *app* with spans for POST requests to these routes: all of them do work."""
        self._routes, self._embedding = RouteTable(embedding | tokenizing), embedding

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            tracer = self._tracer
            if scope["type"] != ScopeType.HTTP or tracer is None:
                await app(scope, receive, send)
                return
            route = self._routes.find(scope["path"]) if scope["method"] == "POST" else None
            parent = trace_of(scope["headers"])
            if route is None and (parent is None or not parent.is_recorded):
                await app(scope, receive, send)
                return
            started_s, started_ns = self._clock(), self._time_ns()
            span = tracer.start(
                name_of(method_of(scope), route),
                parent=parent,
                state=_state_of(scope["headers"]),
                attributes=at_start(scope, route),
                started_ns=started_ns,
            )
            context = context_of(scope)
            context.trace = span.context
            if not span.is_recording:
                await app(scope, receive, send)
                return
            status = 0

            async def send_and_note(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            try:
                await app(scope, receive, send_and_note)
            finally:
                self._end(span, scope, route, status, _TimeOfDay(started_s, started_ns, self._clock()))

        return traced

    def _end(self, span: ServerSpan, scope: HTTPScope, route: str | None, status: int, times: "_TimeOfDay") -> None:
        """Add the stages of the request to its *span*, and end it."""
        context, embeds = context_of(scope), route in self._embedding
        for stage in joined_stages(context.work.stages):
            span.add_child(stage.name, times.at(stage.started_s), times.at(stage.ended_s))
        does_work, route = route is not None, route or route_of(scope)
        attributes = at_end(scope, route, status, context)
        if does_work:
            attributes |= of_work(context, embeds=embeds)
        name = name_of(method_of(scope), route, context, embeds=embeds)
        span.end(name, attributes, times.end_ns, is_failure=is_failure(status, context.problem_code))

    def reject_early(self, reject: EarlyRejection) -> EarlyRejection:
        """Return *reject* with a span for each rejection: the app does not see such requests."""

        def rejected(path: str, client: Client, headers: Iterable[Header]) -> Rejection | None:
            headers = list(headers)
            rejection = reject(path, client, headers)
            if rejection is not None and self._tracer is not None:
                self._record_rejection(self._tracer, path.partition("?")[0], headers, rejection)
            return rejection

        return rejected

    def _record_rejection(self, tracer: Tracer, path: str, headers: list[Header], rejection: Rejection) -> None:
        route, now_ns = self._routes.find(path), self._time_ns()
        name, attributes = name_of("POST", route), of_rejection(rejection, route)
        span = tracer.start(
            name, parent=trace_of(headers), state=_state_of(headers), attributes=attributes, started_ns=now_ns
        )
        failed = is_failure(rejected_status(rejection), rejection.error.code)
        span.end(name, {}, now_ns, is_failure=failed)


class _TimeOfDay:
    """Converts moments of one request from the monotonic clock to nanoseconds since 1970.

    The time of day is read once, at its start: it may be set while the request runs, and spans must not go back.
    """

    def __init__(self, started_s: float, started_ns: int, ended_s: float) -> None:
        self._started_s = started_s
        self._started_ns = started_ns
        self._ended_s = ended_s
        self.end_ns = self.at(ended_s)

    def at(self, moment_s: float) -> int:
        """Return when *moment_s* was, which is not before the request or after it."""
        within_s = min(max(moment_s, self._started_s), self._ended_s)
        return self._started_ns + round((within_s - self._started_s) * 1e9)


def _state_of(headers: Iterable[Header]) -> str:
    """Return `tracestate`, whose parts may be in several headers; empty: there is none, or it is too long."""
    state = b",".join(value for name, value in headers if name == b"tracestate")
    return state.decode("latin-1") if len(state) <= MAX_STATE_CHARACTERS else ""


async def _in_thread(work: Callable[[], None]) -> None:
    """Wait for *work* in a thread that does not keep the process alive, as those of the event loop's executor do."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def run() -> None:
        try:
            work()
        finally:
            loop.call_soon_threadsafe(done.set)

    Thread(target=run, name="tracing-end", daemon=True).start()
    await done.wait()
