"""Bytes that are no request, or two at once, over a real socket: refused or cut off, and the next caller is served.

A message whose length may be read in two ways lets one caller's bytes pass for another's behind a proxy, so each of
AMBIGUOUS must be answered once at most, and its connection must end there.
"""

import random
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Literal

import httpx
import pytest

from tests.support.servers import ServerProcess, running_server
from tests.support.tiny import TinyModel

pytestmark = pytest.mark.timeout(60)  # it starts processes, on a machine that may be busy

BODY = b'{"text": "one"}'
POST = b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
GET = b"GET /health/live HTTP/1.1\r\nHost: a\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
SMUGGLED = b"GET /models/smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
PATIENCE_S = 30
"""Far longer than any answer takes; a test that meets it has found a connection that hangs."""

AMBIGUOUS = {
    "length-and-chunked": POST + LENGTH + CHUNKED + b"\r\n" + CHUNKS + SMUGGLED,
    "chunked-and-length": POST + CHUNKED + b"Content-Length: 4\r\n\r\n" + CHUNKS + SMUGGLED,
    "two-lengths": POST + LENGTH + b"Content-Length: 0\r\n\r\n" + BODY + SMUGGLED,
    "one-length-twice": POST + LENGTH + LENGTH + b"\r\n" + BODY,
    "list-of-lengths": POST + b"Content-Length: 15, 15\r\n\r\n" + BODY,
    "signed-length": POST + b"Content-Length: +15\r\n\r\n" + BODY,
    "negative-length": POST + b"Content-Length: -15\r\n\r\n" + BODY,
    "hexadecimal-length": POST + b"Content-Length: 0xf\r\n\r\n" + BODY,
    "length-past-64-bits": POST + b"Content-Length: 18446744073709551631\r\n\r\n" + BODY,
    "space-before-the-colon": POST + b"Content-Length : 15\r\n\r\n" + BODY,
    "space-within-a-length": POST + b"Content-Length: 1 5\r\n\r\n" + BODY,
    "folded-header": POST + b"X-A: b\r\n Transfer-Encoding: chunked\r\n" + LENGTH + b"\r\n" + BODY,
    "folded-coding": POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n" + CHUNKS,
    "coding-that-only-looks-chunked": POST + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKS,
    "coding-after-chunked": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n" + CHUNKS,
    "two-codings": POST + CHUNKED + b"Transfer-Encoding: identity\r\n\r\n" + CHUNKS,
    "vertical-tab-in-a-coding": POST + b"Transfer-Encoding: \x0bchunked\r\n" + LENGTH + b"\r\n" + BODY,
    "bare-line-feeds": b"POST /embed HTTP/1.1\nHost: a\nContent-Length: 15\n\n" + BODY,
    "bare-carriage-return": GET + b"X-A: b\rX-B: c\r\n\r\n",
    "negative-chunk": POST + CHUNKED + b"\r\n-f\r\n" + BODY + b"\r\n0\r\n\r\n",
    "prefixed-chunk": POST + CHUNKED + b"\r\n0xf\r\n" + BODY + b"\r\n0\r\n\r\n",
    "chunk-past-64-bits": POST + CHUNKED + b"\r\n1000000000000000f\r\n" + BODY + b"\r\n0\r\n\r\n",
    "chunk-with-bare-line-feeds": POST + CHUNKED + b"\r\nf\n" + BODY + b"\n0\n\n",
    "chunk-longer-than-said": POST + CHUNKED + b"\r\n5\r\n" + BODY + b"\r\n0\r\n\r\n",
    "extension-with-a-bare-line-feed": POST + CHUNKED + b"\r\nf;a\n" + BODY + b"\r\n0\r\n\r\n",
    "length-in-the-trailer": POST + CHUNKED + b"\r\nf\r\n" + BODY + b"\r\n0\r\nContent-Length: 9\r\n\r\n",
    "nul-in-a-header": GET + b"X-A: a\0b\r\n\r\n",
    "nul-in-the-path": b"GET /models/a\0b HTTP/1.1\r\nHost: a\r\n\r\n",
    "header-without-a-colon": GET + b"Content-Length\r\n\r\n",
    "header-without-a-name": GET + b": 15\r\n\r\n",
    "body-of-a-get-that-is-a-request": GET + b"Content-Length: 4\r\n\r\n" + SMUGGLED,
}

NO_REQUESTS = {
    "http-2-preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "http-3": b"GET /health/live HTTP/3.0\r\nHost: a\r\n\r\n",
    "tls": bytes.fromhex("16030100a5010000a10303") + bytes(150),
    "connect": b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
    "unknown-method": b"SMUGGLE / HTTP/1.1\r\nHost: a\r\n\r\n",
    "method-in-small-letters": b"get /health/live HTTP/1.1\r\nHost: a\r\n\r\n",
    "space-in-the-path": b"GET /models/a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "path-without-a-slash": b"GET health/live HTTP/1.1\r\nHost: a\r\n\r\n",
    "bytes-outside-of-ascii-in-the-path": b"GET /models/\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n",
    "path-of-70-kB": b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "noise": random.Random(4).randbytes(5_000),  # noqa: S311 - seeded, so that a failure can be repeated
}

UNUSUAL = {
    "star": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "trace": b"TRACE /health/live HTTP/1.1\r\nHost: a\r\n\r\n",
    "absolute-form": b"GET http://other/health/live HTTP/1.1\r\nHost: a\r\n\r\n",
    "http-0.9": b"GET /health/live\r\n\r\n",
    "empty-lines-first": b"\r\n\r\n" + GET + b"\r\n",
    "upgrade-to-a-websocket": GET + b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\r\n",
    "upgrade-to-http-2": GET + b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMA\r\n\r\n",
    "no-host": b"GET /health/live HTTP/1.1\r\n\r\n",
    "two-hosts": GET + b"Host: b\r\n\r\n",
    "odd-host": b"GET /health/live HTTP/1.1\r\nHost: a b@c/d\r\n\r\n",
    "odd-cookie": GET + b'Cookie: \xff=;;;="\\\r\n\r\n',
    "odd-query": b"GET /health/live?%ff=%zz&&&==;; HTTP/1.1\r\nHost: a\r\n\r\n",
    "three-thousand-headers": GET + b"".join(b"X-%d: y\r\n" % number for number in range(3000)) + b"\r\n",
    "chunk-extension": POST + CHUNKED + b"\r\nf;a=b\r\n" + BODY + b"\r\n0\r\n\r\n",
    "trailer": POST + CHUNKED + b"\r\nf\r\n" + BODY + b"\r\n0\r\nX-A: b\r\n\r\n",
    "chunks-of-one-byte": POST + CHUNKED + b"\r\n" + b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n",
    "chunks-past-the-limit": POST + CHUNKED + b"\r\n" + (b"800\r\n" + b" " * 2048 + b"\r\n") * 8 + b"0\r\n\r\n",
    "length-past-the-limit": POST + b"Content-Length: 1000000000000\r\n\r\n" + BODY,
    "unknown-expectation": POST + b"Expect: 200-ok\r\n" + LENGTH + b"\r\n" + BODY,
}
"""Odd, but with one meaning: any answer below 500 will do."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("models")
    TinyModel("tiny/one").write(folder)
    with running_server(MODELS_DIR=str(folder), REQUIRED_MODELS="tiny/one", MAX_REQUEST_SIZE="4KiB") as server:
        yield server


End = Literal["closed", "answered", "sent"]
"""When no more is sent: never (the server has to close), after the first answer's head, or at once."""
Told = Callable[[bytes, End], bytes]


@pytest.fixture
def told(server: ServerProcess) -> Told:
    """All that the server says to these bytes until it closes the connection."""

    def told(sent: bytes, end: End) -> bytes:
        address = httpx.URL(server.url)
        with socket.create_connection((address.host, address.port or 0), timeout=PATIENCE_S) as connection:
            answer = b""
            with suppress(ConnectionError):  # cut off before all was sent or read
                connection.sendall(sent)
                while end != "sent" and (part := connection.recv(65536)):
                    answer += part
                    if end == "answered" and statuses(answer):
                        break
                if end != "closed":
                    connection.shutdown(socket.SHUT_WR)
                while part := connection.recv(65536):
                    answer += part
            return answer

    return told


@pytest.fixture(autouse=True)
def _neighbour_is_served(server: ServerProcess) -> Iterator[None]:
    yield
    answer = httpx.post(f"{server.url}/embed", json={"text": "one"}, timeout=PATIENCE_S)
    assert answer.status_code == 200
    assert server.process.poll() is None


def statuses(answer: bytes) -> list[int]:
    """Of each answer, in order; interim ones (100) are left out."""
    lines = answer.split(b"HTTP/1.1 ")[1:]
    return [status for line in lines if (status := int(line[:3])) >= 200]


@pytest.mark.parametrize("sent", [pytest.param(sent, id=name) for name, sent in AMBIGUOUS.items()])
def test_message_with_two_readings_is_refused_and_nothing_after_it_is_answered(told: Told, sent: bytes) -> None:
    found = statuses(told(sent, "closed"))
    if found[:1] == [200]:  # the GET before a body that is a request: that one was whole
        found = found[1:]
    assert len(found) <= 1
    assert all(400 <= status < 500 for status in found)


@pytest.mark.parametrize("sent", [pytest.param(sent, id=name) for name, sent in NO_REQUESTS.items()])
def test_what_is_no_request_is_refused(told: Told, sent: bytes) -> None:
    found = statuses(told(sent, "closed"))
    assert len(found) <= 1
    assert all(400 <= status < 500 for status in found)


@pytest.mark.parametrize("sent", [pytest.param(sent, id=name) for name, sent in UNUSUAL.items()])
def test_unusual_request_is_no_failure(told: Told, sent: bytes) -> None:
    found = statuses(told(sent, "answered"))
    assert len(found) == 1
    assert all(status < 500 for status in found)


def test_requests_sent_at_once_are_answered_in_order(told: Told) -> None:
    last = GET + b"Connection: close\r\n\r\n"
    sent = (GET + b"\r\n") * 3 + POST + LENGTH + b"\r\n" + BODY + b"GET /none HTTP/1.1\r\nHost: a\r\n\r\n" + last
    assert statuses(told(sent, "closed")) == [200, 200, 200, 200, 404, 200]


def test_answers_without_a_body_keep_their_place(told: Told) -> None:
    head = b"HEAD /health/live HTTP/1.1\r\nHost: a\r\n\r\n"
    preflight = b"OPTIONS /embed HTTP/1.1\r\nHost: a\r\n\r\n"
    last = b"GET /none HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    assert statuses(told(head + GET + b"\r\n" + preflight + last, "closed")) == [200, 200, 204, 404]


def mutated(chance: random.Random, sent: bytes) -> bytes:
    """*sent* with some bytes taken out, doubled, swapped for others, or put in."""
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(sent) + 1)
        end = min(len(sent), start + chance.choice([0, 1, 1, 2, 8, 40]))
        put = chance.choice([b"", sent[start:end] * 2, chance.randbytes(2), b"\r\n", b"\n", b"\0", b":", b" ", b"0"])
        sent = sent[:start] + put + sent[end:]
    return sent


@pytest.mark.parametrize("seed", range(20))
def test_mutated_requests_never_fail_or_hang(told: Told, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    seeds = [sent for group in (AMBIGUOUS, NO_REQUESTS, UNUSUAL) for sent in group.values() if len(sent) < 5_000]
    for _ in range(25):
        sent = mutated(chance, chance.choice(seeds))
        assert all(status < 500 for status in statuses(told(sent, "sent"))), sent


def test_no_bytes_of_a_stranger_are_logged(server: ServerProcess, told: Told) -> None:
    for sent in (b"squeamish ossifrage\r\n\r\n", GET + b"X-Request-ID: squeamish\x1b[31m\r\n\r\n"):
        told(sent, "sent")
    httpx.get(f"{server.url}/models", headers={"X-Request-ID": "the-last-one"})
    server.wait_for_request("the-last-one")
    assert "squeamish" not in server.log
    assert "Traceback" not in server.log
    assert "request_failed" not in server.log
    assert [line for line in server.lines if not line.startswith("{")] == []
