"""Clients that close their sending side after a request: they get their answer; those that have left are noticed."""

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.raw_http import (
    BODY,
    EMBED,
    PROBE,
    WHOLE,
    connected,
    receive_all,
    receive_answer,
    receive_answers,
    rejected,
    send,
)
from tests.support.servers import ServerProcess, held_server

pytestmark = pytest.mark.timeout(90)

CHUNKED = EMBED + b"Transfer-Encoding: chunked\r\n\r\n"
CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)


@pytest.fixture(scope="module")
def holding(tiny_models: Path) -> Iterator[ServerProcess]:
    with held_server(MODELS_DIR=str(tiny_models), REQUIRED_MODELS="tiny/one") as server:
        yield server


@pytest.fixture
def held(holding: ServerProcess) -> Iterator[ServerProcess]:
    """A server whose model runs wait until the test sends `release`."""
    commands = sum(event["event"] == "command_done" for event in holding.events)
    holding.send_line("hold")
    holding.wait_for("command_done", times=commands + 1)
    yield holding
    holding.send_line("release")


def runs_held(server: ServerProcess) -> int:
    return sum(event["event"] == "run_held" for event in server.events)


def close_sending(connection: socket.socket) -> None:
    with suppress(OSError):  # the server may have closed it
        connection.shutdown(socket.SHUT_WR)


def named(request: bytes, request_id: str) -> bytes:
    return request.replace(b"\r\n", b"\r\nX-Request-ID: %s\r\n" % request_id.encode(), 1)


# --- Clients that wait for their answers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "answers"),
    [
        pytest.param(WHOLE, 1, id="one"),
        pytest.param(CHUNKED + CHUNKS, 1, id="chunks"),
        pytest.param(named(WHOLE, "x").replace(b"\r\n", b"\r\nExpect: 100-continue\r\n", 1), 1, id="expect"),
        pytest.param(WHOLE.replace(b"HTTP/1.1", b"HTTP/1.0"), 1, id="http-1.0"),
        pytest.param(WHOLE + PROBE + WHOLE * 3, 5, id="pipeline"),
        pytest.param(WHOLE + PROBE[:-2], 1, id="half-a-head-follows"),
        pytest.param(WHOLE * 2 + WHOLE[:-5], 2, id="half-a-body-follows"),
        pytest.param(WHOLE + b"no more\r\n\r\n", 1, id="malformed-bytes-follow"),
        pytest.param(WHOLE + PROBE[:-2] + b"X:\r\n" * 200, 1, id="large-head-follows"),
    ],
)
def test_client_that_sends_no_more_gets_the_answers_to_its_complete_requests(
    held: ServerProcess, sent: bytes, answers: int
) -> None:
    count = runs_held(held)
    with connected(held) as connection:
        send(connection, sent)
        close_sending(connection)
        held.wait_for("run_held", times=count + 1)
        held.send_line("release")
        received = receive_all(connection).replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"", 1)
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert received.count(b"HTTP/1.1 200 OK\r\n") == received.count(b"HTTP/1.1") == answers
    assert received.count(b"connection: close\r\n") == 1


def test_large_answers_arrive_whole(strict: ServerProcess) -> None:
    body = json.dumps({"texts": ["one"] * 500}).encode()
    batch = EMBED.replace(b"/embed", b"/embed/batch") + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with connected(strict) as connection:
        send(connection, batch * 2)
        close_sending(connection)
        for _ in range(2):  # one by one: the client has BODY_TIMEOUT to receive each
            status, _, content = receive_answer(connection)
            assert (status, len(json.loads(content)["embeddings"])) == (200, 500)
        assert receive_all(connection) == b""


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        pytest.param(b"GET /none HTTP/1.1\r\nHost: a\r\n\r\n", 404, "not-found", id="not-found"),
        pytest.param(EMBED + b"Content-Length: 2\r\n\r\n{}", 400, "invalid-input", id="invalid"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", 400, "malformed-request", id="malformed"),
        pytest.param(PROBE[:-2] + b"X:\r\n" * 200, 431, "headers-too-large", id="large-head"),
    ],
)
def test_rejection_arrives(strict: ServerProcess, sent: bytes, status: int, code: str) -> None:
    with connected(strict) as connection:
        send(connection, sent)
        close_sending(connection)
        [(given, _, body)] = receive_answers(connection)
    assert (given, json.loads(body)["code"]) == (status, code)


def test_rejection_while_draining_arrives(tiny_models: Path) -> None:
    with held_server(MODELS_DIR=str(tiny_models), REQUIRED_MODELS="tiny/one") as server, connected(server) as at_work:
        server.send_line("hold")
        server.wait_for("command_done")
        send(at_work, WHOLE)
        server.wait_for("run_held")
        close_sending(at_work)
        server.process.terminate()
        server.wait_for("drain_started")
        with connected(server) as late:
            send(late, WHOLE)
            close_sending(late)
            [answer] = receive_answers(late)
            rejected(answer, 503, "draining")
        server.send_line("release")
        assert receive_answer(at_work)[0] == 200


# --- Clients that have not finished their request -----------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(PROBE[:-2], id="head"),
        pytest.param(WHOLE[:-1], id="body"),
        pytest.param(CHUNKED + b"5\r\n{", id="chunks"),
    ],
)
def test_unfinished_request_ends_the_connection_at_once(holding: ServerProcess, sent: bytes) -> None:
    with connected(holding) as connection:  # the deadlines are 10 and 60 s
        send(connection, sent)
        close_sending(connection)
        assert receive_all(connection) == b""


# --- Clients that have left ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [pytest.param(b"", id="alone"), pytest.param(WHOLE, id="pipeline")])
def test_client_that_closes_its_connection_is_noticed_while_its_request_is_at_work(
    held: ServerProcess, sent: bytes, request: pytest.FixtureRequest
) -> None:
    request_id, count = f"left-{request.node.callspec.id}", runs_held(held)
    with connected(held) as connection:
        send(connection, named(WHOLE, request_id) + sent)
        held.wait_for("run_held", times=count + 1)
    assert held.wait_for_request(request_id)["status"] == 499


def test_client_that_leaves_after_it_sent_all_is_noticed(held: ServerProcess) -> None:
    count = runs_held(held)
    with connected(held) as connection:
        send(connection, named(WHOLE, "half-closed"))
        close_sending(connection)
        held.wait_for("run_held", times=count + 1)
        assert connection.recv(1) == b"H"  # so the server knows that no more is sent
    assert held.wait_for_request("half-closed")["status"] == 499
