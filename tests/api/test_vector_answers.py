"""Answers with vectors of many texts, sent while they are computed: real connections to a real server."""

import json
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from api.answer_pieces import MAX_PIECE_NUMBERS
from engine.embed_run import MAX_STARTED, SLICE_TEXTS
from tests.support.raw_http import CLIENT, connected, receive_all
from tests.support.servers import ServerProcess, running_server
from tests.support.tiny import WORDS, TinyModel, gather, mean_of

DIM = 1024
GOOD = [word for word in WORDS if word not in {"poison", "nan", "null"}]


def distinct_text(number: int) -> str:
    """Return a text for each number from 1 on, no two of them equal: equal ones would be computed once."""
    words = []
    while number:
        number, digit = divmod(number - 1, len(GOOD))
        words.append(GOOD[digit])
    return " ".join(words)


MANY = [distinct_text(number) for number in range(1, 1501)]
RECEIVE_BUFFER = 4096
"""Bytes that the kernel keeps for a client that does not read. An answer to MANY has 16 MB."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    TinyModel("acme/wide", dim=DIM).write(folder)
    return folder


@pytest.fixture
def server(server_with: Callable[..., ServerProcess], folder: Path) -> ServerProcess:
    """A service that computes the same texts for each test: it keeps no results."""
    return server_with(MODELS_DIR=str(folder), REQUIRED_MODELS="acme/wide", RESULT_CACHE_MB="0")


@pytest.fixture(autouse=True)
def nothing_is_left(server: ServerProcess) -> Iterator[None]:
    """Check after each test that no reservation is held."""
    yield
    assert {
        kind: backlog["seconds"] for kind, backlog in metrics(server)["backlog"].items() if backlog["seconds"]
    } == {}


def metrics(server: ServerProcess) -> dict[str, Any]:
    return dict(CLIENT.get(f"{server.url}/metrics").json())


def post(server: ServerProcess, texts: list[str], request_id: str = "", **options: object) -> httpx.Response:
    headers = {"X-Request-ID": request_id} if request_id else {}
    return CLIENT.post(f"{server.url}/v2/embed", json={"texts": texts, **options}, headers=headers)


def request_of(texts: list[str], *more: str, version: str = "1.1") -> bytes:
    body = json.dumps({"texts": texts}).encode()
    lines = [f"POST /v2/embed HTTP/{version}", "Host: me", f"Content-Length: {len(body)}", *more]
    return "\r\n".join([*lines, "", ""]).encode() + body


def vectors_in(body: bytes) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.asarray(json.loads(body)["embeddings"]["float"], np.float32)


def expected(texts: list[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
    vectors = np.stack([mean_of(text.split(), DIM) for text in texts])
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def split(answer: bytes) -> tuple[str, list[bytes], bool]:
    """Return the head, the chunks of the body, and whether the last chunk is there."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    chunks = list[bytes]()
    while size := re.match(rb"([0-9a-f]+)\r\n", rest):
        start, length = size.end(), int(size[1], 16)
        if not length:
            return head.decode(), chunks, True
        chunks.append(rest[start : start + length])
        rest = rest[start + length + 2 :]
    return head.decode(), chunks, False


@pytest.mark.parametrize("count", [pytest.param(SLICE_TEXTS, id="whole"), pytest.param(SLICE_TEXTS + 1, id="streamed")])
def test_vectors_are_right_and_in_order_in_an_answer_of_one_slice_or_more(server: ServerProcess, count: int) -> None:
    answer = post(server, MANY[:count])
    assert ("content-length" in answer.headers) == (count <= SLICE_TEXTS)
    assert answer.headers["content-type"] == "application/json"
    assert len(answer.headers["x-model-fingerprint"]) == 16
    assert answer.headers["x-embedding-tokens"] == str(sum(2 + len(text.split()) for text in MANY[:count]))
    assert answer.headers["x-embedding-truncated"] == "0"
    assert answer.headers["x-content-type-options"] == "nosniff"
    np.testing.assert_allclose(vectors_in(answer.content), expected(MANY[:count]), atol=1e-6)


def test_answer_is_written_in_small_pieces(server: ServerProcess) -> None:
    with connected(server) as connection:
        connection.sendall(request_of(MANY[:600], "Connection: close"))
        _, chunks, is_complete = split(receive_all(connection))
    assert is_complete
    assert len(vectors_in(b"".join(chunks))) == 600
    assert max(chunk.count(b".") for chunk in chunks) <= MAX_PIECE_NUMBERS


def test_client_of_http_1_0_gets_a_whole_body(server: ServerProcess) -> None:
    with connected(server) as connection:
        connection.sendall(request_of(MANY[:300], version="1.0"))
        head, _, body = receive_all(connection).partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}" in head.decode().lower()
    assert "transfer-encoding" not in head.decode().lower()
    np.testing.assert_allclose(vectors_in(body), expected(MANY[:300]), atol=1e-6)


def test_failure_before_the_first_vectors_is_an_ordinary_error(server: ServerProcess) -> None:
    answer = post(server, ["poison", *MANY[:600]])
    assert (answer.status_code, answer.json()["code"]) == (500, "inference-failed")
    assert int(answer.headers["content-length"]) == len(answer.content)


def test_failure_in_a_later_slice_cuts_the_answer_off(server: ServerProcess) -> None:
    errors = metrics(server)["errors"].get("inference-failed", 0)
    with connected(server) as connection:
        connection.sendall(request_of([*MANY[:600], "poison"], "X-Request-ID: cut"))
        head, chunks, is_complete = split(receive_all(connection))
    assert head.startswith("HTTP/1.1 200")
    assert b"".join(chunks).count(b"[") > SLICE_TEXTS
    assert not is_complete
    assert server.wait_for("answer_cut_off")["code"] == "inference-failed"
    assert server.wait_for_request("cut")["status"] == 200
    assert metrics(server)["errors"]["inference-failed"] == errors + 1
    with pytest.raises(httpx.RemoteProtocolError):
        post(server, [*MANY[:600], "poison"])


def test_deadline_of_a_client_who_does_not_read_cuts_the_answer_off(server: ServerProcess) -> None:
    with connected(server, receive_buffer=RECEIVE_BUFFER) as connection:
        connection.sendall(request_of(MANY, "X-Request-ID: late", "X-Request-Timeout: 1.5"))
        assert server.wait_for_request("late")["status"] == 200
        _, _, is_complete = split(receive_all(connection))
    assert not is_complete
    assert metrics(server)["errors"]["deadline-exceeded"] >= 1


def started(server: ServerProcess, connection: socket.socket, request_id: str) -> dict[str, int]:
    """Send a request for MANY and read the begin of its answer; return the work counters when the lanes are idle."""
    connection.sendall(request_of(MANY, f"X-Request-ID: {request_id}", "Connection: close"))
    assert connection.recv(9, socket.MSG_WAITALL) == b"HTTP/1.1 "
    while True:
        state = metrics(server)
        if not state["queue"]["running"] and not state["queue"]["waiting_texts"]:
            return dict(state["micro_batches"])


def rest_of(connection: socket.socket) -> bytes:
    """Read the answer that has `started` to its end, and return its body."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1_000_000)
    _, chunks, is_complete = split(b"HTTP/1.1 " + receive_all(connection))
    assert is_complete
    return b"".join(chunks)


def test_client_who_stops_reading_holds_no_lane_and_little_memory_and_gets_all_later(server: ServerProcess) -> None:
    before = metrics(server)["micro_batches"]["texts"]
    with connected(server, receive_buffer=RECEIVE_BUFFER) as connection:
        texts = started(server, connection, "slow")["texts"] - before
        # What the server's buffers hold of the first slices has been written; the rest waits for the client.
        assert texts <= (3 + MAX_STARTED) * SLICE_TEXTS < len(MANY)
        assert metrics(server)["backlog"]["bulk"]["seconds"] > 0
        assert post(server, ["one"]).status_code == 200
        body = rest_of(connection)
    np.testing.assert_allclose(vectors_in(body), expected(MANY), atol=1e-6)
    assert metrics(server)["micro_batches"]["texts"] - before == len(MANY) + 1


def test_client_who_leaves_within_the_answer_ends_its_work(server: ServerProcess) -> None:
    with connected(server, receive_buffer=RECEIVE_BUFFER) as connection:
        started(server, connection, "left")
    assert server.wait_for_request("left")["status"] == 499
    assert metrics(server)["queue"]["waiting_texts"] == 0


@pytest.mark.slow
def test_answer_that_has_begun_is_completed_after_sigterm(folder: Path) -> None:
    with running_server(MODELS_DIR=str(folder), REQUIRED_MODELS="acme/wide") as server:
        with connected(server, receive_buffer=RECEIVE_BUFFER) as connection:
            started(server, connection, "drained")
            server.process.terminate()
            server.wait_for("drain_started")
            body = rest_of(connection)
        assert server.wait_for_end(timeout_s=60) == 0
    np.testing.assert_allclose(vectors_in(body), expected(MANY), atol=1e-6)


@pytest.mark.slow
def test_answer_that_has_begun_keeps_its_model_after_sighup(tmp_path: Path) -> None:
    written = TinyModel("acme/wide", dim=DIM).write(tmp_path)
    with (
        running_server(MODELS_DIR=str(tmp_path), REQUIRED_MODELS="acme/wide") as server,
        connected(server, receive_buffer=RECEIVE_BUFFER) as connection,
    ):
        started(server, connection, "reloaded")
        TinyModel("acme/wide", dim=DIM, graph=lambda table: gather(-table)).write_files(written)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("models_reloaded")
        np.testing.assert_allclose(vectors_in(post(server, MANY[:9]).content), -expected(MANY[:9]), atol=1e-6)
        body = rest_of(connection)
    np.testing.assert_allclose(vectors_in(body), expected(MANY), atol=1e-6)
