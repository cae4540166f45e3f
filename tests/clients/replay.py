"""Sends requests byte for byte as a client does that is not installed here, and reads the answers as it does."""

import base64
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any

import numpy as np

from tests.clients.support import Rows
from tests.support.raw_http import connected
from tests.support.servers import ServerProcess

PYTHON_REQUESTS = (
    "User-Agent: python-requests/2.32.5",
    "Accept-Encoding: gzip, deflate",
    "Accept: */*",
    "Connection: keep-alive",
)
PYTHON_HTTPX = (
    "Accept: application/json",
    "Accept-Encoding: gzip, deflate",
    "Connection: keep-alive",
    "User-Agent: python-httpx/0.28.1",
)
AIOHTTP = ("Accept: */*", "Accept-Encoding: gzip, deflate", "User-Agent: Python/3.11 aiohttp/3.13.2")
NODE_FETCH = (
    "connection: keep-alive",
    "accept: */*",
    "accept-language: *",
    "sec-fetch-mode: cors",
    "user-agent: node",
    "accept-encoding: gzip, deflate",
)
APACHE = ("Connection: Keep-Alive", "User-Agent: Apache-HttpAsyncClient/4.1.5 (Java/25.0.1)")
"""Headers of HTTP libraries, in the order and case in which they send them."""
JSON = "Content-Type: application/json"
ALIAS = "text-embedding-3-small"
KEYS = tuple(f"key-number-{number}-0123456789" for number in range(3))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client got: the status, the headers with lower-case names, and the body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)


def request(method: str, path: str, body: str = "", headers: Sequence[str] = ()) -> bytes:
    """Return the bytes of a request."""
    content = body.encode()
    length = [f"Content-Length: {len(content)}"] if content else []
    head = "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost:8000", *headers, *length])
    return head.encode() + b"\r\n\r\n" + content


def replay(server: ServerProcess, *requests: bytes) -> list[Answer]:
    """Send each request on a connection of its own, all of them before the first answer is read."""
    with ExitStack() as stack:
        connections = [stack.enter_context(connected(server)) for _ in requests]
        for connection, data in zip(connections, requests, strict=True):
            connection.sendall(data)
        answers = []
        for connection in connections:
            response = HTTPResponse(connection)
            response.begin()
            headers = {name.lower(): value for name, value in response.getheaders()}
            answers.append(Answer(response.status, headers, response.read()))
    return answers


def floats_of(answer: Answer) -> Rows:
    """Return the vectors of OpenAI's answer as clients read them that know no base64."""
    assert answer.status == 200, answer.body
    return np.array([item["embedding"] for item in answer.json["data"]], np.float32)


def base64_of(answer: Answer) -> Rows:
    """Return the vectors of OpenAI's answer as clients read them that have asked for base64."""
    assert answer.status == 200, answer.body
    return np.stack([np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in answer.json["data"]])
