"""The request log: request IDs, headers that are added to answers, log lines, counts, and failures of the app."""

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from structlog.testing import capture_logs

from access.principals import Principal
from engine.errors import OverloadedError
from telemetry.answered_request import AnsweredRequest
from web.large_body_queue import LargeBodyQueue
from web.request_context import KEY, RequestContext, context_of
from web.request_lines import RequestLines
from web.request_log import RequestLog

Counted = tuple[str, float, str | None]
Headers = list[tuple[bytes, bytes]]

ALLOWED = (b"access-control-allow-origin", b"*")


def clock(*, tick_s: float = 0.25) -> Iterator[float]:
    """Yield times, each a quarter of a second after the last."""
    now_s = 100.0
    while True:
        yield now_s
        now_s += tick_s


class Answering:
    """An app that answers, and records the requests."""

    def __init__(self, *, status: int = 200, path: str | None = "/embed", code: str | None = None) -> None:
        self.status, self.path, self.code = status, path, code
        self.scopes: list[Scope] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del receive
        self.scopes.append(scope)
        if self.path:
            scope["path_template"] = self.path  # as Litestar's router does
        if self.code:
            context_of(scope).problem_code = self.code
        await send({"type": "http.response.start", "status": self.status, "headers": [(b"x-own", b"1")]})
        await send({"type": "http.response.body", "body": b"{}", "more_body": False})


async def ask(
    app: ASGIApp,
    *,
    method: str = "POST",
    headers: Headers | None = None,
    state: dict[str, Any] | None = None,
    observe: Callable[[AnsweredRequest], None] = lambda _: None,
) -> tuple[list[Message], list[Counted]]:
    """Send a request to *app*; return what it sends and what was counted."""
    sent: list[Message] = []
    counted: list[Counted] = []
    ticks = clock()

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    def count(answered: AnsweredRequest) -> None:
        assert answered.dialect == "native"
        observe(answered)
        counted.append((answered.endpoint, answered.seconds, answered.problem_code))

    scope: Any = {"type": "http", "method": method, "path": "/embed", "headers": headers or [], "state": state or {}}
    request_log = RequestLog(
        app,
        observe=count,
        lines=RequestLines(polled=frozenset({"/health"})),
        error_headers=lambda _: [ALLOWED],
        large_bodies=LargeBodyQueue(),
        find_route={"/embed": "/embed"}.get,
        clock=lambda: next(ticks),
    )
    await request_log(scope, receive, send)
    return sent, counted


def request_id(sent: list[Message]) -> str:
    [start] = [message for message in sent if message["type"] == "http.response.start"]
    [value] = [value for name, value in start["headers"] if name == b"x-request-id"]
    return value.decode()


@pytest.mark.parametrize("given", ["a", "0f5e8c4d-2b7a", "trace:1.2_3", "x" * 128])
async def test_valid_request_id_is_kept(given: str) -> None:
    app = Answering()
    sent, _ = await ask(app, headers=[(b"accept", b"*/*"), (b"x-request-id", given.encode())])
    assert request_id(sent) == given
    assert context_of(app.scopes[0]).request_id == given


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"a b", id="space"),
        pytest.param(b"a\nlevel=error", id="line break"),
        pytest.param(b"a\n", id="line break at the end"),
        pytest.param(b"x" * 129, id="too long"),
        pytest.param("ü".encode(), id="not ASCII"),
        pytest.param(b"<script>", id="markup"),
    ],
)
async def test_invalid_request_id_is_replaced(given: bytes) -> None:
    sent, _ = await ask(Answering(), headers=[(b"x-request-id", given)])
    assert re.fullmatch("[0-9a-f]{32}", request_id(sent))


async def test_requests_without_an_id_get_different_ones() -> None:
    ids = {request_id((await ask(Answering()))[0]) for _ in range(3)}
    assert len(ids) == 3


async def test_answer_is_passed_on_with_its_own_headers() -> None:
    sent, _ = await ask(Answering(status=404))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[0]["status"] == 404  # type: ignore[typeddict-item]  # the first message is the start
    assert (b"x-own", b"1") in sent[0]["headers"]  # type: ignore[typeddict-item]  # as above


async def test_headers_of_the_context_are_added_to_every_answer() -> None:
    for app in (Answering(), Crashing(has_begun=False)):
        with capture_logs():
            sent, _ = await ask(app, state={KEY: RequestContext(answer_headers=[(b"ratelimit", b"1")])})
        assert (b"ratelimit", b"1") in sent[0]["headers"]  # type: ignore[typeddict-item]  # the first message is the start


@pytest.mark.parametrize(
    ("app", "state", "is_answered_here"),
    [
        pytest.param(Answering(), {}, False, id="answer of Litestar"),
        pytest.param(
            Answering(), {KEY: RequestContext(rejection=OverloadedError("Full."))}, True, id="rejection of the server"
        ),
    ],
)
async def test_error_that_is_answered_here_gets_cors_headers(
    app: ASGIApp, state: dict[str, Any], *, is_answered_here: bool
) -> None:
    """Litestar adds them to its own answers."""
    sent, _ = await ask(app, state=state)
    start: Any = sent[0]
    assert start["headers"].count(ALLOWED) == int(is_answered_here)


@pytest.mark.parametrize(
    ("principal", "fields"),
    [
        pytest.param(Principal("key", "alice"), {"caller": "alice", "caller_kind": "key"}, id="key"),
        pytest.param(Principal("token", "alice"), {"caller": "alice", "caller_kind": "token"}, id="token"),
        pytest.param(
            Principal("token", "alice", issuer="https://login"),
            {"caller": "alice", "caller_kind": "token", "caller_issuer": "https://login"},
            id="token of an issuer",
        ),
        pytest.param(Principal("address", network="192.0.2.1"), {}, id="address"),
        pytest.param(None, {}, id="nobody"),
    ],
)
async def test_log_line_distinguishes_callers_of_the_same_name(
    principal: Principal | None, fields: dict[str, str]
) -> None:
    with capture_logs() as events:
        await ask(Answering(), state={KEY: RequestContext(principal=principal)})
    assert {name: value for name, value in events[0].items() if name.startswith("caller")} == fields


async def test_rejection_of_the_server_is_answered_without_calling_the_app() -> None:
    app = Answering()
    sent, counted = await ask(app, state={KEY: RequestContext(rejection=OverloadedError("Full.", retry_after_s=1.2))})
    start: Any = sent[0]
    body: Any = sent[1]
    assert (start["status"], json.loads(body["body"])["code"]) == (503, "overloaded")
    assert dict(start["headers"])[b"retry-after"] == b"2"
    assert app.scopes == []
    assert [(endpoint, code) for endpoint, _, code in counted] == [("POST /embed", "overloaded")]


async def test_answer_is_counted_with_route_duration_and_problem_code() -> None:
    assert (await ask(Answering()))[1] == [("POST /embed", 0.5, None)]
    assert (await ask(Answering(code="overloaded")))[1] == [("POST /embed", 0.5, "overloaded")]


def test_answer_of_the_server_is_recorded_with_the_time_since_its_head() -> None:
    counted = list[AnsweredRequest]()
    ticks = clock()
    context = RequestContext(received_s=90.0, answer_headers=[(b"x-of", b"context")])
    scope: Any = {"type": "http", "method": "POST", "path": "/embed", "headers": [(b"x-request-id", b"mine")]}
    scope |= {"path_template": "/embed", "state": {KEY: context}}
    request_log = RequestLog(
        Answering(), observe=counted.append, large_bodies=LargeBodyQueue(), clock=lambda: next(ticks)
    )
    with capture_logs() as lines:
        headers = request_log.record_early(scope, [(b"x-own", b"1")], 99.0)
    assert headers[:3] == [(b"x-own", b"1"), (b"x-of", b"context"), (b"x-request-id", b"mine")]
    assert (b"cache-control", b"no-store") in headers
    assert [(one.endpoint, one.status, one.seconds) for one in counted] == [("POST /embed", 200, 10.25)]
    assert [(line["event"], line["request_id"], line["ms"]) for line in lines] == [("request_answered", "mine", 10_250)]


async def test_answers_without_a_route_share_one_label() -> None:
    for method in ("GET", "BREW"):
        assert (await ask(Answering(path=None, status=404), method=method))[1] == [("(no route)", 0.5, None)]


async def test_head_is_passed_on_and_counted_as_get() -> None:
    app = Answering(path="/health")
    _, counted = await ask(app, method="HEAD")
    assert app.scopes[0]["method"] == "GET"  # type: ignore[typeddict-item]  # it is a request's scope
    assert counted == [("GET /health", 0.5, None)]


async def test_each_answer_is_one_log_line() -> None:
    with capture_logs() as events:
        await ask(Answering(status=201), headers=[(b"x-request-id", b"me")])
    assert events == [
        {
            "event": "request_answered",
            "log_level": "info",
            "request_id": "me",
            "method": "POST",
            "route": "/embed",
            "status": 201,
            "ms": 500.0,
            "dialect": "native",
        }
    ]


TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = (b"traceparent", f"00-{TRACE}-b7ad6b7169203331-01".encode())


async def test_trace_of_the_caller_is_in_every_line_and_in_what_is_observed() -> None:
    observed: list[AnsweredRequest] = []
    with capture_logs() as events:
        await ask(Crashing(has_begun=False), headers=[TRACEPARENT], observe=observed.append)
    assert [event["event"] for event in events] == ["request_failed", "request_answered"]
    assert {event["trace_id"] for event in events} == {observed[0].trace_id} == {TRACE}


async def test_trace_that_nobody_records_is_in_the_lines_only() -> None:
    observed: list[AnsweredRequest] = []
    with capture_logs() as events:
        await ask(Answering(), headers=[(b"traceparent", TRACEPARENT[1][:-1] + b"0")], observe=observed.append)
    assert (events[0]["trace_id"], observed[0].trace_id) == (TRACE, "")


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([], id="none"),
        pytest.param([TRACEPARENT, TRACEPARENT], id="two"),
        pytest.param([(b"traceparent", TRACEPARENT[1] + b"\xff")], id="malformed"),
    ],
)
async def test_request_without_one_valid_traceparent_belongs_to_no_trace(headers: Headers) -> None:
    observed: list[AnsweredRequest] = []
    with capture_logs() as events:
        await ask(Answering(), headers=headers, observe=observed.append)
    assert observed[0].trace_id == ""
    assert "trace_id" not in events[0]


async def test_answers_of_polled_routes_are_logged_at_debug_level() -> None:
    with capture_logs() as events:
        await ask(Answering(path="/health"), method="GET")
    assert [event["log_level"] for event in events] == ["debug"]


class Rejecting:
    """An app that rejects the request outside of Litestar, and may have logged that itself."""

    def __init__(self, *, is_logged: bool) -> None:
        self.is_logged = is_logged

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del receive, send
        scope["path_template"] = "/embed"
        context_of(scope).logged_elsewhere = self.is_logged
        raise OverloadedError("Too much.", retry_after_s=2)


@pytest.mark.parametrize(("is_logged", "lines"), [(False, ["request_answered"]), (True, [])])
async def test_rejection_outside_of_litestar_is_answered_counted_and_logged_once(
    *, is_logged: bool, lines: list[str]
) -> None:
    with capture_logs() as events:
        sent, counted = await ask(Rejecting(is_logged=is_logged))
    start: Any = sent[0]
    assert start["status"] == 503
    assert dict(start["headers"])[b"retry-after"] == b"2"
    assert [(endpoint, code) for endpoint, _, code in counted] == [("POST /embed", "overloaded")]
    assert [event["event"] for event in events] == lines


async def test_caller_that_leaves_during_the_body_is_logged_as_499() -> None:
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])
    counted: list[str | None] = []

    async def receive() -> Any:
        return next(messages)

    async def lost(message: Message) -> None:
        del message

    async def read(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, send
        while (await receive()).get("more_body"):
            pass
        pytest.fail("the body is incomplete")

    scope: Any = {"type": "http", "method": "POST", "path": "/embed", "headers": [], "state": {}}
    with capture_logs() as events:
        await RequestLog(read, large_bodies=LargeBodyQueue(), observe=lambda one: counted.append(one.problem_code))(
            scope, receive, lost
        )
    assert counted == ["caller-left"]
    assert [(event["event"], event["status"]) for event in events] == [("request_answered", 499)]


async def test_work_is_cancelled_when_the_server_reports_that_the_caller_left() -> None:
    counted: list[str | None] = []
    context = RequestContext(server_reports_disconnect=True)
    state: dict[str, Any] = {KEY: context}

    async def receive() -> Any:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def lost(message: Message) -> None:
        pytest.fail(f"{message} is sent to a caller that has left")

    async def work(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, send
        await receive()
        assert context.on_disconnect
        asyncio.get_running_loop().call_soon(context.on_disconnect)
        await asyncio.Event().wait()

    scope: Any = {"type": "http", "method": "POST", "path": "/embed", "headers": [], "state": state}
    with capture_logs() as events:
        await RequestLog(work, large_bodies=LargeBodyQueue(), observe=lambda one: counted.append(one.problem_code))(
            scope, receive, lost
        )
    assert counted == ["caller-left"]
    assert [(event["event"], event["status"]) for event in events] == [("request_answered", 499)]


class Crashing:
    """An app that raises, before its answer or in the middle of it."""

    def __init__(self, *, has_begun: bool) -> None:
        self.has_begun = has_begun

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        if self.has_begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError("text of a caller")


async def test_crash_becomes_a_neutral_problem_and_is_logged() -> None:
    with capture_logs() as events:
        sent, counted = await ask(Crashing(has_begun=False), headers=[(b"x-request-id", b"me")])
    start: Any = sent[0]
    body: Any = sent[1]
    problem = json.loads(body["body"])
    headers = dict(start["headers"])
    assert start["status"] == problem["status"] == problem["status_code"] == 500
    assert (problem["code"], problem["request_id"]) == ("internal-error", "me")
    assert headers[b"content-type"] == b"application/problem+json"
    assert int(headers[b"content-length"]) == len(body["body"])
    assert headers[b"x-request-id"] == b"me"
    assert b"text of a caller" not in body["body"]
    assert len(counted) == 1
    assert [event["event"] for event in events] == ["request_failed", "request_answered"]
    assert (events[0]["log_level"], events[0]["exc_info"], events[0]["request_id"]) == ("error", True, "me")
    assert events[1]["status"] == 500


async def test_crash_is_counted_by_its_code() -> None:
    with capture_logs():
        _, counted = await ask(Crashing(has_begun=False))
    assert [code for _, _, code in counted] == ["internal-error"]


async def test_crash_in_the_middle_of_an_answer_is_passed_to_the_server() -> None:
    with capture_logs() as events, pytest.raises(ValueError, match="of a caller"):
        await ask(Crashing(has_begun=True))
    assert [event["event"] for event in events] == ["request_failed", "request_answered"]


async def test_scopes_other_than_http_are_passed_on_unchanged() -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del receive, send
        seen.append(scope)

    async def nothing(*_: object) -> Any:
        return None

    scope: Any = {"type": "lifespan"}
    await RequestLog(app, large_bodies=LargeBodyQueue(), observe=lambda _: pytest.fail("counted"))(
        scope, nothing, nothing
    )
    assert seen == [scope]
