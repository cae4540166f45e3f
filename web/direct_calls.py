"""Direct calls: runs a route's handler without Litestar's injection of arguments, which costs more than the handler.

Litestar injects all kinds of arguments, by steps that each request takes: it resolves dependencies, several of them in
tasks, and converts every argument. Our handlers receive the body, parts of the service and the request itself; these
are known without that. Handlers with other arguments, such as parameters of the path, are run by Litestar.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import iscoroutinefunction
from typing import Any

from litestar.enums import ScopeType
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

from web.answer_reuse import AnswerReuse
from web.input_errors import EMPTY_BODY, invalid_input
from web.json_bodies import StrictRequest, receive_body
from web.litestar_adapter import arguments_of, has_hooks
from web.request_context import context_of
from web.responses import PlainAnswer, send_answer

Provider = Callable[[], Any]
"""Returns a part of the service."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to call one handler.

    Attributes:
        handler: the handler.
        providers: of its arguments that are parts of the service, by name.
        takes_body: it has the argument `data`.
        takes_request: it has the argument `request`.
        headers: request headers that are arguments; a request with one of them is left to Litestar, which checks it.
        may_reuse: its answers may be cached and sent again.
    """

    handler: HTTPRouteHandler
    providers: tuple[tuple[str, Provider], ...]
    takes_body: bool
    takes_request: bool
    headers: frozenset[bytes]
    may_reuse: bool


class DirectCalls:
    """The innermost middleware of every route.

    Handlers with hooks of Litestar, such as guards and `before_request`, are left to it.
    """

    def __init__(self, providers: Mapping[str, Provider], *, reuse: AnswerReuse | None = None) -> None:
        """Run asynchronous handlers whose arguments are `data`, `request`, headers, and *providers* by name.

        With *reuse*, answers of routes whose work is queued are cached and sent again.
        """
        self._providers = providers
        self._reuse = reuse
        self._plans: dict[HTTPRouteHandler, Plan | None] = {}  # None: Litestar runs it

    def __call__(self, app: ASGIApp) -> ASGIApp:
        """Return what is called for each request of a route; *app* is the rest of Litestar's own way."""

        async def run(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == ScopeType.HTTP:
                plan = self._plan_of(scope["route_handler"])
                if plan is not None and plan.headers.isdisjoint([name for name, _ in scope["headers"]]):
                    await self._run(plan, scope, receive, send)
                    return
            await app(scope, receive, send)

        return run

    def _plan_of(self, handler: Any) -> Plan | None:
        try:
            return self._plans[handler]
        except KeyError:
            plan = self._plans[handler] = self._new_plan(handler)
            return plan

    def _new_plan(self, handler: Any) -> Plan | None:
        if not isinstance(handler, HTTPRouteHandler) or not iscoroutinefunction(handler.fn) or has_hooks(handler):
            return None
        names, headers = arguments_of(handler)
        parts = names - headers.keys() - {"data", "request"}
        if not parts <= self._providers.keys():
            return None
        return Plan(
            handler=handler,
            providers=tuple((name, self._providers[name]) for name in parts),
            takes_body="data" in names,
            takes_request="request" in names,
            headers=frozenset(name.lower().encode() for name in headers.values()),
            may_reuse="data" in names and handler.opt.get("work") == "queued",
        )

    async def _run(self, plan: Plan, scope: HTTPScope, receive: Receive, send: Send) -> None:
        reuse, body = self._reuse if plan.may_reuse else None, None
        if plan.takes_body:
            if not (body := await receive_body(scope, receive)):
                raise invalid_input(EMPTY_BODY, "")
            started_s = time.perf_counter()  # as handlers: how long the client took to send the body does not count
            if reuse is not None and (cached := reuse.find(scope, context_of(scope), body)) is not None:
                await send_answer(send, cached.headers, cached.body(time.perf_counter() - started_s))
                return
        request = StrictRequest(scope, receive, send)
        request.whole_body = body
        arguments = {name: provide() for name, provide in plan.providers}
        if plan.takes_request:
            arguments["request"] = request
        if body is not None:
            arguments["data"] = await request.json()
        answer = await plan.handler.fn(**arguments)
        if not isinstance(answer, ASGIResponse):
            answer = await plan.handler.to_response(scope["litestar_app"], answer, request)
        elif reuse is not None and body is not None and isinstance(answer, PlainAnswer):
            reuse.keep(scope, context_of(scope), body, answer)
        await answer(scope, receive, send)
