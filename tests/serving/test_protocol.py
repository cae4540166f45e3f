"""Clients that exceed a limit of time, size or number on one connection, over real sockets."""

import asyncio
import json
import select
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from api.openai_errors import OPENAI
from serving.connection_limits import MAX_FIELDS, MAX_PIPELINED, ConnectionLimits
from serving.connection_pool import ConnectionPool
from serving.protocol import HttpProtocol
from tests.support.raw_http import (
    BODY,
    CLIENT,
    EMBED,
    PROBE,
    WHOLE,
    connected,
    receive_all,
    receive_answer,
    receive_answers,
    rejected,
    send,
    statuses_of,
)
from tests.support.servers import ServerProcess, held_server

pytestmark = pytest.mark.timeout(90)

CHUNKED = EMBED + b"Transfer-Encoding: chunked\r\n\r\n"
SMALL_BUFFER = 4096


def errors_of(server: ServerProcess) -> dict[str, int]:
    """Return the number of errors by code, as /metrics has it."""
    return dict(CLIENT.get(f"{server.url}/metrics").json()["errors"])


# --- Time ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("begun", "drop", "setting"),
    [
        pytest.param(b"POST /embed HTTP/1.1\r\nHost: me\r\n", b"", "HEADER_TIMEOUT", id="head"),
        pytest.param(b"POST /embed HTTP/1.1\r\nX-Slow: ", b"a", "HEADER_TIMEOUT", id="head-drop-by-drop"),
        pytest.param(EMBED + b"Content-Length: 50000\r\n\r\n{", b"", "BODY_TIMEOUT", id="body"),
        pytest.param(EMBED + b"Content-Length: 50000\r\n\r\n", b" ", "BODY_TIMEOUT", id="body-drop-by-drop"),
        pytest.param(CHUNKED, b"1\r\n \r\n", "BODY_TIMEOUT", id="chunks-drop-by-drop"),
    ],
)
def test_request_that_is_not_complete_in_time_gets_a_408(
    strict: ServerProcess, begun: bytes, drop: bytes, setting: str
) -> None:
    before = errors_of(strict)
    with connected(strict) as connection, connected(strict) as idle:
        assert statuses_of([idle]) == [200]
        send(connection, begun)
        while drop and not select.select([connection], [], [], 0.05)[0]:
            send(connection, drop)
        [answer] = receive_answers(connection)
        assert statuses_of([idle]) == [200]  # it took its answer, and may be idle for longer
    problem = rejected(answer, 408, "request-too-slow")
    assert setting in problem["detail"]
    assert problem["limit"] == 0.6
    after = errors_of(strict)
    assert after["request-too-slow"] == before.get("request-too-slow", 0) + 1
    assert after.get("internal-error") == before.get("internal-error")
    assert "request_failed" not in strict.log


def test_second_request_has_the_deadline_of_a_first_one(strict: ServerProcess) -> None:
    with connected(strict) as connection:
        assert statuses_of([connection], WHOLE) == [200]
        send(connection, b"GET /health HTTP")
        [answer] = receive_answers(connection)
    rejected(answer, 408, "request-too-slow")


def test_connection_without_a_request_is_closed_without_an_answer(strict: ServerProcess) -> None:
    with connected(strict) as connection:
        assert receive_all(connection) == b""


def test_answer_before_the_end_of_the_body_does_not_keep_the_connection_open(strict: ServerProcess) -> None:
    with connected(strict) as connection:
        send(connection, b"POST /nothing HTTP/1.1\r\nHost: me\r\nContent-Length: 1000\r\n\r\n")
        [answer] = receive_answers(connection)
    assert answer[0] == 404


def test_connection_stays_open_if_the_rest_of_the_body_follows_its_answer(strict: ServerProcess) -> None:
    with connected(strict) as connection:
        send(connection, b"POST /nothing HTTP/1.1\r\nHost: me\r\nContent-Length: 5\r\n\r\n")
        assert receive_answer(connection)[0] == 404
        send(connection, b"12345" + PROBE)
        assert receive_answer(connection)[0] == 200


def test_rest_of_the_body_after_its_answer_is_limited(strict: ServerProcess) -> None:
    with connected(strict) as connection:
        send(connection, b"POST /nothing HTTP/1.1\r\nHost: me\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert receive_answer(connection)[0] == 404
        send(connection, b"1;" + b"a" * 200_000)
        assert receive_all(connection) == b""


def cut_stages(server: ServerProcess) -> list[str]:
    return [event["stage"] for event in server.events if event["event"] == "connection_cut"]


def test_client_that_does_not_take_its_answer_is_disconnected(strict: ServerProcess) -> None:
    cut = len(cut_stages(strict))
    body = json.dumps({"texts": [f"one {number}" for number in range(500)]}).encode()
    with connected(strict, receive_buffer=SMALL_BUFFER) as connection:
        batch = EMBED.replace(b"/embed", b"/embed/batch")
        send(connection, batch + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert strict.wait_for("connection_cut", times=cut + 1)["stage"] in {"sending", "processing"}


def test_client_that_sends_further_requests_but_takes_no_answers_is_disconnected(strict: ServerProcess) -> None:
    cut = len(cut_stages(strict))
    with connected(strict, receive_buffer=SMALL_BUFFER) as connection:
        for number in range(1000):
            send(connection, b"GET /schema/openapi.json HTTP/1.1\r\nHost: me\r\nX-Request-ID: n-%d\r\n\r\n" % number)
            strict.wait_for_request(f"n-{number}")
            if len(cut_stages(strict)) > cut:
                break
    assert cut_stages(strict)[cut:] == ["processing"]  # the last request waited for the client to take earlier answers


def test_client_that_takes_large_pipelined_answers_in_time_stays_connected(strict: ServerProcess) -> None:
    body = json.dumps({"texts": ["one"] * 500}).encode()
    batch = EMBED.replace(b"/embed", b"/embed/batch") + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with connected(strict) as connection:
        send(connection, batch + batch)
        assert [receive_answer(connection)[0] for _ in range(2)] == [200, 200]
        with connected(strict) as other:
            assert receive_all(other) == b""  # the deadline has passed
        assert statuses_of([connection]) == [200]


# --- Size ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(PROBE[:-2] + b"X-Long: " + b"a" * 3000 + b"\r\n\r\n", id="header"),
        pytest.param(PROBE[:-2] + b"X-Endless: " + b"a" * 100_000, id="endless-header"),
        pytest.param(PROBE[:-2] + b"X: a\r\n" * 20_000, id="endless-headers"),
        pytest.param(PROBE[:-2] + b"X:\r\n" * MAX_FIELDS + b"\r\n", id="field-too-many"),
        pytest.param(PROBE[:-2] + b"X: %s\r\n\r\n" % (b" " * 3000), id="spaces"),
        pytest.param(PROBE[:-2] + b"X: %s\r\n" % (b"a" * 18) * 95 + b"\r\n", id="separators"),
        pytest.param(b"\r\n" * 3000 + PROBE, id="empty-lines-first"),
        pytest.param(CHUNKED + b"0\r\n" + b"X: %s\r\n\r\n" % (b"a" * 3000), id="trailer"),
        pytest.param(CHUNKED + b"0\r\n" + b"X:\r\n" * (MAX_FIELDS + 1) + b"\r\n", id="trailer-field-too-many"),
        pytest.param(b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\nHost: me\r\n\r\n", id="target"),
        pytest.param(b"GET /" + b"a" * 100_000, id="endless-target"),
        pytest.param(CHUNKED + b"0\r\n" + b"X-Trailer: a\r\n" * 20_000, id="endless-trailers"),
        pytest.param(CHUNKED + b"0\r\nX-Trailer: " + b"a" * 200_000, id="endless-trailer"),
        pytest.param(CHUNKED + b"1;" + b"a" * 200_000, id="chunk-extension"),
    ],
)
def test_head_trailers_and_chunk_extensions_above_the_limit_get_a_431(strict: ServerProcess, data: bytes) -> None:
    with connected(strict) as connection:
        send(connection, data)
        [answer] = receive_answers(connection)
    problem = rejected(answer, 431, "headers-too-large")
    assert (problem["limit"], problem["max_fields"]) == (2048, MAX_FIELDS)
    assert "MAX_HEADER_SIZE" in problem["detail"]


def test_head_and_trailer_may_have_a_hundred_fields_each(strict: ServerProcess) -> None:
    begin = CHUNKED[:-2] + b"X:\r\n" * (MAX_FIELDS - CHUNKED.count(b":")) + b"\r\n"
    chunks = b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n" + b"X:\r\n" * MAX_FIELDS + b"\r\n"
    with connected(strict) as connection:
        assert statuses_of([connection] * 2, begin + chunks) == [200, 200]


@pytest.mark.parametrize(
    ("fields", "statuses"),
    [
        pytest.param(b"X:\r\n" * 101, [200, 200], id="fields"),
        pytest.param(b"X: %090d\r\n" % 0 * 50, [200, 200, 431], id="bytes"),
    ],
)
def test_large_head_after_other_requests_ends_the_connection_after_their_answers(
    strict: ServerProcess, fields: bytes, statuses: list[int]
) -> None:
    before = errors_of(strict).get("headers-too-large", 0)
    with connected(strict) as connection:
        send(connection, WHOLE * 2 + PROBE[:-2] + fields + b"\r\n")
        answers = receive_answers(connection)
    assert [status for status, _, _ in answers] == statuses
    assert answers[-1][1]["connection"] == "close"
    assert errors_of(strict)["headers-too-large"] == before + 1


def test_head_of_a_next_request_must_be_complete_in_time(strict: ServerProcess) -> None:
    with connected(strict) as connection:
        send(connection, WHOLE + PROBE[:-2])
        answer, late = receive_answers(connection)  # KEEP_ALIVE_TIMEOUT is 60 s
    assert answer[0] == 200
    rejected(late, 408, "request-too-slow")


@pytest.mark.parametrize("option", [b"close", b"keep-alive", b"close, upgrade\r\nUpgrade: h2c"])
def test_connection_ends_after_the_answer_if_a_trailer_names_it(strict: ServerProcess, option: bytes) -> None:
    body = b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\nConnection: " + option + b"\r\n\r\n"
    with connected(strict) as connection:
        send(connection, CHUNKED + body)
        [(status, headers, _)] = receive_answers(connection)
    assert (status, headers["connection"]) == (200, "close")


def test_trailers_are_not_read_as_headers(strict: ServerProcess) -> None:
    body = b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\nX-Request-ID: from-the-trailer\r\n\r\n"
    with connected(strict) as connection:
        send(connection, CHUNKED + body)
        status, headers, _ = receive_answer(connection)
        assert status == 200
        assert headers["x-request-id"] != "from-the-trailer"
        assert statuses_of([connection]) == [200]


# --- Pipelines and upgrades ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "malformed",
    [
        pytest.param(b"what is this?\r\n\r\n", id="head"),
        pytest.param(CHUNKED + b"zz\r\n", id="body"),
    ],
)
def test_requests_before_a_malformed_one_are_answered(strict: ServerProcess, malformed: bytes) -> None:
    with connected(strict) as connection:
        send(connection, WHOLE + PROBE + malformed)
        answers = receive_answers(connection)
    assert [status for status, _, _ in answers] == [200, 200]
    assert answers[-1][1]["connection"] == "close"
    assert "request_failed" not in strict.log


def test_pipeline_has_a_limit_and_the_requests_within_it_are_answered(strict: ServerProcess) -> None:
    before = errors_of(strict).get("malformed-request", 0)
    with connected(strict) as connection:
        send(connection, PROBE * 10_000)
        answers = receive_answers(connection)
    assert [status for status, _, _ in answers] == [200] * (MAX_PIPELINED + 1)
    assert answers[-1][1]["connection"] == "close"
    assert errors_of(strict)["malformed-request"] == before + 1


def test_second_of_two_requests_may_arrive_in_pieces(strict: ServerProcess) -> None:
    with connected(strict) as connection:
        send(connection, WHOLE + WHOLE[:-5])
        assert receive_answer(connection)[0] == 200
        send(connection, WHOLE[-5:])
        assert receive_answer(connection)[0] == 200


@pytest.mark.parametrize(
    ("protocol", "request_"),
    [pytest.param(b"h2c", WHOLE, id="h2c-with-a-body"), pytest.param(b"websocket", PROBE, id="websocket")],
)
def test_upgrade_is_ignored_and_the_request_answered(strict: ServerProcess, protocol: bytes, request_: bytes) -> None:
    asks = b"\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: %s\r\nHTTP2-Settings: AAMA\r\n" % protocol
    with_upgrade = request_.replace(b"\r\n", asks, 1)
    with connected(strict) as connection:
        assert statuses_of([connection], with_upgrade) == statuses_of([connection], request_) == [200]
        send(connection, with_upgrade * 50 + b"no more\r\n\r\n")
        assert [status for status, _, _ in receive_answers(connection)] == [200] * 50
    assert "WebSocket" not in strict.log


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.2, h2c"])
@pytest.mark.parametrize("options", [b"close, upgrade", b"Upgrade\r\nConnection: close", b"upgrade,close"])
@pytest.mark.parametrize("request_", [pytest.param(WHOLE, id="body"), pytest.param(PROBE, id="no-body")])
def test_request_for_an_upgrade_and_the_end_of_the_connection_gets_both_answered(
    strict: ServerProcess, version: bytes, protocol: bytes, options: bytes, request_: bytes
) -> None:
    asks = b"HTTP/%s\r\nConnection: %s\r\nUpgrade: %s\r\n" % (version, options, protocol)
    with connected(strict) as connection:
        send(connection, request_.replace(b"HTTP/1.1\r\n", asks, 1) + PROBE)
        [(status, headers, _)] = receive_answers(connection)
    assert (status, headers["connection"]) == (200, "close")


def test_upgrade_of_a_http_1_0_client_is_ignored(strict: ServerProcess) -> None:
    with connected(strict) as connection:
        send(connection, b"GET /health/live HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
        [(status, headers, _)] = receive_answers(connection)
    assert (status, headers["connection"]) == (200, "close")


# --- Work that does not fit, rejected by the protocol itself ------------------------------------------------------


def fill(server: ServerProcess, stack: ExitStack) -> None:
    """Send small requests until some are rejected; rejections come at once, and the other requests are held."""
    connections = [stack.enter_context(connected(server))]
    while not select.select(connections, [], [], 0.2)[0]:
        for _ in range(20):
            connections.append(stack.enter_context(connected(server)))
            send(connections[-1], WHOLE)


@pytest.fixture(scope="module")
def full() -> Iterator[ServerProcess]:
    """A server with so much held work that even a small request would wait too long."""
    limits = {"MAX_QUEUE_SECONDS": "0.05", "THREAD_POOL_WORKERS": "1", "BODY_TIMEOUT": "3"}
    with held_server(**limits) as server, ExitStack() as stack:
        server.send_line("hold")
        server.wait_for("command_done")
        fill(server, stack)
        server.wait_for("run_held", times=2)  # the express lane takes small requests once the lane's run is overdue
        fill(server, stack)
        yield server
        server.send_line("release")


def test_work_that_does_not_fit_is_rejected_and_its_connection_stays_open(full: ServerProcess) -> None:
    before = CLIENT.get(f"{full.url}/metrics").json()
    large = EMBED + b"X-Request-ID: mine\r\nContent-Length: 200000\r\n\r\n" + b" " * 200_000
    with connected(full) as connection:
        for request in (WHOLE, large, WHOLE):
            send(connection, request)
            status, headers, body = receive_answer(connection)
            problem = json.loads(body)
            assert (status, problem["code"], problem["request_id"]) == (503, "overloaded", headers["x-request-id"])
            assert int(headers["retry-after"]) >= 1
            assert headers["x-content-type-options"] == "nosniff"
            assert "connection" not in headers
            assert request is not large or problem["request_id"] == "mine"
        assert statuses_of([connection]) == [200]
    after = CLIENT.get(f"{full.url}/metrics").json()
    assert after["errors"]["overloaded"] == before["errors"].get("overloaded", 0) + 3
    requests = [metrics["endpoints"]["POST /embed"]["requests"] for metrics in (before, after)]
    assert requests[1] - requests[0] == 3


def test_page_of_another_origin_can_read_the_rejection(full: ServerProcess) -> None:
    response = CLIENT.post(f"{full.url}/embed", json={"text": "one"}, headers={"Origin": "https://app.example"})
    assert (response.status_code, response.json()["code"]) == (503, "overloaded")
    assert response.headers["access-control-allow-origin"] == "*"


def test_pipelined_requests_are_rejected_in_order(full: ServerProcess) -> None:
    with connected(full) as connection:
        send(connection, (WHOLE + PROBE) * 20 + b"no more\r\n\r\n")
        answers = receive_answers(connection)
    assert [status for status, _, _ in answers] == [503, 200] * 20


def test_rejections_do_not_pile_up_for_a_client_that_takes_none(full: ServerProcess) -> None:
    def has_ended() -> bool:
        return any(event["event"] in {"connection_cut", "connection_refused"} for event in full.events[before:])

    before = len(full.events)
    with connected(full, receive_buffer=SMALL_BUFFER) as connection, connected(full) as other:
        for _ in range(2000):  # more rejections than fit into the buffers of the connection
            send(connection, WHOLE * 10)
            assert statuses_of([other]) == [200]  # so the server has read these, too
            if has_ended():
                break
        full.wait_until(has_ended, "end of the connection")


# --- The protocol around an app of the test ------------------------------------------------------------------------

LIMITS = ConnectionLimits(
    header_timeout_s=60,
    body_timeout_s=60,
    keep_alive_timeout_s=60,
    max_header_bytes=32_768,
    max_bodies_bytes=1000,
    max_connections=1,
)


@asynccontextmanager
async def connected_to(
    app: Callable[..., Awaitable[None]], failures: list[str], protocol: type[HttpProtocol] = HttpProtocol
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Serve *app* over a real socket; the codes of connections that end with an error are put into *failures*."""
    pool = ConnectionPool(
        LIMITS,
        count_failure=failures.append,
        reject_early=lambda *_: None,
        find_dialect=lambda path: OPENAI if path.startswith("/v1/") else None,
    )
    config, state = uvicorn.Config(app), ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: protocol(config=config, server_state=state, app_state={}, pool=pool), "127.0.0.1", 0
    )
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        yield reader, writer
        writer.close()
    await asyncio.gather(*state.tasks)


async def test_started_answer_is_not_followed_by_an_error_if_the_body_is_malformed() -> None:
    async def app(_scope: object, _receive: object, send_message: Callable[[Any], Awaitable[None]]) -> None:
        await send_message({"type": "http.response.start", "status": 200, "headers": []})
        await send_message({"type": "http.response.body", "body": b"begun", "more_body": True})
        await ended.wait()

    ended = asyncio.Event()
    failures: list[str] = []
    async with connected_to(app, failures) as (reader, writer):
        writer.write(CHUNKED)
        await reader.readuntil(b"begun\r\n")
        writer.write(b"zz\r\n")
        assert await reader.read() == b""
        ended.set()
    assert failures == ["malformed-request"]


@pytest.mark.parametrize("begin", [pytest.param(PROBE[:-2], id="head"), pytest.param(CHUNKED + b"0\r\n", id="trailer")])
async def test_parser_makes_no_field_beyond_the_limit(begin: bytes) -> None:
    class Counting(HttpProtocol):
        def on_header(self, name: bytes, value: bytes) -> None:
            fields.append(name)
            super().on_header(name, value)

    async def app(_scope: object, receive: Callable[[], Awaitable[object]], _send: object) -> None:
        await receive()

    fields: list[bytes] = []
    failures: list[str] = []
    async with connected_to(app, failures, Counting) as (reader, writer):
        writer.write(begin + b"X:\r\n" * 30_000 + b"\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 431 ")
    assert len(fields) <= MAX_FIELDS + 1 + CHUNKED.count(b"\r\n")
    assert failures == ["headers-too-large"]


@pytest.mark.parametrize(("path", "has_member"), [("/v1/embeddings", True), ("/embed", False)])
async def test_request_without_room_for_its_body_is_rejected_in_its_dialect(path: str, *, has_member: bool) -> None:
    """Head and body arrive together, so the server rejects the request before its task has begun."""

    async def app(_scope: object, _receive: object, _send: object) -> None:
        pytest.fail("the request was rejected")

    size = 2 * LIMITS.max_bodies_bytes
    failures: list[str] = []
    async with connected_to(app, failures) as (reader, writer):
        writer.write(f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n{'x' * size}".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert (b"x-should-retry: true" in head) is ("error" in json.loads(body)) is has_member
    assert failures == ["overloaded"]
