"""Many clients of one server: how they share connections and the memory of request bodies, over real sockets."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving.connection_limits import MAX_PIPELINED, MAX_PIPELINED_PER_ADDRESS
from tests.support.raw_http import (
    BODY,
    CLIENT,
    EMBED,
    PROBE,
    WHOLE,
    connected,
    many_connected,
    receive_all,
    receive_answer,
    receive_answers,
    rejected,
    send,
    statuses_of,
    wait_until_closed,
)
from tests.support.servers import ServerProcess, held_server

pytestmark = pytest.mark.timeout(90)

MAX_BODIES = 16
"""Bodies of the largest size that fit into memory together."""
MAX_BYTES = 20_000
"""Of one body."""
MAX_CONNECTIONS = 24
OWN, OTHER, PROXY = "127.0.0.1", "127.0.0.2", "127.0.0.3"


@pytest.fixture(scope="module")
def small(tiny_models: Path) -> Iterator[ServerProcess]:
    settings = {"MAX_CONNECTIONS": str(MAX_CONNECTIONS), "MAX_REQUEST_SIZE": str(MAX_BYTES)}
    with held_server(MODELS_DIR=str(tiny_models), REQUIRED_MODELS="tiny/one", **settings) as server:
        yield server


@pytest.fixture
def server(small: ServerProcess) -> Iterator[ServerProcess]:
    """A server without connections; its model runs are not held."""
    wait_until_closed(small)
    yield small
    small.send_line("release")


def hold(server: ServerProcess) -> None:
    """Let the next model runs wait for the line `release`."""
    commands = sum(event["event"] == "command_done" for event in server.events)
    server.send_line("hold")
    server.wait_for("command_done", times=commands + 1)


# --- Memory -------------------------------------------------------------------------------------------------------


def test_unfinished_bodies_are_dropped_for_others_when_they_fill_the_memory(server: ServerProcess) -> None:
    with many_connected(server, MAX_BODIES + 4) as connections:
        for number, connection in enumerate(connections):
            send(connection, EMBED + b"X-Request-ID: body-%d\r\nContent-Length: %d\r\n\r\n" % (number, MAX_BYTES))
            send(connection, b" " * (MAX_BYTES - 1))
        assert [receive_all(connection) for connection in connections[:4]] == [b""] * 4  # they have waited longest
        large = BODY.ljust(MAX_BYTES)
        headers = {"Content-Type": "application/json"}
        assert CLIENT.post(f"{server.url}/embed", content=large, headers=headers).status_code == 200
        assert server.wait_for_request("body-0")["status"] == 499


def test_body_of_a_rejected_request_takes_no_memory_from_others(server: ServerProcess) -> None:
    with connected(server) as begun, connected(server) as without_host:
        send(begun, EMBED + b"Content-Length: %d\r\n\r\n" % MAX_BYTES + b" " * (MAX_BYTES - 1))
        send(without_host, b"POST /embed HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (20 * MAX_BYTES))
        send(without_host, b" " * 20 * MAX_BYTES)
        rejected(receive_answer(without_host), 400, "malformed-request")
        assert statuses_of([begun], b" ") == [400]  # spaces are not JSON, but the server has received all of them


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY, id="complete"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n{\r\nzz\r\n", id="malformed"),
    ],
)
def test_body_without_memory_gets_a_503_once_and_its_connection_ends(server: ServerProcess, body: bytes) -> None:
    hold(server)
    with (
        many_connected(server, MAX_BODIES) as at_work,
        many_connected(server, MAX_CONNECTIONS - MAX_BODIES - 1) as idle,
        connected(server) as one_more,
    ):
        for connection in at_work:
            send(connection, EMBED + b"Content-Length: %d\r\n\r\n" % MAX_BYTES + BODY.ljust(MAX_BYTES))
            assert set(statuses_of(idle)) == {200}  # so the server has read the body, too
        send(one_more, EMBED + body)
        [answer] = receive_answers(one_more)
        rejected(answer, 503, "overloaded")
        with many_connected(server, len(idle) + 1) as newcomers:  # they replace the idle and the rejected connections
            assert [set(statuses_of(newcomers)) for _ in range(2)] == [{200}] * 2
        assert "Fatal error" not in server.log
        server.send_line("release")
        assert [receive_answer(connection)[0] for connection in at_work] == [200] * MAX_BODIES


@pytest.mark.parametrize("source", [pytest.param(OTHER, id="other-address"), pytest.param(OWN, id="same-address")])
def test_stalled_bodies_do_not_cut_one_that_progresses(server: ServerProcess, source: str) -> None:
    head = EMBED + b"Content-Length: %d\r\n\r\n" % MAX_BYTES
    large, step = BODY.ljust(MAX_BYTES), MAX_BYTES // (MAX_BODIES + 4)
    with many_connected(server, MAX_BODIES + 4, source=source) as stalled, connected(server) as fast:
        send(fast, head)
        for number, connection in enumerate(stalled):
            send(connection, head + b" " * (MAX_BYTES - 1))
            send(fast, large[number * step : (number + 1) * step])
            CLIENT.get(f"{server.url}/health/live")  # so the server has read both
        assert receive_answer(fast)[0] == 200
        assert receive_all(stalled[0]) == b""


def test_memory_that_one_address_has_at_work_does_not_refuse_another_one(server: ServerProcess) -> None:
    hold(server)
    head = EMBED + b"Content-Length: %d\r\n\r\n" % MAX_BYTES
    with many_connected(server, MAX_BODIES, source=OTHER) as at_work, connected(server) as own:
        for connection in at_work:
            send(connection, head + BODY.ljust(MAX_BYTES))
            CLIENT.get(f"{server.url}/health/live")  # so the server has read it
        send(own, head + BODY.ljust(MAX_BYTES))
        server.send_line("release")
        assert [receive_answer(connection)[0] for connection in [own, *at_work]] == [200] * (MAX_BODIES + 1)


def test_body_that_waits_behind_another_request_counts_until_its_own_answer(server: ServerProcess) -> None:
    held = sum(event["event"] == "run_held" for event in server.events)
    hold(server)
    with connected(server) as connection, connected(server) as other:
        send(connection, WHOLE + EMBED + b"Content-Length: 50\r\n\r\n" + b" " * 49)
        server.wait_for("run_held", times=held + 1)
        server.send_line("release")
        assert receive_answer(connection)[0] == 200
        send(other, PROBE.replace(b"/health/live", b"/metrics"))
        assert json.loads(receive_answer(other)[2])["connections"]["body_bytes"] == 49
    wait_until_closed(server)
    assert CLIENT.get(f"{server.url}/metrics").json()["connections"]["body_bytes"] == 0


# --- Connections --------------------------------------------------------------------------------------------------


def test_connection_that_waited_longest_for_its_client_is_closed_for_a_new_one(server: ServerProcess) -> None:
    with many_connected(server, MAX_CONNECTIONS) as old:
        assert set(statuses_of(old)) == {200}
        assert statuses_of(old[:1]) == [200]  # so the second one has waited longest
        with connected(server) as new:
            assert statuses_of([new]) == [200]
            assert receive_all(old[1]) == b""
            assert set(statuses_of([old[0], *old[2:], new])) == {200}


def test_thousand_idle_connections_do_not_lock_others_out(server: ServerProcess) -> None:
    with many_connected(server, 1000):
        assert CLIENT.post(f"{server.url}/embed", json={"text": "one"}).status_code == 200


@pytest.mark.parametrize("source", [pytest.param(OTHER, id="other-address"), pytest.param(OWN, id="same-address")])
@pytest.mark.parametrize("sent", [pytest.param(b"", id="idle"), pytest.param(PROBE[:-2], id="half-a-head")])
def test_thousand_strangers_do_not_cut_an_upload(server: ServerProcess, source: str, sent: bytes) -> None:
    large = BODY.ljust(MAX_BYTES)
    with connected(server) as upload:
        send(upload, EMBED + b"Content-Length: %d\r\n\r\n" % MAX_BYTES + large[: MAX_BYTES // 2])
        with many_connected(server, 1010, source=source) as strangers:
            for stranger in strangers:
                send(stranger, sent)
            assert CLIENT.get(f"{server.url}/health/live").status_code == 200  # a newcomer
            send(upload, large[MAX_BYTES // 2 :])
            assert receive_answer(upload)[0] == 200


def test_newcomer_from_an_address_without_connections_gets_in_while_another_address_has_all_of_them_at_work(
    server: ServerProcess,
) -> None:
    hold(server)
    with many_connected(server, MAX_CONNECTIONS, source=OTHER) as at_work:
        assert set(statuses_of(at_work, PROBE + WHOLE)) == {200}
        with connected(server) as newcomer, connected(server, source=OTHER) as one_more:
            assert statuses_of([newcomer] * 2) == [200, 200]
            rejected(receive_answer(one_more), 503, "too-many-connections")
            assert statuses_of([newcomer]) == [200]
        server.send_line("release")
        assert {receive_answer(connection)[0] for connection in at_work} == {200}


def test_full_pipelines_do_not_refuse_other_clients_of_their_address(server: ServerProcess) -> None:
    hold(server)
    with many_connected(server, MAX_PIPELINED_PER_ADDRESS // MAX_PIPELINED) as full, connected(server) as other:
        for connection in full:
            send(connection, WHOLE * (1 + MAX_PIPELINED))
        assert statuses_of([other] * 2) == [200, 200]
        send(full[0], WHOLE)
        server.wait_for("connection_refused")
        assert statuses_of([other]) == [200]


def test_limit_per_address_is_not_for_trusted_proxies(server_with: Callable[..., ServerProcess]) -> None:
    server = server_with(MAX_CONNECTIONS_PER_ADDRESS="2", TRUSTED_PROXIES=PROXY)
    wait_until_closed(server)
    with many_connected(server, 3, source=OTHER) as three, many_connected(server, 9, source=PROXY) as through_proxy:
        assert set(statuses_of([*three[1:], *through_proxy] * 2)) == {200}
        assert receive_all(three[0]) == b""


def test_metrics_count_connections_and_the_bytes_of_bodies(server: ServerProcess) -> None:
    def metrics() -> dict[str, int]:
        return dict(CLIENT.get(f"{server.url}/metrics").json()["connections"])

    closed = metrics()["closed_for_others"]
    with many_connected(server, 2) as idle, many_connected(server, 3) as uploads, connected(server) as begun:
        assert set(statuses_of(idle)) == {200}
        send(begun, PROBE[:-2])
        for connection in uploads:
            send(connection, EMBED + b"Content-Length: 20\r\n\r\n" + b" " * 7)
        counts = metrics()
    expected = {"open": 7, "idle": 2, "receiving": 4, "processing": 1, "body_bytes": 21, "closed_for_others": closed}
    assert counts == expected


def test_newcomer_gets_a_503_while_all_connections_are_at_work(server: ServerProcess) -> None:
    hold(server)
    with many_connected(server, MAX_CONNECTIONS) as at_work:
        assert set(statuses_of(at_work, PROBE + WHOLE)) == {200}  # the server has read the second requests, too
        with connected(server) as newcomer:
            assert rejected(receive_answer(newcomer), 503, "too-many-connections")["limit"] == MAX_CONNECTIONS
        server.send_line("release")
        assert {receive_answer(connection)[0] for connection in at_work} == {200}


def test_client_that_leaves_a_pipeline_is_no_failure_of_the_service(server: ServerProcess) -> None:
    held = sum(event["event"] == "run_held" for event in server.events)
    hold(server)
    with connected(server) as connection:
        send(connection, WHOLE.replace(b"\r\n", b"\r\nX-Request-ID: first\r\n", 1) + WHOLE)
        server.wait_for("run_held", times=held + 1)
    assert server.wait_for_request("first")["status"] == 499
    assert CLIENT.get(f"{server.url}/health/live").status_code == 200
    assert "ASGI" not in server.log
