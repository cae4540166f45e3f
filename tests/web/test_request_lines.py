"""Lines of the log about requests: what was done, who called, and which requests count as slow."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from ipaddress import ip_network
from typing import Any

import pytest
import structlog
from litestar.types import Message, Receive, Scope, Send
from structlog.testing import capture_logs

from access.client_addresses import ClientAddresses
from access.principals import Principal
from telemetry.request_work import RequestWork, Stage
from tests.support.clock import ManualClock
from web.large_body_queue import LargeBodyQueue
from web.request_context import KEY, RequestContext
from web.request_lines import CallerFields, RequestLines
from web.request_log import RequestLog

SLOW_S = 5.0
Step = Callable[[ManualClock, Receive, Send], Awaitable[None]]


async def passes(clock: ManualClock, receive: Receive, send: Send, *, seconds: float) -> None:
    """Let the service take some time."""
    del receive, send
    clock.now_s += seconds


async def reads(clock: ManualClock, receive: Receive, send: Send) -> None:
    del clock, send
    while (await receive()).get("more_body"):
        pass


async def begins(clock: ManualClock, receive: Receive, send: Send) -> None:
    del clock, receive
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def sends(clock: ManualClock, receive: Receive, send: Send, *, is_last: bool = True) -> None:
    del clock, receive
    await send({"type": "http.response.body", "body": b"{}", "more_body": not is_last})


takes = {seconds: partial(passes, seconds=seconds) for seconds in (1.0, 4.0, 6.0)}
sends_some = partial(sends, is_last=False)


async def logged(
    *steps: Step,
    client_s: tuple[float, float] = (0.0, 0.0),
    slow_s: float = SLOW_S,
    method: str = "POST",
    lines: RequestLines | None = None,
    context: RequestContext | None = None,
    client: tuple[str, int] | None = ("192.0.2.1", 1),
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> list[Any]:
    """Return the events of a request that an app answers by *steps*.

    *client_s*: how long its client takes to send each of two pieces of its body, and to read each part of the answer.
    """
    body_s, read_s = client_s
    clock = ManualClock()
    body = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.request", "body": b"}"}])

    async def receive() -> Any:
        clock.now_s += body_s
        return next(body)

    async def send(message: Message) -> None:
        del message
        clock.now_s += read_s

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["path_template"] = "/embed"
        for step in steps:
            await step(clock, receive, send)

    scope: Any = {
        "type": "http",
        "method": method,
        "path": "/embed",
        "headers": headers,
        "client": client,
        "state": {KEY: context or RequestContext(request_id="")},
    }
    request_log = RequestLog(
        app,
        observe=lambda _: None,
        lines=lines or RequestLines(slow_s=slow_s),
        large_bodies=LargeBodyQueue(),
        clock=clock,
    )
    with capture_logs() as events:
        await request_log(scope, receive, send)
    return events


ANSWERS = (reads, takes[6.0], begins, sends)


@pytest.mark.parametrize(
    ("steps", "client_s", "service_ms"),
    [
        pytest.param((reads, takes[4.0], begins, sends), (0.0, 0.0), None, id="fast"),
        pytest.param((reads, takes[6.0], begins, sends), (0.0, 0.0), 6000.0, id="slow"),
        pytest.param((takes[6.0], reads, begins, sends), (0.0, 0.0), 6000.0, id="slow before the body"),
        pytest.param((reads, takes[4.0], begins, sends), (10.0, 0.0), None, id="body that arrives slowly"),
        pytest.param((reads, takes[4.0], begins, sends), (0.0, 10.0), None, id="client that reads slowly"),
        pytest.param((reads, takes[6.0], begins, sends), (10.0, 10.0), 6000.0, id="both slow"),
        pytest.param(
            (reads, takes[1.0], begins, sends_some, takes[6.0], sends_some, takes[6.0], sends),
            (0.0, 10.0),
            None,
            id="long answer that begins soon",
        ),
        pytest.param((reads, takes[6.0], begins, sends_some, sends), (0, 0), 6000.0, id="long answer that begins late"),
    ],
)
async def test_only_the_time_of_the_service_until_the_answer_begins_makes_a_request_slow(
    steps: tuple[Step, ...], client_s: tuple[float, float], service_ms: float | None
) -> None:
    answered, *slow = await logged(*steps, client_s=client_s)
    assert answered["event"] == "request_answered"
    assert [(line["event"], line["log_level"], line["service_ms"]) for line in slow] == (
        [] if service_ms is None else [("request_slow", "warning", service_ms)]
    )


async def test_time_for_which_the_server_held_a_request_is_that_of_its_client() -> None:
    """It counts as time of the request, since its head was complete, and not as time of the service."""
    clock = ManualClock()
    held = RequestContext(received_s=clock() - 30.0)
    answered, slow = await logged(reads, takes[6.0], begins, sends, context=held)
    assert (answered["ms"], slow["service_ms"]) == (36_000.0, 6000.0)


async def test_no_request_is_slow_if_the_limit_is_zero() -> None:
    assert [line["event"] for line in await logged(*ANSWERS, slow_s=0)] == ["request_answered"]


async def test_slow_request_that_is_counted_elsewhere_gets_no_line() -> None:
    """Under overload, thousands of requests may wait and be rejected."""
    assert await logged(*ANSWERS, context=RequestContext(logged_elsewhere=True)) == []


WORK = RequestWork(
    model="tiny/one",
    texts=3,
    tokens=12,
    hits=1,
    stages=[
        Stage("load", 0.0, 1.0),
        Stage("cache", 1.0, 1.25),
        Stage("cache", 1.25, 1.5),
        Stage("tokenize", 1.5, 2.0),
        Stage("queue", 2.0, 4.0),
        Stage("run", 4.0, 7.0),
    ],
)


async def test_lines_say_what_was_done_and_a_slow_one_where_the_time_went() -> None:
    answered, slow = await logged(*ANSWERS, context=RequestContext(work=WORK))
    done = {"model": "tiny/one", "texts": 3, "tokens": 12, "cached": 1, "queue_ms": 2000.0, "inference_ms": 3000.0}
    stages = {"load_ms": 1000.0, "cache_ms": 500.0, "tokenize_ms": 500.0, "service_ms": 6000.0}
    common = {"method": "POST", "route": "/embed", "status": 200, "ms": 6000.0, "dialect": "native"}
    ids = {"request_id": answered["request_id"]}
    assert answered == {"event": "request_answered", "log_level": "info", **ids, **common, **done}
    assert slow == {"event": "request_slow", "log_level": "warning", **ids, **common, **done, **stages}


async def test_request_whose_model_is_not_known_has_no_fields_of_work() -> None:
    [line] = await logged(reads, begins, sends)
    assert line.keys() & {"model", "texts", "tokens", "cached", "queue_ms", "inference_ms"} == set()


async def test_method_that_is_none_of_http_is_not_logged() -> None:
    [line] = await logged(begins, sends, method="PASSWORD")
    assert line["method"] == "_OTHER"


PROXY = (b"x-forwarded-for", b"203.0.113.7, 2001:db8::5")
ADDRESSES = ClientAddresses(trusted=[ip_network("192.0.2.0/24")], ipv4_prefix_bits=24)
KEY_OF_ALICE, ANYBODY = Principal("key", "alice"), Principal("address", network="192.0.2.0/24")


@pytest.mark.parametrize(
    ("has_name", "has_address", "principal", "fields"),
    [
        pytest.param(True, False, KEY_OF_ALICE, {"caller": "alice", "caller_kind": "key"}, id="name"),
        pytest.param(True, False, ANYBODY, {}, id="name of nobody"),
        pytest.param(False, True, KEY_OF_ALICE, {"client": "192.0.2.1"}, id="address"),
        pytest.param(
            True,
            True,
            KEY_OF_ALICE,
            {"caller": "alice", "caller_kind": "key", "client": "192.0.2.1"},
            id="both",
        ),
        pytest.param(False, False, KEY_OF_ALICE, {}, id="none"),
    ],
)
async def test_setting_decides_which_fields_say_who_called(
    *, has_name: bool, has_address: bool, principal: Principal, fields: dict[str, str]
) -> None:
    find = ClientAddresses().address_of if has_address else None
    lines = RequestLines(caller_fields=CallerFields(has_name=has_name, find_address=find))
    [line] = await logged(begins, sends, lines=lines, context=RequestContext(principal=principal))
    assert {name: value for name, value in line.items() if name.startswith(("caller", "client"))} == fields


@pytest.mark.parametrize(
    ("client", "headers", "address"),
    [
        pytest.param(("198.51.100.9", 1), (PROXY,), "198.51.100.9", id="header of a client that is no trusted proxy"),
        pytest.param(("192.0.2.1", 1), (PROXY,), "2001:db8::5", id="client behind a trusted proxy"),
        pytest.param(("192.0.2.1", 1), ((PROXY[0], b"a\nlevel=error"),), "192.0.2.1", id="header with a line break"),
        pytest.param(("::ffff:198.51.100.9", 1), (), "198.51.100.9", id="mapped address"),
        pytest.param(None, (), None, id="Unix socket"),
    ],
)
async def test_address_is_the_whole_one_of_the_client_behind_trusted_proxies(
    client: tuple[str, int] | None, headers: tuple[tuple[bytes, bytes], ...], address: str | None
) -> None:
    lines = RequestLines(caller_fields=CallerFields(find_address=ADDRESSES.address_of))
    [line] = await logged(begins, sends, lines=lines, client=client, headers=headers)
    assert line.get("client") == address


async def test_client_that_leaves_before_its_slow_answer_gets_a_slow_line() -> None:
    context = RequestContext(server_reports_disconnect=True)

    async def leaves(clock: ManualClock, receive: Receive, send: Send) -> None:
        del clock, receive, send
        assert context.on_disconnect
        asyncio.get_running_loop().call_soon(context.on_disconnect)
        await asyncio.Event().wait()

    answered, slow = await logged(takes[6.0], leaves, context=context)
    assert (answered["status"], slow["status"], slow["service_ms"]) == (499, 499, 6000.0)


async def test_lines_follow_a_new_configuration_of_the_log() -> None:
    lines = RequestLines()
    assert await logged(*ANSWERS, lines=lines)
    structlog.configure(processors=[], wrapper_class=structlog.make_filtering_bound_logger("WARNING"))
    assert not await logged(*ANSWERS, lines=lines)
    structlog.reset_defaults()
    assert await logged(*ANSWERS, lines=lines)
