"""Requests whose results are kept, while the queue of the lanes is full: a real server whose model runs wait."""

import json
import select
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.raw_http import CLIENT, Answer, connected, receive_answer, send
from tests.support.servers import ServerProcess, held_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

KEPT, NEW = "warm warm", "five five"
BODIES = {
    "/embed": {"text": KEPT},
    "/embed/batch": {"texts": [KEPT, KEPT]},
    "/v1/embeddings": {"input": [KEPT]},
    "/v2/embed": {"texts": [KEPT]},
    "/api/embed": {"input": KEPT},
    "/tei": {"inputs": KEPT},
}
"""Requests that are sent before the queue is full."""
LIMITS = {"MAX_QUEUE_SECONDS": "0.05", "THREAD_POOL_WORKERS": "1", "REQUIRED_MODELS": "tiny/one"}


@contextmanager
def full_server(tiny_models: Path, **settings: str) -> Iterator[ServerProcess]:
    """A server that has embedded KEPT, whose queue is full now."""
    with held_server(MODELS_DIR=str(tiny_models), **LIMITS, **settings) as server, ExitStack() as stack:
        for path, body in BODIES.items():
            assert send_all(server, request(path, body))[0] == 200
        server.send_line("hold")
        server.wait_for("command_done")
        fill(server, stack)
        server.wait_for("run_held", times=2)  # the express lane takes small requests once the lane's run is overdue
        fill(server, stack)
        yield server
        server.send_line("release")


def fill(server: ServerProcess, stack: ExitStack) -> None:
    """Send small requests until some are rejected; rejections come at once, and the other requests are held."""
    connections = [stack.enter_context(connected(server))]
    while not select.select(connections, [], [], 0.2)[0]:
        for _ in range(20):
            connections.append(stack.enter_context(connected(server)))
            send(connections[-1], request("/embed", {"text": "one"}))


def request(path: str, body: object, *headers: str) -> bytes:
    content = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: me", "Content-Type: application/json", f"Content-Length: {len(content)}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + content


def send_all(server: ServerProcess, whole: bytes) -> Answer:
    with connected(server) as connection:
        send(connection, whole)
        return receive_answer(connection)


def ask(server: ServerProcess, text: str, *headers: str) -> Answer:
    return send_all(server, request("/embed", {"text": text}, *headers))


def is_refused(answer: Answer, status: int = 503) -> bool:
    got, headers, body = answer
    if got == 200:
        return False
    assert (got, json.loads(body)["code"]) == (status, "overloaded")
    assert int(headers["retry-after"]) >= 1
    return True


def test_kept_results_are_answered_and_everything_else_is_refused(tiny_models: Path) -> None:
    with full_server(tiny_models, RESULT_CACHE_MB="8") as server:
        for _ in range(300):  # hits use no room of lookups
            answer = ask(server, KEPT)
            assert (answer[0], answer[1]["x-cache"]) == (200, "hit=1, miss=0, coalesced=0")
        for path, body in BODIES.items():
            assert send_all(server, request(path, body))[0] == 200, path
        assert is_refused(ask(server, NEW))
        assert is_refused(send_all(server, request("/embed/batch", {"texts": [KEPT, NEW]})))
        assert is_refused(send_all(server, request("/tei", {"inputs": NEW})), status=429)
        assert is_refused(ask(server, KEPT, "Cache-Control: no-cache"))
        assert is_refused(ask(server, KEPT + " " * 70_000))
        assert is_refused(send_all(server, request("/embed", {"text": KEPT, "model_name": "tiny/two"})))
        assert is_refused(send_all(server, request("/api/embed", {"model": "tiny/two"})))
        assert CLIENT.get(f"{server.url}/metrics").json()["cache_info"]["cached_models"] == ["tiny/one"]
        assert server.wait_for("requests_refused")["requests"] >= 1
        assert [event for event in server.events if event.get("status") == 503] == []  # one line for all of them


def is_rejected_unread(server: ServerProcess) -> bool:
    """Return whether a request is rejected before its body arrives; if it is not, send the body."""
    head, _, body = request("/embed", {"text": NEW}, "Origin: https://app.example").partition(b"\r\n\r\n")
    with connected(server) as connection:
        send(connection, head + b"\r\n\r\n")
        is_unread = bool(select.select([connection], [], [], 0.2)[0])
        if not is_unread:
            send(connection, body)
        assert is_refused(receive_answer(connection))
        return is_unread


def test_lookups_in_vain_end_in_rejections_of_unread_requests_for_a_moment(tiny_models: Path) -> None:
    with full_server(tiny_models, RESULT_CACHE_MB="8") as server, ExitStack() as stack:
        assert not is_rejected_unread(server)
        connections = [stack.enter_context(connected(server)) for _ in range(50)]
        new = request("/embed", {"text": NEW})
        while not is_rejected_unread(server):
            for _ in range(20):  # fast: what a caller may hold is free again after a moment
                for connection in connections:
                    send(connection, new)
                assert all(connection.recv(65_536).startswith(b"HTTP/1.1 503 ") for connection in connections)
        while is_refused(ask(server, KEPT)):
            pass  # a rejection of an unread request costs no room


def test_without_kept_results_requests_are_rejected_unread(tiny_models: Path) -> None:
    with full_server(tiny_models, RESULT_CACHE_MB="0") as server:
        assert is_refused(ask(server, KEPT))
        assert is_rejected_unread(server)


def test_deleted_results_let_requests_be_rejected_unread_again(tiny_models: Path) -> None:
    with full_server(tiny_models, RESULT_CACHE_MB="8") as server:
        assert not is_refused(ask(server, KEPT))
        answer = CLIENT.delete(f"{server.url}/cache")
        assert (answer.status_code, answer.json()["entries"] > 0) == (200, True)
        assert is_refused(ask(server, KEPT))
        assert is_rejected_unread(server)
