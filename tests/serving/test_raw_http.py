"""Malformed, ambiguous, odd and random bytes over a real socket: they are rejected, and the next client is served.

If proxies read the length of a message differently, the bytes of one client can pass for those of another ("request
smuggling"). So each ambiguous message gets one answer, and its connection ends.
"""

import random
import re
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.support.raw_http import BODY, CLIENT, connected, receive_all, receive_answers, rejected, send
from tests.support.servers import ServerProcess

pytestmark = pytest.mark.timeout(60)

POST = b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
GET = b"GET /health/live HTTP/1.1\r\nHost: a\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
SMUGGLED = b"GET /models/smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)

MALFORMED = {
    # the length of the body is ambiguous
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
    "chunk-without-a-number": POST + CHUNKED + b"\r\nzz\r\n",
    "thousands-of-tiny-chunks": POST + CHUNKED + b"\r\n" + b"1\r\n \r\n" * 2000 + b"0\r\n\r\n",
    "compressed-coding": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunks-in-http-1.0": b"GET /health/live HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    # not HTTP/1.1
    "http-2-preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "http-2": b"GET /health/live HTTP/2.0\r\nHost: a\r\n\r\n",
    "http-2-upgrade": b"GET /health HTTP/2.0\r\nHost: a\r\nConnection: close, upgrade\r\nUpgrade: h2c\r\n\r\n",
    "http-2-body": b"POST /embed HTTP/2.0\r\nHost: a\r\n" + LENGTH + b"\r\n" + BODY,
    "http-1.2": b"GET /health/live HTTP/1.2\r\nHost: a\r\n\r\n",
    "http-1.1-and-a-space": b"GET /health/live HTTP/1.1 \r\nHost: a\r\n\r\n",
    "http-in-small-letters": b"GET /health/live http/1.1\r\nHost: a\r\n\r\n",
    "http-3": b"GET /health/live HTTP/3.0\r\nHost: a\r\n\r\n",
    "tls": bytes.fromhex("16030100a5010000a10303") + bytes(150),
    "connect": b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
    "unknown-method": b"SMUGGLE / HTTP/1.1\r\nHost: a\r\n\r\n",
    "method-in-small-letters": b"get /health/live HTTP/1.1\r\nHost: a\r\n\r\n",
    "space-in-the-path": b"GET /models/a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "path-without-a-slash": b"GET health/live HTTP/1.1\r\nHost: a\r\n\r\n",
    "bytes-outside-of-ascii-in-the-path": b"GET /models/\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n",
    "noise": random.Random(4).randbytes(5_000),  # noqa: S311 - seeded, so that a failure can be repeated
    "http-0.9": b"GET /health/live\r\n\r\n",
    "no-host": b"GET /health/live HTTP/1.1\r\n\r\n",
    "two-hosts": GET + b"Host: b\r\n\r\n",
    "connect-with-a-path": b"CONNECT http://a/health/live HTTP/1.1\r\nHost: a\r\n\r\n",
    "text": b"hello\r\n\r\n",
}
ODD = {
    "star": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "trace": b"TRACE /health/live HTTP/1.1\r\nHost: a\r\n\r\n",
    "absolute-form": b"GET http://other/health/live HTTP/1.1\r\nHost: a\r\n\r\n",
    "empty-lines-first": b"\r\n\r\n" + GET + b"\r\n",
    "upgrade-to-a-websocket": GET + b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\r\n",
    "upgrade-to-http-2": GET + b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMA\r\n\r\n",
    "odd-host": b"GET /health/live HTTP/1.1\r\nHost: a b@c/d\r\n\r\n",
    "odd-cookie": GET + b'Cookie: \xff=;;;="\\\r\n\r\n',
    "odd-query": b"GET /health/live?%ff=%zz&&&==;; HTTP/1.1\r\nHost: a\r\n\r\n",
    "three-thousand-headers": GET + b"".join(b"X-%d: y\r\n" % number for number in range(3000)) + b"\r\n",
    "chunk-extension": POST + CHUNKED + b"\r\nf;a=b\r\n" + BODY + b"\r\n0\r\n\r\n",
    "trailer": POST + CHUNKED + b"\r\nf\r\n" + BODY + b"\r\n0\r\nX-A: b\r\n\r\n",
    "chunks-of-one-byte": POST + CHUNKED + b"\r\n" + b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n",
    "chunks-past-the-limit": POST + CHUNKED + b"\r\n" + (b"800\r\n" + b" " * 2048 + b"\r\n") * 40 + b"0\r\n\r\n",
    "length-past-the-limit": POST + b"Content-Length: 1000000000000\r\n\r\n" + BODY,
    "unknown-expectation": POST + b"Expect: 200-ok\r\n" + LENGTH + b"\r\n" + BODY,
    "path-of-70-kB": b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
}
"""Messages with one meaning: any answer below 500 will do."""


@pytest.fixture(autouse=True)
def _next_client_is_served(strict: ServerProcess) -> Iterator[None]:
    yield
    answer = CLIENT.post(f"{strict.url}/embed", json={"text": "one"})
    assert answer.status_code == 200
    assert strict.process.poll() is None


def statuses_in(answers: bytes) -> list[int]:
    """Return the status of each answer but interim ones (100), of answers that may have no body."""
    return [status for found in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers) if (status := int(found)) >= 200]


@pytest.mark.parametrize("message", [pytest.param(message, id=name) for name, message in MALFORMED.items()])
def test_malformed_message_gets_a_400_and_nothing_after_it_is_answered(strict: ServerProcess, message: bytes) -> None:
    with connected(strict) as connection:
        send(connection, message)
        [answer] = receive_answers(connection)
    rejected(answer, 400, "malformed-request")


def test_request_in_the_body_of_another_one_is_not_answered(strict: ServerProcess) -> None:
    with connected(strict) as connection:
        send(connection, GET + b"Content-Length: 4\r\n\r\n" + SMUGGLED)
        [(status, headers, _)] = receive_answers(connection)
    assert (status, headers["connection"]) == (200, "close")


@pytest.mark.parametrize("message", [pytest.param(message, id=name) for name, message in ODD.items()])
def test_odd_message_is_no_failure_of_the_service(strict: ServerProcess, message: bytes) -> None:
    answers = b""
    with connected(strict) as connection:
        send(connection, message)
        while not statuses_in(answers):
            answers += connection.recv(65536)
        with suppress(OSError):  # the server may have closed it
            connection.shutdown(socket.SHUT_WR)
        answers += receive_all(connection)
    [status] = statuses_in(answers)
    assert status < 500


def test_pipelined_requests_with_and_without_bodies_are_answered_in_order(strict: ServerProcess) -> None:
    head = b"HEAD /health/live HTTP/1.1\r\nHost: a\r\n\r\n"
    options = b"OPTIONS /embed HTTP/1.1\r\nHost: a\r\n\r\n"
    embed = POST + LENGTH + b"\r\n" + BODY
    missing = b"GET /none HTTP/1.1\r\nHost: a\r\n\r\n"
    with connected(strict) as connection:
        send(connection, head + GET + b"\r\n" + options + embed + missing + GET + b"Connection: close\r\n\r\n")
        assert statuses_in(receive_all(connection)) == [200, 200, 204, 200, 404, 200]


def mutated(chance: random.Random, message: bytes) -> bytes:
    """Remove, double, replace or insert a few bytes of *message*."""
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(message) + 1)
        end = min(len(message), start + chance.choice([0, 1, 1, 2, 8, 40]))
        doubled = message[start:end] * 2
        new = chance.choice([b"", doubled, chance.randbytes(2), b"\r\n", b"\n", b"\0", b":", b" ", b"0"])
        message = message[:start] + new + message[end:]
    return message


@pytest.mark.parametrize("seed", range(5))
def test_mutated_messages_never_fail_or_hang(strict: ServerProcess, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    messages = [message for message in [*MALFORMED.values(), *ODD.values()] if len(message) < 5_000]
    for _ in range(100):
        message = mutated(chance, chance.choice(messages))
        with connected(strict) as connection:
            send(connection, message)
            with suppress(OSError):  # the server may have closed it
                connection.shutdown(socket.SHUT_WR)
            assert all(status < 500 for status in statuses_in(receive_all(connection))), message


def test_malformed_bytes_are_not_logged(strict: ServerProcess) -> None:
    for message in (b"squeamish ossifrage\r\n\r\n", GET + b"X-Request-ID: squeamish\x1b[31m\r\n\r\n"):
        with connected(strict) as connection:
            send(connection, message)
            connection.shutdown(socket.SHUT_WR)
            receive_all(connection)
    CLIENT.get(f"{strict.url}/models", headers={"X-Request-ID": "the-last-one"})
    strict.wait_for_request("the-last-one")
    for word in ("squeamish", "Traceback", "request_failed", "ASGI"):
        assert word not in strict.log
    assert [line for line in strict.lines if not line.startswith("{")] == []
