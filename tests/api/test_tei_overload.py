"""TEI's routes of a server that has too much work, and of one that shuts down, over real sockets: never a 503."""

import json
import select
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.raw_http import CLIENT, WHOLE, Answer, connected, receive_answer, send
from tests.support.servers import ServerProcess, held_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

PATHS = ("/", "/tei", "/tei/embed/", "/similarity", "/tei/tiny/one", "/tei/tiny%2Fone/embed", "/tei/one/similarity")
"""TEI's own paths that need the model."""
BODY = b'{"inputs": "one"}'


@pytest.fixture
def held(tiny_models: Path) -> Iterator[ServerProcess]:
    """A server whose model runs wait."""
    limits = {"MAX_QUEUE_SECONDS": "0.05", "THREAD_POOL_WORKERS": "1"}
    with held_server(MODELS_DIR=str(tiny_models), REQUIRED_MODELS="tiny/one", **limits) as server:
        server.send_line("hold")
        server.wait_for("command_done")
        yield server


def fill(server: ServerProcess, stack: ExitStack) -> None:
    """Send small requests until some are rejected; rejections come at once, and the other requests are held."""
    connections = [stack.enter_context(connected(server))]
    while not select.select(connections, [], [], 0.2)[0]:
        for _ in range(20):
            connections.append(stack.enter_context(connected(server)))
            send(connections[-1], WHOLE)


def request(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: me\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def ask(server: ServerProcess, path: str, body: bytes = BODY) -> Answer:
    with connected(server) as connection:
        send(connection, request(path, body))
        return receive_answer(connection)


def test_overload_is_a_429_on_the_paths_of_tei_only(held: ServerProcess) -> None:
    with ExitStack() as stack:
        fill(held, stack)
        held.wait_for("run_held", times=2)  # the express lane takes small requests once the lane's run is overdue
        fill(held, stack)
        for path in PATHS:
            status, headers, body = ask(held, path)
            problem = json.loads(body)
            assert (status, problem["status"], problem["code"]) == (429, 429, "overloaded"), path
            assert (problem["error"], problem["error_type"]) == (problem["detail"], "Overloaded")
            assert headers["content-type"] == "application/json"
            assert 1 <= int(headers["retry-after"]) <= 60
            assert headers["x-should-retry"] == "true"
        status, headers, body = ask(held, "/embed")
        problem = json.loads(body)
        assert (status, problem["status"], problem["code"]) == (503, 503, "overloaded")
        assert (problem["error"], problem["error_type"]) == (problem["detail"], "Overloaded")
        assert headers["content-type"] == "application/problem+json"
        held.send_line("release")
    metrics = CLIENT.get(f"{held.url}/metrics").json()
    assert metrics["dialects"]["tei"] == {"requests": len(PATHS), "errors": len(PATHS)}
    assert metrics["statuses"]["429"] == len(PATHS)


def test_overload_is_a_429_on_shared_paths_once_the_body_is_read() -> None:
    """Small requests still fit, so the guard reads the body; the second large one does not fit."""
    texts = ", ".join(f'"one two three four {number}"' for number in range(1_000))
    body = b'{"inputs": [%s]}' % texts.encode()
    with held_server(THREAD_POOL_WORKERS="1", MAX_BULK_QUEUE_SECONDS="0.5") as server, connected(server) as first:
        server.send_line("hold")
        server.wait_for("command_done")
        send(first, request("/embed", body))
        server.wait_for("run_held")
        status, headers, answer = ask(server, "/embed", body)
        assert (status, json.loads(answer)["code"]) == (429, "overloaded")
        assert headers["content-type"] == "application/json"
        assert int(headers["retry-after"]) >= 1
        server.send_line("release")


def test_server_that_shuts_down_answers_429_on_the_paths_of_tei(held: ServerProcess) -> None:
    with connected(held) as at_work:
        send(at_work, WHOLE)
        held.wait_for("run_held")
        held.process.terminate()
        held.wait_for("drain_started")
        for path in (*PATHS, "/tei/tokenize"):
            status, headers, body = ask(held, path)
            assert (status, json.loads(body)["code"], headers["retry-after"]) == (429, "draining", "1"), path
        assert ask(held, "/embed")[0] == 503
        held.send_line("release")
        assert receive_answer(at_work)[0] == 200
