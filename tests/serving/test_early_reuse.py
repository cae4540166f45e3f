"""A cached answer that the server sends itself is the one that the app would send; special requests go to the app."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.connection_limits import MAX_PIPELINED
from tests.api.test_answer_reuse import ANEW, NOT_REPEATED, PATHS, body_of, facts, lines, shape
from tests.api.test_cache_headers import MODEL, new_texts
from tests.support import raw_http
from tests.support.raw_http import (
    LAST_PROBE,
    PATIENCE_S,
    PROBE,
    Answer,
    receive_all,
    receive_answer,
    receive_answers,
    rejected,
    send,
)
from tests.support.served_apps import ServedApp, served_app
from tests.support.servers import running_server
from tests.support.watched_log import watched_log
from web.answer_reuse import MAX_BODY_BYTES

CHANGING = {"x-request-id", "server-timing", "date", "content-length"}


@pytest.fixture(scope="module")
def variables(tiny_models: Path) -> dict[str, str]:
    return {"MODELS_DIR": str(tiny_models), "REQUIRED_MODELS": MODEL, "RESULT_CACHE_MB": "8"}


@pytest.fixture(scope="module")
def app(variables: dict[str, str]) -> Iterator[ServedApp]:
    with patch("web.overload_guard.MAX_ITERATION_S", PATIENCE_S), served_app(**variables) as app:
        yield app  # also a slow machine answers what it can in one iteration


@pytest.mark.parametrize("path", PATHS)
def test_answer_of_each_route_is_the_same(path: str, app: ServedApp) -> None:
    body, before = body_of(path, *new_texts(1)), len(app.found)
    _, kept, again, last = (app.client.post(path, json=body) for _ in range(4))
    found = app.found[before:]
    anew = app.client.post(path, json=body, headers=ANEW)
    assert found.count(True) == (0 if path in NOT_REPEATED else 2)
    assert facts(kept) == facts(again) == facts(last) == facts(anew)
    assert shape(again) == shape(anew)
    assert set(again.headers) == set(anew.headers)


def connected(app: ServedApp) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", app.port), timeout=PATIENCE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def request(body: bytes, *headers: bytes) -> bytes:
    fields = (b"Host: me", b"Content-Type: application/json", b"Content-Length: %d" % len(body), *headers)
    return b"\r\n".join([b"POST /embed HTTP/1.1", *fields, b"", body])


def ask(app: ServedApp, *pieces: bytes) -> list[Answer]:
    """Send *pieces* on one connection, each when the server has read those before, and nothing more; return answers."""
    with connected(app) as connection:
        for number, piece in enumerate(pieces):
            if number:
                wait_until_read(app)
            send(connection, piece)
        connection.shutdown(socket.SHUT_WR)
        return receive_answers(connection)


def wait_until_read(app: ServedApp) -> None:
    """Wait until the server has read what was sent: it has answered a younger connection."""
    with connected(app) as younger:
        send(younger, LAST_PROBE)
        assert receive_all(younger)


def kept_body(app: ServedApp) -> bytes:
    """Return the body of a request whose answer is kept."""
    body = json.dumps({"text": new_texts(1)[0]}).encode()
    for _ in range(3):
        [(status, _, _)] = ask(app, request(body))
        assert status == 200
    assert app.found[-1]
    return body


def content_of(answer: Answer) -> object:
    """Return all of an answer but what differs between any two."""
    status, headers, body = answer
    content = {
        name: value for name, value in json.loads(body).items() if name not in {"processing_time_ms", "request_id"}
    }
    return status, {name: value for name, value in headers.items() if name not in CHANGING}, content


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        pytest.param(b"\r\n\r\n", b"\r\nX-Other: 1\r\n\r\n", [True], id="other-header"),
        pytest.param(b"\r\n\r\n", b"\r\nX-Request-ID: mine\r\n\r\n", [True], id="request-id"),
        pytest.param(b"\r\n\r\n", b"\r\nAccept: */*\r\n\r\n", [False], id="compared-header"),
        pytest.param(b"\r\n\r\n", b"\r\nCache-Control: no-cache\r\n\r\n", [], id="excluding-header"),
        pytest.param(b"\r\n\r\n", b"\r\nOrigin: https://app.example\r\n\r\n", [], id="page"),
        pytest.param(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", [], id="close"),
        pytest.param(b"\r\n\r\n", b"\r\nHost: other\r\n\r\n", [], id="two-hosts"),
        pytest.param(b"Host: me", b"Host: m e", [], id="bad-host"),
        pytest.param(b"HTTP/1.1", b"HTTP/1.0", [], id="http-1.0"),
        pytest.param(b"POST /", b"PUT /", [], id="other-method"),
        pytest.param(b"/embed ", b"http://me/embed ", [], id="absolute-target"),
        pytest.param(b"/embed ", b"/%65mbed ", [True], id="escaped-target"),
        pytest.param(b"/embed ", b"/embed/ ", [False], id="slash"),
        pytest.param(b"/embed ", b"/tokenize ", [], id="other-route"),
        pytest.param(b"/embed ", b"/embed? ", [True], id="empty-query"),
        pytest.param(b"/embed ", b"/embed?a=b ", [False], id="query"),
        pytest.param(b"/embed ", b"/embed?#a ", [], id="fragment"),
        pytest.param(b"application/json", b"text/plain", [False], id="other-type"),
        pytest.param(b"Content-Length: ", b"Content-Length: 0", [True], id="zeros-before-the-length"),
    ],
)
def test_special_requests_get_the_answer_of_the_app(old: bytes, new: bytes, found: list[bool], app: ServedApp) -> None:
    """*found*: for each time that the server looks for an answer, whether there is one."""
    data = request(kept_body(app)).replace(old, new, 1)
    before = len(app.found)
    answers = ask(app, data)
    assert app.found[before:] == found
    with app.without_early_reuse():
        expected = ask(app, data)
    assert [content_of(answer) for answer in answers] == [content_of(answer) for answer in expected]


def test_client_that_waits_before_its_body_is_told_to_send_it(app: ServedApp) -> None:
    body = kept_body(app)
    head, before = request(body, b"Expect: 100-continue")[: -len(body)], len(app.found)
    with connected(app) as connection:
        send(connection, head)
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        send(connection, body)
        assert receive_answer(connection)[0] == 200
    assert app.found[before:] == []


CHUNK = b"%x\r\n%b\r\n0\r\n\r\n"


def test_chunked_body_is_answered_by_the_app(app: ServedApp) -> None:
    body, before = kept_body(app), len(app.found)
    head = request(b"", b"Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"")
    [answer] = ask(app, head + CHUNK % (len(body), body))
    assert (answer[0], answer[1]["x-cache"]) == (200, "hit=1, miss=0, coalesced=0")
    assert app.found[before:] == []


@settings(deadline=None, max_examples=50)
@given(cuts=st.lists(st.integers(0, 150), max_size=4).map(sorted), others=st.integers(0, 2))
def test_request_in_pieces_gets_one_answer(app: ServedApp, cuts: list[int], others: int) -> None:
    """Also if other requests follow at once."""
    data, before = request(kept_body(app)) * (1 + others), len(app.found)
    places = [0, *cuts, len(data)]
    answers = ask(app, *(data[start:end] for start, end in pairwise(places) if start < end))
    assert [(status, headers["x-cache"]) for status, headers, _ in answers] == [(200, "hit=1, miss=0, coalesced=0")] * (
        1 + others
    )
    assert len({json.loads(body)["embedding"][0] for _, _, body in answers}) == 1
    assert app.found[before:] == [True] * (1 + others)


def test_requests_of_one_read_are_answered_in_their_order(app: ServedApp) -> None:
    kept, new = kept_body(app), json.dumps({"text": new_texts(1)[0]}).encode()
    before = len(app.found)
    answers = ask(app, b"".join([request(kept), request(new), request(kept), request(b"{"), request(kept)]))
    assert [status for status, _, _ in answers] == [200, 200, 200, 400, 200]
    assert [headers.get("x-cache") for _, headers, _ in answers] == [
        "hit=1, miss=0, coalesced=0",
        "hit=0, miss=1, coalesced=0",
        "hit=1, miss=0, coalesced=0",
        None,
        "hit=1, miss=0, coalesced=0",
    ]
    assert app.found[before : before + 2] == [
        True,
        False,
    ]  # behind a request without an answer, the app gets the others


@pytest.mark.parametrize("pieces", [1, 2])
def test_refused_callers_do_not_wait_for_their_body(pieces: int, variables: dict[str, str]) -> None:
    keys = "a:{},b:{}:metrics".format("a" * 40, "b" * 40)
    with served_app(**variables, API_KEYS=keys, ALLOWED_HOSTS="me") as app:
        body = json.dumps({"text": new_texts(1)[0]}).encode()
        for _ in range(3):
            [(status, _, _)] = ask(app, request(body, b"X-API-Key: " + b"a" * 40))
            assert status == 200
        assert app.found == [True]
        before = len(app.found)
        others = [(b"X-API-Key: " + b"b" * 40, 403), (b"X-API-Key: " + b"c" * 40, 401), (b"X-Other: 1", 401)]
        for header, expected in others:
            data = request(body, header)
            with connected(app) as connection:
                send(connection, data if pieces == 1 else data[: -len(body)])
                assert receive_answer(connection)[0] == expected
        wrong_host = request(body, b"X-API-Key: " + b"a" * 40).replace(b"Host: me", b"Host: you")
        assert [status for status, _, _ in ask(app, wrong_host)] == [421]
        assert app.found[before:] == []


def test_app_gets_a_held_request_as_it_came(variables: dict[str, str]) -> None:
    """On a path that looks like one of a route, without what was found out about route and caller."""
    with served_app(**variables, API_KEYS="a:" + "a" * 40) as app, watched_log() as log:
        data = request(b'{"text":"one"}', b"X-API-Key: " + b"a" * 40)
        for path, expected in [(b"/embed", 200)] * 2 + [(b"/tei/a/b/c", 404)]:
            assert [status for status, _, _ in ask(app, data.replace(b"/embed", path, 1))] == [expected]
        wait_until_read(app)
        [line] = log.of("request_answered", status=404)
    assert app.found[-1] is False
    assert line["route"] is None
    assert "caller" not in line


def test_body_that_is_too_long_to_compare_is_answered_by_the_app(app: ServedApp) -> None:
    kept_body(app)
    before, padding = len(app.found), b" " * MAX_BODY_BYTES
    answers = [ask(app, request(b'{"text":"one"}' + padding)) for _ in range(3)]
    assert [status for [(status, _, _)] in answers] == [200] * 3
    assert app.found[before:] == []


def test_prefix_of_a_proxy_is_removed(variables: dict[str, str]) -> None:
    with served_app(**variables, ROOT_PATH="/ml") as app:
        data = request(json.dumps({"text": new_texts(1)[0]}).encode())
        answers = [ask(app, data.replace(b"/embed", path, 1)) for path in (b"/embed", b"/ml/embed") * 3]
        assert app.found[-4:] == [True] * 4
        assert [status for [(status, _, _)] in answers] == [200] * 6


@pytest.mark.parametrize("change", [{"ENABLE_RATE_LIMIT": "true"}, {"RESULT_CACHE_MB": "0"}])
def test_app_answers_all_requests_if_they_must_be_counted_elsewhere(
    change: dict[str, str], variables: dict[str, str]
) -> None:
    with served_app(**variables | change) as app:
        assert app.pool.early_reuse is None
        [(status, _, _)] = ask(app, request(b'{"text":"one"}'))
        assert status == 200


def test_answers_are_counted_and_logged_as_those_of_the_app(app: ServedApp) -> None:
    with watched_log() as log:
        body = kept_body(app)
        for _ in range(2):  # the first one counts itself for the second one
            before = app.client.get("/metrics").json()
        with app.without_early_reuse():
            ask(app, request(body, b"X-Request-ID: app"))
        between = app.client.get("/metrics").json()
        ask(app, request(body, b"X-Request-ID: server"))
        after = app.client.get("/metrics").json()
        assert lines(log)[-1] == lines(log)[-2]
        assert [line["request_id"] for line in log.of("request_answered", route="/embed")][-2:] == ["app", "server"]
    by_app, by_server = growth(before, between), growth(between, after)
    assert by_app == by_server
    assert by_app["models", MODEL, "texts"] == by_app["result_cache", "hits"] == 1


def test_wait_for_a_body_counts_as_time_of_the_request(app: ServedApp) -> None:
    data = request(kept_body(app), b"X-Request-ID: late")
    with watched_log() as log:
        with connected(app) as connection:
            send(connection, data[:-1])
            wait_until_read(app)
            read_s = time.monotonic()
            wait_until_read(app)
            waited_s = time.monotonic() - read_s
            send(connection, data[-1:])
            assert receive_answer(connection)[0] == 200
        [line] = log.of("request_answered", request_id="late")
    assert app.found[-1]
    assert line["ms"] >= round(waited_s * 1000, 2)


def test_answers_take_time_of_the_iteration_and_do_not_overtake_requests_that_wait(app: ServedApp) -> None:
    body, before = kept_body(app), len(app.found)
    with patch("web.overload_guard.MAX_ITERATION_S", 0.0):
        answers = ask(app, request(body) * 3)
    assert [status for status, _, _ in answers] == [200] * 3
    assert app.found[before:] == [True, False]  # the app gets what is behind the second one, too


def test_one_read_gets_so_many_answers_and_the_app_gets_the_rest(app: ServedApp) -> None:
    data, before = request(kept_body(app)) * (MAX_PIPELINED + 1), len(app.found)
    assert [status for status, _, _ in ask(app, data, data)] == [200] * 2 * (MAX_PIPELINED + 1)
    assert app.found[before:] == [True] * 2 * MAX_PIPELINED


def growth(before: object, after: object, *path: str) -> dict[tuple[str, ...], float]:
    """Return which whole numbers of a report have grown, and by how much."""
    if isinstance(before, dict) and isinstance(after, dict):
        parts = [growth(before[name], value, *path, name) for name, value in after.items() if name in before]
        return {key: value for part in parts for key, value in part.items()}
    if isinstance(before, int) and isinstance(after, int) and after != before:
        return {path: after - before}
    return {}


@pytest.fixture(scope="module")
def strict(variables: dict[str, str]) -> Iterator[ServedApp]:
    limits = {"HEADER_TIMEOUT": "0.3", "BODY_TIMEOUT": "0.3", "MAX_REQUEST_SIZE": "1KiB"}
    with served_app(**variables, **limits) as app:
        yield app


def test_head_behind_an_answer_must_be_complete_in_time(strict: ServedApp) -> None:
    data = request(kept_body(strict))
    before = len(strict.found)
    with connected(strict) as connection:
        send(connection, data + PROBE[:-2])
        answer, late = receive_answers(connection)
    assert strict.found[before:] == [True]
    assert answer[0] == 200
    rejected(late, 408, "request-too-slow")


@pytest.mark.parametrize("sent", [b"{", b""])
def test_held_body_must_be_complete_in_time(sent: bytes, strict: ServedApp) -> None:
    kept_body(strict)
    data = request(b"{}" * 50)[:-100].replace(b"/embed", b"/v1/embeddings")
    with connected(strict) as connection:
        send(connection, data + sent)
        [(status, _, content)] = receive_answers(connection)
    assert status == 408
    assert json.loads(content)["error"]["code"] == "request_too_slow"  # in the words of OpenAI
    assert strict.pool.counts().body_bytes == 0


def test_body_that_is_too_large_is_refused_unread(strict: ServedApp) -> None:
    kept_body(strict)
    with connected(strict) as connection:
        send(connection, request(b"{" * 1025)[:-1025])
        assert receive_answer(connection)[0] == 413


def test_held_bodies_count_as_memory(strict: ServedApp) -> None:
    kept_body(strict)
    size = 1000
    with ExitStack() as stack:
        connections = [stack.enter_context(connected(strict)) for _ in range(20)]
        for connection in connections:
            send(connection, request(b" " * size)[:-1])
        wait_until_read(strict)
        held = strict.pool.counts().body_bytes
    assert held % (size - 1) == 0
    assert 0 < held <= strict.pool.limits.max_bodies_bytes


def test_answered_bodies_do_not_count_as_memory(app: ServedApp) -> None:
    data = request(kept_body(app))
    with connected(app) as connection:
        send(connection, data)
        assert receive_answer(connection)[0] == 200
        assert app.found[-1]
        wait_until_read(app)
        assert app.pool.counts().body_bytes == 0


def test_draining_server_waits_for_the_body_of_a_request_that_it_holds(variables: dict[str, str]) -> None:
    body = b'{"text":"one"}'
    with running_server(**variables) as server, raw_http.connected(server) as connection:
        for _ in range(3):
            assert raw_http.statuses_of([connection], request(body)) == [200]
        send(connection, request(body)[:-1])
        raw_http.wait_until_closed(server)  # it has read all that was sent before
        server.process.terminate()
        assert server.wait_for("drain_started")["requests"] == 1
        send(connection, body[-1:])
        status, headers, _ = receive_answer(connection)
        assert (status, headers["connection"]) == (200, "close")
        assert server.wait_for_end() == 0


def test_connection_is_closed_for_want_of_a_request_only_while_it_is_idle(variables: dict[str, str]) -> None:
    with served_app(**variables, KEEP_ALIVE_TIMEOUT="0.2", BODY_TIMEOUT="0.4") as app:
        data = request(kept_body(app))
        with connected(app) as idle, connected(app) as busy:
            send(idle, data)
            send(busy, data + data[:-1])
            assert [status for status, _, _ in receive_answers(idle)] == [200]
            assert [status for status, _, _ in receive_answers(busy)] == [200, 408]


def test_bug_in_the_server_is_logged_and_not_called_an_error_of_the_client(app: ServedApp) -> None:
    data, bug = request(kept_body(app)), ZeroDivisionError("a bug")

    class Buggy:
        def may_answer(self, *_: object) -> bool:
            raise bug

    with watched_log() as log, app.with_early_reuse(Buggy()), connected(app) as connection:
        send(connection, data)
        [answer] = receive_answers(connection)
        assert [line["exc_info"] for line in log.of("request_failed")] == [bug]
    rejected(answer, 500, "internal-error")


@pytest.mark.parametrize("part", ["is_host_valid", "set_route"])
def test_app_answers_if_the_search_for_an_answer_fails(part: str, variables: dict[str, str]) -> None:
    with served_app(**variables) as app:
        data = request(kept_body(app))
        with watched_log() as log, patch(f"web.early_reuse.{part}", side_effect=ZeroDivisionError):
            answers = ask(app, data, data)
            bugs = [type(line["exc_info"]) for line in log.of("early_answer_failed")]
        with app.without_early_reuse():
            [expected] = ask(app, data)
        assert [content_of(answer) for answer in answers] == [content_of(expected)] * 2
        assert bugs == [ZeroDivisionError], "the second time, it is known"
        assert [content_of(answer) for answer in ask(app, data)] == [content_of(expected)]
        assert app.found[-1]
        assert app.client.get("/metrics").json()["in_flight"] == 1


def test_held_request_is_in_flight(app: ServedApp) -> None:
    data, before = request(kept_body(app)), len(app.found)
    with connected(app) as held, connected(app) as left:
        send(held, data[:-1])
        send(left, data[:-1])
        wait_until_read(app)
        assert app.client.get("/metrics").json()["in_flight"] == 3
        left.close()
        send(held, data[-1:])
        assert receive_answer(held)[0] == 200
    wait_until_read(app)
    assert app.client.get("/metrics").json()["in_flight"] == 1
    assert app.found[before:] == [True]


@pytest.mark.parametrize("sent", [b"{", b""])
def test_caller_that_leaves_before_its_body_is_complete_is_logged(sent: bytes, app: ServedApp) -> None:
    kept_body(app)
    with watched_log() as log:
        with connected(app) as connection:
            send(connection, request(b"{}" * 50, b"X-Request-ID: gone")[:-100] + sent)
            wait_until_read(app)
        for _ in range(2):  # the end of the connection, and the app's last step
            wait_until_read(app)
        [line] = log.of("request_answered", request_id="gone")
    assert line["status"] == 499
    assert app.pool.counts().body_bytes == 0
