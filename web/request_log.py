"""Around every request, whatever becomes of it: an id, a latency, one line in the log, and a last net for failures."""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any

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

from engine.errors import CutOffError, ServiceError
from web.problems import UnforeseenError, of_error, request_id_of
from web.security_headers import Header, guarding

POLLED = frozenset({"/health", "/health/live", "/health/ready", "/metrics"})
"""Routes that are asked again and again; their answers are logged at DEBUG level only."""
PATIENCE_S = 0.1
"""After this time it is watched whether the caller is still there: that costs a task, and most answers come sooner."""
CALLER_LEFT = 499
"""The status that is logged for a request whose caller has left, after nginx; nobody gets it."""

log = structlog.get_logger()


class RequestLog:
    """ASGI middleware outside of all of Litestar, so that 404s, CORS answers and crashes are seen, too.

    What lies within may put headers into the request's state, as `answer_headers`: they go out with whatever answer
    there is; and `is_told`, where the log hears of the request in another way than by a line of its own. Who stands
    outside may put a `ServiceError` there, as `refused`: that is the answer then.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        count: Callable[[str, float, str | None], None],
        permission: Callable[[HTTPScope], list[Header]] = lambda _: [],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Wrap *app*.

        Args:
            app: all of Litestar.
            count: is told each answer's endpoint, seconds and problem code.
            permission: what lets a page of another origin read a failure that is told here.
            clock: seconds.
        """
        self._app = app
        self._count = count
        self._permission = permission
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        started = self._clock()
        inner, state = _as_get(scope), scope["state"]
        state["request_id"] = request_id_of(scope["headers"])
        answer, watched = _Answer(state, send, partial(self._permission, scope)), _Watched(receive, state)
        try:
            if (refused := state.get("refused")) is not None:
                while (await receive()).get("more_body"):
                    pass  # closed with a body on its way, the connection would be reset, and the answer lost
                await answer.tell(refused)
            else:
                await self._app(inner, watched.receive, answer.send)
        except asyncio.CancelledError:
            if watched.has_left:
                answer.status, state["problem_code"] = CALLER_LEFT, "caller-left"
            elif answer.status:
                raise  # half an answer is out
            else:  # the server's time to drain is over
                await answer.tell(CutOffError())
        except ServiceError as error:  # of who stands between here and Litestar
            await answer.tell(error)
        except Exception:
            log.exception("request_failed", request_id=state["request_id"], code="internal-error")
            if answer.status:
                state["problem_code"] = "internal-error"
                raise  # half an answer is out: the server must cut the connection
            await answer.tell(UnforeseenError())
        finally:
            watched.end()
            self._note(inner, answer.status, self._clock() - started)

    def _note(self, scope: HTTPScope, status: int, seconds: float) -> None:
        # Without a route there may be any method and any path: one label for all of them keeps the metrics bounded.
        path, state = scope.get("path_template"), scope["state"]
        self._count(f"{scope['method']} {path}" if path else "(no route)", seconds, state.get("problem_code"))
        if state.get("is_told"):
            return
        tell = log.debug if path in POLLED else log.info
        caller = {"caller": state["caller_name"]} if state.get("caller_name") else {}
        tell(
            "request_answered",
            request_id=state["request_id"],
            method=scope["method"],
            route=path,
            status=status,
            ms=round(seconds * 1e3, 2),
            **caller,
        )


class _Answer:
    """One request's `send`: notes the status, and adds the headers that every answer has."""

    def __init__(self, state: dict[str, Any], send: Send, permission: Callable[[], list[Header]]) -> None:
        self.status = 0
        self._permission = permission
        self._state = state
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = list(message["headers"])
            request_id = (b"x-request-id", self._state["request_id"].encode())
            message["headers"] = [*own, *self._state.get("answer_headers", ()), request_id, *guarding(own)]
        await self._send(message)

    async def tell(self, error: ServiceError) -> None:
        """Answer with this failure."""
        self._state["problem_code"] = error.code
        headers, body = of_error(error, self._state["request_id"])
        told = [*headers, *self._permission()]
        await self.send({"type": "http.response.start", "status": error.status, "headers": told})
        await self.send({"type": "http.response.body", "body": body, "more_body": False})


class _Watched:
    """One request's `receive`; cancels the task that answers it when the caller goes away.

    A cancel without *has_left* comes from the server, whose time to drain is over.

    A server that has put `on_leave` into the request's state calls what it finds there then. Of others ASGI lets only
    those hear of a caller's leave who ask, and who asks before the whole body is there takes a part of it.
    """

    def __init__(self, receive: Receive, state: dict[str, Any]) -> None:
        self.has_left = False
        self._receive = receive
        self._answering = asyncio.current_task()
        self._is_read = False
        self._timer: asyncio.TimerHandle | None = None
        self._watching: asyncio.Task[None] | None = None
        self._is_told = "on_leave" in state
        if self._is_told:
            state["on_leave"] = self._leave

    async def receive(self) -> HTTPReceiveMessage | WebSocketReceiveMessage:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._is_read:
            self.has_left = True
            raise asyncio.CancelledError
        if message["type"] == "http.request" and not message.get("more_body") and not self._is_read:
            self._is_read = True
            if not self._is_told:
                self._timer = asyncio.get_running_loop().call_later(PATIENCE_S, self._watch)
        return message

    def end(self) -> None:
        """The answer is out: stop watching."""
        for pending in (self._timer, self._watching):
            if pending is not None:
                pending.cancel()

    def _watch(self) -> None:
        self._watching = asyncio.get_running_loop().create_task(self._leave_when_told())

    async def _leave_when_told(self) -> None:
        if (await self._receive())["type"] == "http.disconnect":
            self._leave()

    def _leave(self) -> None:
        self.has_left = True
        if self._answering is not None:
            self._answering.cancel()


def _as_get(scope: HTTPScope) -> HTTPScope:
    """HEAD is GET without the body, which the server leaves out."""
    return {**scope, "method": HttpMethod.GET.value} if scope["method"] == "HEAD" else scope
