"""Connections whose callers break a rule of HTTP, of time, of size or of number; all over real sockets."""

import json
import re
import select
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import httpx
import pytest

from serving.connection_limits import MAX_PIPELINED
from tests.support.servers import ServerProcess, held_server, running_server

pytestmark = pytest.mark.timeout(90)

STRICT = {
    "HEADER_TIMEOUT": "0.6",
    "BODY_TIMEOUT": "0.6",
    "KEEP_ALIVE_TIMEOUT": "60",
    "MAX_HEADER_SIZE": "2KiB",
    "MAX_BATCH_SIZE": "2000",
}
BODY = b'{"text": "a short text"}'
EMBED = b"POST /embed HTTP/1.1\r\nHost: me\r\nContent-Type: application/json\r\n"
WHOLE = EMBED + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
PROBE = b"GET /health/live HTTP/1.1\r\nHost: me\r\n\r\n"
JSON = {"Content-Type": "application/json"}
Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture(scope="module")
def strict() -> Iterator[ServerProcess]:
    with running_server(**STRICT) as server:
        yield server


def connected(server: ServerProcess) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=60)


def sent(connection: socket.socket, data: bytes) -> None:
    """Send what the other side still takes."""
    with suppress(ConnectionError):
        connection.sendall(data)


def received(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    data = b""
    with suppress(ConnectionError):
        while piece := connection.recv(65536):
            data += piece
    return data


def answers_in(data: bytes) -> list[Answer]:
    """The answers that stand one after the other in *data*, each with the length that it states."""
    found = []
    while data:
        head, _, rest = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(headers["content-length"])
        found.append((int(first.split()[1]), headers, rest[:length]))
        data = rest[length:]
    return found


def one_answer(connection: socket.socket) -> Answer:
    """The next answer on a connection that may stay open."""
    with connection.makefile("rb") as stream:
        status = int(stream.readline().split()[1])
        lines = iter(lambda: stream.readline().decode("latin-1").strip(), "")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return status, headers, stream.read(int(headers["content-length"]))


def refused(answer: Answer, status: int, code: str) -> dict[str, Any]:
    """The problem that this answer tells, as every other one is told."""
    given, headers, body = answer
    told: dict[str, Any] = json.loads(body)
    assert (given, told["status"], told["code"]) == (status, status, code)
    assert headers["content-type"] == "application/problem+json"
    assert headers["connection"] == "close"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-request-id"] == told["request_id"]
    return told


def hold_at_work(server: ServerProcess, connection: socket.socket) -> None:
    """A request on *connection* whose model run waits."""
    server.send_line("hold")
    server.wait_for("command_done")
    sent(connection, WHOLE)
    server.wait_for("run_held")


def errors(server: ServerProcess) -> dict[str, int]:
    return dict(httpx.get(f"{server.url}/metrics").json()["errors"])


# --- Time ---------------------------------------------------------------------------------------------------------


def test_head_that_does_not_end_is_a_408(strict: ServerProcess) -> None:
    before = errors(strict).get("request-too-slow", 0)
    with connected(strict) as connection:
        sent(connection, b"POST /embed HTTP/1.1\r\nHost: me\r\n")
        [answer] = answers_in(received(connection))
    told = refused(answer, 408, "request-too-slow")
    assert "HEADER_TIMEOUT" in told["detail"]
    assert told["limit"] == 0.6
    assert errors(strict)["request-too-slow"] == before + 1


def test_connection_on_which_nothing_comes_ends_without_a_word(strict: ServerProcess) -> None:
    with connected(strict) as connection:
        assert received(connection) == b""


def test_body_that_does_not_come_is_a_408_and_no_failure_of_the_service(strict: ServerProcess) -> None:
    before = errors(strict).get("internal-error", 0)
    with connected(strict) as connection:
        sent(connection, EMBED + b"Content-Length: 100\r\n\r\n{")
        [answer] = answers_in(received(connection))
    assert "BODY_TIMEOUT" in refused(answer, 408, "request-too-slow")["detail"]
    assert errors(strict).get("internal-error", 0) == before
    assert "request_failed" not in strict.log


@pytest.mark.parametrize(
    ("begun", "drop"),
    [
        pytest.param(b"POST /embed HTTP/1.1\r\nX-Slow: ", b"a", id="head"),
        pytest.param(EMBED + b"Content-Length: 100000\r\n\r\n", b" ", id="body"),
        pytest.param(EMBED + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n", id="chunks"),
    ],
)
def test_caller_who_sends_drop_by_drop_has_no_more_time(strict: ServerProcess, begun: bytes, drop: bytes) -> None:
    with connected(strict) as connection:
        sent(connection, begun)
        while not select.select([connection], [], [], 0.05)[0]:
            sent(connection, drop)
        [answer] = answers_in(received(connection))
    refused(answer, 408, "request-too-slow")


def test_second_request_has_the_time_of_a_first_one(strict: ServerProcess) -> None:
    with connected(strict) as connection:
        sent(connection, WHOLE)
        assert one_answer(connection)[0] == 200
        sent(connection, b"GET /health HTTP")
        [answer] = answers_in(received(connection))
    refused(answer, 408, "request-too-slow")


def test_answer_that_came_before_the_end_of_its_body_does_not_hold_the_connection(strict: ServerProcess) -> None:
    with connected(strict) as connection:
        sent(connection, b"POST /nothing HTTP/1.1\r\nHost: me\r\nContent-Length: 1000\r\n\r\n")
        [answer] = answers_in(received(connection))  # until the other side closes
    assert answer[0] == 404


def test_body_that_comes_after_its_answer_is_read_and_the_connection_goes_on(strict: ServerProcess) -> None:
    with connected(strict) as connection:
        sent(connection, b"POST /nothing HTTP/1.1\r\nHost: me\r\nContent-Length: 5\r\n\r\n")
        assert one_answer(connection)[0] == 404
        sent(connection, b"12345" + PROBE)
        assert one_answer(connection)[0] == 200


def test_caller_who_does_not_take_his_answer_is_cut_off(strict: ServerProcess) -> None:
    body = json.dumps({"texts": [f"text {number}" for number in range(2000)]}).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", int(strict.url.rpartition(":")[2])))
        head = b"POST /embed/batch HTTP/1.1\r\nHost: me\r\nContent-Type: application/json\r\n"
        sent(connection, head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert strict.wait_for("connection_cut")["stage"] in {"sending", "processing"}


def test_caller_who_asks_on_without_taking_his_answers_is_cut_off() -> None:
    with running_server(BODY_TIMEOUT="3") as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
        for number in range(1000):
            sent(connection, b"GET /schema/openapi.json HTTP/1.1\r\nHost: me\r\nX-Request-ID: n-%d\r\n\r\n" % number)
            if server.wait_for_request(f"n-{number}")["ms"] > 1000:  # it has waited for those before to be taken
                break
        assert server.wait_for("connection_cut")["stage"] == "processing"


# --- Size and form ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(PROBE[:-2] + b"X-Long: " + b"a" * 3000 + b"\r\n\r\n", id="one-header"),
        pytest.param(PROBE[:-2] + b"X-Many: a\r\n" * 300 + b"\r\n", id="many-headers"),
        pytest.param(b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\nHost: me\r\n\r\n", id="address"),
        pytest.param(PROBE[:-2] + b"X-Endless: " + b"a" * 100_000, id="endless-header"),
        pytest.param(PROBE[:-2] + b"X: a\r\n" * 20_000, id="endless-headers"),
        pytest.param(b"GET /" + b"a" * 100_000, id="endless-address"),
    ],
)
def test_head_that_is_too_large_is_a_431(strict: ServerProcess, data: bytes) -> None:
    with connected(strict) as connection:
        sent(connection, data)
        [answer] = answers_in(received(connection))
    told = refused(answer, 431, "headers-too-large")
    assert told["limit"] == 2048
    assert "MAX_HEADER_SIZE" in told["detail"]


@pytest.mark.parametrize(
    "tail",
    [
        pytest.param(b"0\r\n" + b"X-Trailer: a\r\n" * 20_000, id="trailers"),
        pytest.param(b"0\r\nX-Trailer: " + b"a" * 200_000, id="endless-trailer"),
        pytest.param(b"1;" + b"a" * 200_000, id="chunk-extension"),
    ],
)
def test_what_surrounds_a_body_is_bounded_too(strict: ServerProcess, tail: bytes) -> None:
    with connected(strict) as connection:
        sent(connection, EMBED + b"Transfer-Encoding: chunked\r\n\r\n" + tail)
        [answer] = answers_in(received(connection))
    refused(answer, 431, "headers-too-large")


def test_trailers_are_no_headers(strict: ServerProcess) -> None:
    chunked = EMBED + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n"
    with connected(strict) as connection:
        sent(connection, chunked + b"X-Request-ID: from-the-trailer\r\n\r\n")
        [(status, headers, _)] = answers_in(received(connection))
    assert status == 200
    assert headers["x-request-id"] != "from-the-trailer"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 50, id="TLS"),
        pytest.param(b"hello\r\n\r\n", id="no-HTTP"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2"),
        pytest.param(EMBED + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n123456", id="two-lengths"),
        pytest.param(
            EMBED + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", id="length-and-chunks"
        ),
        pytest.param(EMBED + b"Content-Length: -1\r\n\r\n", id="negative-length"),
        pytest.param(EMBED + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", id="no-chunk"),
        pytest.param(EMBED + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", id="other-coding"),
        pytest.param(b"GET /health HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", id="chunks-in-1.0"),
        pytest.param(b"GET /health HTTP/1.1\r\n\r\n", id="no-host"),
        pytest.param(b"GET /health HTTP/1.1\r\nHost: me\r\nHost: you\r\n\r\n", id="two-hosts"),
        pytest.param(b"GET /health\r\n\r\n", id="HTTP/0.9"),
        pytest.param(b"CONNECT other:80 HTTP/1.1\r\nHost: other:80\r\n\r\n", id="CONNECT"),
        pytest.param(b"CONNECT http://me/health HTTP/1.1\r\nHost: me\r\n\r\n", id="CONNECT-with-path"),
    ],
)
def test_what_is_not_http_is_a_400(strict: ServerProcess, data: bytes) -> None:
    with connected(strict) as connection:
        sent(connection, data)
        [answer] = answers_in(received(connection))
    refused(answer, 400, "malformed-request")
    assert httpx.get(f"{strict.url}/health/live").status_code == 200
    assert "request_failed" not in strict.log
    assert "ASGI" not in strict.log


def test_requests_before_what_is_not_http_are_answered(strict: ServerProcess) -> None:
    with connected(strict) as connection:
        sent(connection, WHOLE + PROBE + b"what is this?\r\n\r\n")
        answers = answers_in(received(connection))
    assert [status for status, _, _ in answers] == [200, 200]
    assert answers[-1][1]["connection"] == "close"


def test_request_whose_body_is_not_http_does_not_take_the_answers_of_earlier_ones(strict: ServerProcess) -> None:
    with connected(strict) as connection:
        sent(connection, WHOLE + WHOLE + EMBED + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n")
        answers = answers_in(received(connection))
    assert [status for status, _, _ in answers] == [200, 200]
    assert answers[-1][1]["connection"] == "close"
    assert "request_failed" not in strict.log


def test_caller_who_leaves_a_pipeline_is_no_failure_of_the_service() -> None:
    with held_server() as server:
        server.send_line("hold")
        server.wait_for("command_done")
        with connected(server) as connection:
            sent(connection, WHOLE.replace(b"\r\n", b"\r\nX-Request-ID: first\r\n", 1) + WHOLE)
            server.wait_for("run_held")
        assert server.wait_for_request("first")["status"] == 499
        assert httpx.get(f"{server.url}/health/live").status_code == 200
        assert "ASGI" not in server.log
        server.send_line("release")


def test_requests_that_come_at_once_are_answered_in_order(strict: ServerProcess) -> None:
    with connected(strict) as connection:
        sent(connection, WHOLE + PROBE + WHOLE + PROBE[:-2] + b"Connection: close\r\n\r\n")
        answers = answers_in(received(connection))
    assert [json.loads(body).get("status") for _, _, body in answers] == [None, "live", None, "live"]


def test_pipeline_has_an_end_and_those_within_are_answered(strict: ServerProcess) -> None:
    before = errors(strict).get("malformed-request", 0)
    with connected(strict) as connection:
        sent(connection, PROBE * 10_000)
        answers = answers_in(received(connection))
    assert [status for status, _, _ in answers] == [200] * (MAX_PIPELINED + 1)
    assert answers[-1][1]["connection"] == "close"
    assert errors(strict)["malformed-request"] == before + 1


def test_second_of_two_requests_may_come_in_pieces(strict: ServerProcess) -> None:
    with connected(strict) as connection:
        sent(connection, WHOLE + WHOLE[:-5])
        assert one_answer(connection)[0] == 200
        sent(connection, WHOLE[-5:])
        assert one_answer(connection)[0] == 200


@pytest.mark.parametrize("wanted", ["h2c", "websocket"])
@pytest.mark.parametrize("request_", [pytest.param(PROBE, id="get"), pytest.param(WHOLE, id="post")])
def test_upgrade_is_passed_over_and_the_request_answered(strict: ServerProcess, wanted: str, request_: bytes) -> None:
    upgrade = f"\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: {wanted}\r\nHTTP2-Settings: AAMA\r\n".encode()
    with connected(strict) as connection:
        for request in (request_.replace(b"\r\n", upgrade, 1), request_):
            sent(connection, request)
            assert one_answer(connection)[0] == 200
        sent(connection, request_.replace(b"\r\n", upgrade, 1) * 50 + b"no more\r\n\r\n")
        assert [status for status, _, _ in answers_in(received(connection))] == [200] * 50
    assert "WebSocket" not in strict.log


# --- Too much work ------------------------------------------------------------------------------------------------


def fill(server: ServerProcess, stack: ExitStack) -> None:
    """Send small requests until one is refused; it is told so at once, while the others wait for their answers."""
    is_refused = False
    while not is_refused:
        connection = stack.enter_context(connected(server))
        sent(connection, WHOLE)
        is_refused = bool(select.select([connection], [], [], 0.5)[0]) and one_answer(connection)[0] == 503


@pytest.fixture(scope="module")
def full() -> Iterator[ServerProcess]:
    """A server with so much work that even a small request would wait too long."""
    limits = {"MAX_QUEUE_SECONDS": "0.05", "THREAD_POOL_WORKERS": "1", "BODY_TIMEOUT": "3"}
    with held_server(**limits) as server, ExitStack() as stack:
        server.send_line("hold")
        server.wait_for("command_done")
        fill(server, stack)
        server.wait_for("run_held", times=2)  # the express lane takes small requests once the lane's run is overdue
        fill(server, stack)
        yield server
        server.send_line("release")


def test_work_that_does_not_fit_is_refused_and_its_connection_goes_on(full: ServerProcess) -> None:
    before = httpx.get(f"{full.url}/metrics").json()
    large = EMBED + b"X-Request-ID: mine\r\nContent-Length: 200000\r\n\r\n" + b" " * 200_000
    with connected(full) as connection:
        for request in (WHOLE, large, WHOLE):
            sent(connection, request)
            status, headers, body = one_answer(connection)
            told = json.loads(body)
            assert (status, told["code"], told["request_id"]) == (503, "overloaded", headers["x-request-id"])
            assert int(headers["retry-after"]) >= 1
            assert headers["x-content-type-options"] == "nosniff"
            assert "connection" not in headers
            assert request is not large or told["request_id"] == "mine"
        sent(connection, PROBE)
        assert one_answer(connection)[0] == 200
    after = httpx.get(f"{full.url}/metrics").json()
    assert after["errors"]["overloaded"] == before["errors"].get("overloaded", 0) + 3
    requests = [metrics["endpoints"]["POST /embed"]["requests"] for metrics in (before, after)]
    assert requests[1] - requests[0] == 3


def test_page_of_another_origin_may_read_that_its_work_does_not_fit(full: ServerProcess) -> None:
    response = httpx.post(f"{full.url}/embed", json={"text": "one"}, headers={"Origin": "https://app.example"})
    assert (response.status_code, response.json()["code"]) == (503, "overloaded")
    assert response.headers["access-control-allow-origin"] == "*"


def test_many_requests_at_once_are_refused_in_order(full: ServerProcess) -> None:
    with connected(full) as connection:
        sent(connection, (WHOLE + PROBE) * 20 + b"no more\r\n\r\n")
        answers = answers_in(received(connection))
    assert [status for status, _, _ in answers] == [503, 200] * 20


def test_refusals_do_not_pile_up_for_a_caller_who_takes_none(full: ServerProcess) -> None:
    def ask_on() -> None:
        for _ in range(2000):
            connection.sendall(WHOLE * 10)
            assert asked([other]) == [200]  # so these have been read, too

    with socket.socket() as connection, connected(full) as other:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", int(full.url.rpartition(":")[2])))
        with pytest.raises(ConnectionError):  # it ends: too much is pipelined, or nothing taken for too long
            ask_on()


# --- Memory -------------------------------------------------------------------------------------------------------

LARGEST = 100_000
"""Bytes of the largest body; 16 of these may be under way."""


def begun_bodies(server: ServerProcess, stack: ExitStack, count: int) -> list[socket.socket]:
    """Connections on each of which almost all of a large body has come in, and no more comes."""
    connections = [stack.enter_context(connected(server)) for _ in range(count)]
    for number, connection in enumerate(connections):
        sent(connection, EMBED + b"X-Request-ID: body-%d\r\nContent-Length: %d\r\n\r\n" % (number, LARGEST))
        sent(connection, b" " * (LARGEST - 1))
    return connections


def test_bodies_that_do_not_end_give_way_to_others_when_they_fill_the_memory() -> None:
    with running_server(MAX_REQUEST_SIZE=str(LARGEST)) as server, ExitStack() as stack:
        connections = begun_bodies(server, stack, 24)
        ends = [connection for connection in connections[:4] if received(connection) == b""]
        assert len(ends) == 4  # the ones that have waited longest
        large = BODY.ljust(LARGEST)
        assert httpx.post(f"{server.url}/embed", content=large, headers=JSON).status_code == 200
        assert server.wait_for_request("body-0")["status"] == 499


def test_refused_body_takes_no_memory_from_others() -> None:
    with running_server(MAX_REQUEST_SIZE=str(LARGEST)) as server, ExitStack() as stack:
        [begun] = begun_bodies(server, stack, 1)
        with connected(server) as no_host:
            sent(no_host, b"POST /embed HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (20 * LARGEST))
            sent(no_host, b" " * 20 * LARGEST)
            refused(one_answer(no_host), 400, "malformed-request")
        sent(begun, b" ")
        assert one_answer(begun)[0] == 400  # spaces are no JSON, but all of them came in


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY, id="whole"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\nzz\r\n", id="malformed"),
    ],
)
def test_body_for_which_there_is_no_memory_is_refused_once_and_its_connection_ends(body: bytes) -> None:
    size = 20_000
    with held_server(MAX_REQUEST_SIZE=str(size), MAX_CONNECTIONS="18") as server, ExitStack() as stack:
        server.send_line("hold")
        server.wait_for("command_done")
        at_work = [stack.enter_context(connected(server)) for _ in range(16)]
        [other] = stack.enter_context(many_connected(server, 1))
        for connection in at_work:
            sent(connection, EMBED + b"Content-Length: %d\r\n\r\n" % size + BODY.ljust(size))
            assert asked([other]) == [200]  # so that body has been read, too
        one_more = stack.enter_context(connected(server))
        sent(one_more, EMBED + body)
        [answer] = answers_in(received(one_more))
        refused(answer, 503, "overloaded")
        newcomers = stack.enter_context(many_connected(server, 2))
        assert [asked(newcomers), asked(newcomers)] == [[200, 200]] * 2  # in the places of the idle and the refused one
        assert "Fatal error" not in server.log
        server.send_line("release")
        assert [one_answer(connection)[0] for connection in at_work] == [200] * 16


# --- Number -------------------------------------------------------------------------------------------------------


@contextmanager
def many_connected(server: ServerProcess, count: int) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        yield [stack.enter_context(connected(server)) for _ in range(count)]


def asked(connections: Sequence[socket.socket], request: bytes = PROBE) -> list[int]:
    """The statuses of one request on each of *connections*, which are known to the server afterwards."""
    for connection in connections:
        sent(connection, request)
    return [one_answer(connection)[0] for connection in connections]


def test_connection_that_has_waited_longest_gives_way_to_a_new_one() -> None:
    with running_server(MAX_CONNECTIONS="4") as server, many_connected(server, 4) as old:
        assert asked(old) == [200] * 4
        assert asked(old[:1]) == [200]  # now the second one has waited longest
        with many_connected(server, 1) as new:
            assert asked(new) == [200]
            assert received(old[1]) == b""
            assert asked([old[0], old[2], old[3], *new]) == [200] * 4


def test_thousand_idle_connections_keep_nobody_out() -> None:
    with running_server(MAX_CONNECTIONS="16") as server, many_connected(server, 1000):
        assert httpx.post(f"{server.url}/embed", json={"text": "let me in"}).status_code == 200


def test_connection_at_work_does_not_give_way_and_the_newcomer_hears_why() -> None:
    with held_server(MAX_CONNECTIONS="1") as server, connected(server) as at_work:
        hold_at_work(server, at_work)
        with connected(server) as newcomer:
            told = refused(one_answer(newcomer), 503, "too-many-connections")
        assert told["limit"] == 1
        server.send_line("release")
        assert one_answer(at_work)[0] == 200


# --- The end ------------------------------------------------------------------------------------------------------


def test_draining_server_refuses_new_work_and_answers_what_it_has_accepted() -> None:
    with held_server() as server, connected(server) as idle, connected(server) as at_work:
        assert asked([idle]) == [200]
        hold_at_work(server, at_work)
        server.process.terminate()
        server.wait_for("drain_started")
        ready = httpx.get(f"{server.url}/health/ready")
        assert (ready.status_code, ready.json()["status"], ready.headers["connection"]) == (503, "draining", "close")
        assert httpx.get(f"{server.url}/health/live").status_code == 200
        for answer in (httpx.post(f"{server.url}/embed", json={"text": "new"}), _on(idle, WHOLE)):
            assert (answer.status_code, answer.json()["code"]) == (503, "draining")
            assert answer.headers["connection"] == "close"
            assert answer.headers["retry-after"] == "1"
        server.send_line("release")
        status, headers, _ = one_answer(at_work)
        assert (status, headers["connection"]) == (200, "close")
        assert server.wait_for_end() == 0
        assert server.wait_for("drain_ended")["unanswered"] == 0
        assert "Traceback" not in server.log


def _on(connection: socket.socket, request: bytes) -> httpx.Response:
    sent(connection, request)
    status, headers, body = one_answer(connection)
    return httpx.Response(status, headers=headers, content=body)


def test_second_signal_ends_a_draining_server_at_once() -> None:
    with held_server() as server, connected(server) as at_work:
        hold_at_work(server, at_work)
        server.process.terminate()
        server.wait_for("drain_started")
        server.process.terminate()
        assert server.wait_for_end(timeout_s=20) == 128 + signal.SIGTERM  # the run is still held
        assert re.search(rb" 200 ", received(at_work)) is None


def test_work_that_outlives_the_time_to_drain_is_told_so_and_the_process_ends() -> None:
    with held_server(SHUTDOWN_TIMEOUT="1") as server, connected(server) as at_work:
        hold_at_work(server, at_work)
        server.process.terminate()
        told = refused(one_answer(at_work), 503, "draining")
        assert "had to stop before this request was answered" in told["detail"]
        assert server.wait_for_end(timeout_s=20) == 0  # the run is still held
