"""Retries in Ray Serve's proxy. A substitute for the proxy loses replicas as the real one does: it sends nothing."""

import json
from typing import Any

import pytest

from deploy.ray.retries import Message, Receive, RetryMiddleware, Send

BODY = b'{"text": "x"}'
ANSWER = b'{"embedding": []}'
OURS = [(b"content-type", b"application/json"), (b"x-content-type-options", b"nosniff"), (b"x-request-id", b"mine")]


class Proxy:
    """A substitute for Serve's proxy: each attempt reads the body, then does the next of *acts*."""

    def __init__(self, *acts: str) -> None:
        self.acts = list(acts)
        self.bodies: list[bytes] = []

    async def __call__(self, _: Any, receive: Receive, send: Send) -> None:
        body, has_more = b"", True
        act = self.acts.pop(0)
        while has_more and act != "dies-before-the-body":
            message = await receive()
            body, has_more = body + message.get("body", b""), message.get("more_body", False)
        self.bodies.append(body)
        match act:
            case "answers":
                await send(
                    {"type": "http.response.start", "status": 200, "headers": [*OURS, (b"X-Request-ID", b"other")]}
                )
                await send({"type": "http.response.body", "body": ANSWER})
            case "dies-after-the-head":
                await send({"type": "http.response.start", "status": 200, "headers": OURS})
            case "dies-in-the-answer":
                await send({"type": "http.response.start", "status": 200, "headers": OURS})
                await send({"type": "http.response.body", "body": ANSWER[:5], "more_body": True})
            case "408" | "503" | "404":
                await send(
                    {"type": "http.response.start", "status": int(act), "headers": [(b"content-type", b"text/plain")]}
                )
                await send({"type": "http.response.body", "body": b"from Serve"})


async def ask(
    proxy: Proxy, *parts: bytes, path: str = "/embed", most_body_bytes: int = 1000, leaves: bool = False
) -> list[Message]:
    """Send a request whose body arrives in *parts*; return the messages to the caller."""
    parts = parts or (BODY,)
    came = [
        {"type": "http.request", "body": part, "more_body": number < len(parts)}
        for number, part in enumerate(parts, start=1)
    ]
    if leaves:
        came = [{"type": "http.disconnect"}]
    got: list[Message] = []

    async def receive() -> Message:
        return came.pop(0)

    async def send(message: Message) -> None:
        got.append(message)

    scope = {"type": "http", "path": path, "headers": [(b"x-request-id", b"mine")]}
    await RetryMiddleware(proxy, max_body_bytes=most_body_bytes)(scope, receive, send)
    assert not came or leaves
    return got


def problem_of(got: list[Message]) -> dict[str, Any]:
    assert dict(got[0]["headers"])[b"content-type"] == b"application/problem+json"
    found: dict[str, Any] = json.loads(got[1]["body"])
    assert found["request_id"] == "mine"
    assert found["status"] == got[0]["status"]
    return found


@pytest.mark.parametrize("loss", ["dies", "dies-before-the-body", "dies-after-the-head"])
async def test_request_whose_replica_died_is_answered_by_another(loss: str) -> None:
    proxy = Proxy(loss, "answers")
    head, body = await ask(proxy, BODY[:4], BODY[4:])
    assert (head["status"], body["body"]) == (200, ANSWER)
    assert proxy.bodies[-1] == BODY


async def test_answer_has_the_request_id_once() -> None:
    head, _ = await ask(Proxy("answers"))
    assert [value for name, value in head["headers"] if name.lower() == b"x-request-id"] == [b"mine"]


async def test_request_that_kills_replicas_is_tried_three_times() -> None:
    proxy = Proxy("dies", "dies", "dies", "answers")
    got = await ask(proxy)
    assert problem_of(got)["code"] == "no-replica"
    assert got[0]["status"] == 503
    assert dict(got[0]["headers"])[b"retry-after"] == b"1"
    assert proxy.acts == ["answers"]


async def test_answer_that_has_started_is_not_retried() -> None:
    """The server closes the connection, so the caller sees that the answer is incomplete."""
    proxy = Proxy("dies-in-the-answer", "answers")
    got = await ask(proxy)
    assert [message["type"] for message in got] == ["http.response.start", "http.response.body"]
    assert proxy.acts == ["answers"]


async def test_body_that_is_too_large_to_buffer_is_sent_once() -> None:
    proxy = Proxy("dies", "answers")
    got = await ask(proxy, b"x" * 600, b"x" * 600)
    assert proxy.bodies == [b"x" * 1200]
    assert problem_of(got)["code"] == "no-replica"


async def test_request_of_a_caller_that_has_left_is_not_retried() -> None:
    proxy = Proxy("dies", "answers")
    assert await ask(proxy, leaves=True) == []
    assert proxy.acts == ["answers"]


@pytest.mark.parametrize(
    ("act", "status", "code"),
    [("408", 504, "deadline-exceeded"), ("503", 503, "no-replica"), ("404", 503, "no-replica")],
)
async def test_errors_of_serve_become_problems(act: str, status: int, code: str) -> None:
    got = await ask(Proxy(act))
    assert (got[0]["status"], problem_of(got)["code"], len(got)) == (status, code, 2)


async def test_paths_of_serve_are_left_alone() -> None:
    head, body = await ask(Proxy("503"), path="/-/healthz")
    assert (head["status"], body["body"]) == (503, b"from Serve")
