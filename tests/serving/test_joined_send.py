"""An answer is written at once as far as possible, by the cycle of the installed uvicorn."""

import asyncio
import logging
from functools import partial
from typing import Any, cast

import pytest
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HEADER_RE, HEADER_VALUE_RE, STATUS_LINE, RequestResponseCycle

from serving.joined_send import MAX_JOINED_BYTES, NOT_IN_NAMES, NOT_IN_VALUES, STATUS_LINES, JoinedSend


class Written(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def close(self) -> None:
        self.is_closed = True


def cycle_on(transport: Written, *, method: str = "POST", keep_alive: bool = True) -> RequestResponseCycle:
    log = logging.getLogger(__name__)
    return RequestResponseCycle(
        scope=cast("Any", {"type": "http", "method": method}),
        transport=transport,
        flow=FlowControl(transport),
        logger=log,
        access_logger=log,
        access_log=False,
        default_headers=[],
        message_event=asyncio.Event(),
        expect_100_continue=False,
        keep_alive=keep_alive,
        on_response=lambda: None,
    )


def start(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http.response.start", "status": 200, "headers": list(headers)}


def body(content: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": content, "more_body": more}


@pytest.mark.parametrize(
    ("method", "messages", "writes"),
    [
        (
            "POST",
            [start((b"content-length", b"2")), body(b"ab")],
            [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab"],
        ),
        (
            "POST",
            [start(), body(b"a", more=True), body(b"b")],
            [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\na\r\n", b"1\r\nb\r\n0\r\n\r\n"],
        ),
        (
            "GET",
            [start((b"content-length", b"0")), body(b"")],
            [b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"],
        ),
        (
            "HEAD",
            [start((b"content-length", b"2")), body(b"ab")],
            [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"],
        ),
    ],
    ids=["whole", "in pieces", "empty", "head only"],
)
async def test_head_of_a_whole_answer_is_written_with_its_body(
    method: str, messages: list[dict[str, Any]], writes: list[bytes]
) -> None:
    transport = Written()
    cycle = cycle_on(transport, method=method)
    send = JoinedSend(cycle, cycle.send)
    for message in messages:
        await send(message)
    assert transport.writes == writes
    assert cycle.transport is transport
    assert cycle.response_complete


async def test_large_body_is_not_copied_to_join_it() -> None:
    transport = Written()
    cycle = cycle_on(transport)
    send, content = JoinedSend(cycle, cycle.send), bytes(MAX_JOINED_BYTES + 1)
    await send(start((b"content-length", b"%d" % len(content))))
    await send(body(content))
    assert [len(written) for written in transport.writes[1:]] == [len(content)]
    assert transport.writes[0].endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([(b"content-length", b"2"), (b"X-Name", b"a b\tc")], id="ordinary"),
        pytest.param([(b"X-Name", b""), (b"Content-Length", b"2"), (b"x-name", b"\xe9")], id="repeated"),
        pytest.param([(b"content-length", b"2"), (b"connection", b"close")], id="closing"),
        pytest.param([(b"transfer-encoding", b"chunked")], id="chunked"),
        pytest.param([(b"content-length", b"3")], id="too short"),
        pytest.param([(b"content-length", b"2"), (b"x-name", b"a\r\nb: c")], id="two lines"),
        pytest.param([(b"content-length", b"2"), (b"x-name", b"\0")], id="zero"),
        pytest.param([(b"content-length", b"2"), (b"x name", b"a")], id="name with a space"),
        pytest.param([(b"content-length", b"2"), (b"", b"a")], id="no name"),
    ],
)
@pytest.mark.parametrize("last", [body(b"ab"), {"type": "http.response.body"}])
@pytest.mark.parametrize("keep_alive", [True, False])
async def test_answer_is_what_uvicorn_would_have_written(
    headers: list[tuple[bytes, bytes]], last: dict[str, Any], *, keep_alive: bool
) -> None:
    seen = []
    for is_joined in (True, False):
        transport, completed = Written(), list[str]()
        cycle = cycle_on(transport, keep_alive=keep_alive)
        cycle.default_headers, cycle.on_response = [(b"date", b"now")], partial(completed.append, "yes")
        send: Any = JoinedSend(cycle, cycle.send) if is_joined else cycle.send
        raised = ""
        try:
            await send(start(*headers))
            await send(last)
        except RuntimeError as error:
            raised = str(error)
        state = (cycle.response_started, cycle.response_complete, cycle.keep_alive, cycle.message_event.is_set())
        seen.append((b"".join(transport.writes), transport.is_closed, completed, raised, state))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("does_raise", [True, False], ids=["raises", "returns"])
async def test_app_that_fails_between_head_and_body_is_answered_500(*, does_raise: bool) -> None:
    """Nothing of its answer is written yet; without another one the client would wait in vain."""

    async def failing_app(scope: object, receive: object, send: Any) -> None:  # noqa: ARG001 - ASGI's signature
        await send(start((b"content-length", b"2")))
        if does_raise:
            raise ValueError

    transport = Written()
    cycle = cycle_on(transport)
    cycle.send = cast("Any", JoinedSend(cycle, cycle.send))  # type: ignore[method-assign]  # as the protocol does
    await cycle.run_asgi(failing_app)
    assert b"".join(transport.writes).startswith(b"HTTP/1.1 500 ")
    assert cycle.response_complete
    assert transport.is_closed


async def test_connection_that_ends_with_the_answer_is_closed_after_it() -> None:
    transport = Written()
    cycle = cycle_on(transport, keep_alive=False)
    send = JoinedSend(cycle, cycle.send)
    await send(start((b"content-length", b"1")))
    assert not transport.is_closed
    await send(body(b"a"))
    assert transport.writes[0].endswith(b"connection: close\r\n\r\na")
    assert transport.is_closed


async def test_nothing_is_written_while_the_client_does_not_receive() -> None:
    transport = Written()
    cycle = cycle_on(transport)
    send = JoinedSend(cycle, cycle.send)
    cycle.flow.pause_writing()
    await send(start((b"content-length", b"1")))
    sending = asyncio.ensure_future(send(body(b"a")))
    await asyncio.sleep(0)
    assert not transport.writes
    assert cycle.transport is transport  # an answer to a half-closed client may replace it meanwhile
    cycle.flow.resume_writing()
    await sending
    assert len(transport.writes) == 1


def test_status_lines_and_rejected_characters_are_those_of_uvicorn() -> None:
    assert {status: STATUS_LINE[status] for status in STATUS_LINES} == STATUS_LINES
    all_bytes = [bytes([number]) for number in range(256)]
    for ours, theirs in ((NOT_IN_NAMES, HEADER_RE), (NOT_IN_VALUES, HEADER_VALUE_RE)):
        assert [bool(ours.search(one)) for one in all_bytes] == [bool(theirs.search(one)) for one in all_bytes]
