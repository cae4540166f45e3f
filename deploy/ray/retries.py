"""Middleware for Ray Serve's HTTP proxy: repeats requests whose replica died, and turns Serve's errors into problems.

Serve itself repeats a request only until a replica has accepted it. If that replica dies, the caller gets a plain 500.
Embedding a text twice has no side effects, so this middleware sends the request to another replica.

Ray loads it if each node starts with this folder's repository in `PYTHONPATH` and with
`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=deploy.ray.retries:middlewares` in its environment.
"""

import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from config import load_settings
from engine.errors import DeadlineError, ServiceError
from web.problems import problem_answer, request_id_of
from web.security_headers import BASIC_HEADERS, security_headers_for

CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
SERVE_PATHS = "/-/"
"""Prefix of the paths that Serve itself answers: `/-/healthz`, `/-/routes`."""
MAX_ATTEMPTS = 3
"""Bounds the damage of a request that itself kills replicas."""
REQUEST_ID = b"x-request-id"
SERVE_TIMEOUT_STATUS = 408
"""Serve's answer when its own `request_timeout_s` is over."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

log = logging.getLogger("ray.serve")


class NoReplicaError(ServiceError):
    """No replica has answered."""

    status, code, title = 503, "no-replica", "No replica can answer now"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, retry_after_s=1)


def middlewares() -> Sequence[Any]:
    """Return the middleware that Serve adds to the proxy of every node."""
    from starlette.middleware import Middleware  # noqa: PLC0415 - installed with Ray only

    return [Middleware(RetryMiddleware, max_body_bytes=int(load_settings().max_request_size))]


class RetryMiddleware:
    """ASGI middleware around Serve's proxy."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, max_attempts: int = MAX_ATTEMPTS) -> None:
        """Wrap *app*.

        Args:
            app: Serve's proxy; if a replica dies, it returns without an answer.
            max_body_bytes: requests with larger bodies are not repeated, because the service rejects them anyway.
            max_attempts: how often a request is sent in all.
        """
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._max_attempts = max_attempts

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(SERVE_PATHS):
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(scope["headers"])
        others = [(name, value) for name, value in scope["headers"] if name != REQUEST_ID]
        scope["headers"] = [*others, (REQUEST_ID, request_id.encode())]
        body, answer = _RecordedBody(receive, self._max_body_bytes), _Answer(send, request_id)
        for attempt in range(1, self._max_attempts + 1):
            await self._app(scope, body.replay(), answer.send)
            if answer.has_started or answer.failure or not body.is_replayable:
                break
            log.warning("Request %s lost its replica (attempt %d of %d).", request_id, attempt, self._max_attempts)
        if not answer.has_started and not body.is_disconnected:
            await answer.send_problem(
                answer.failure or NoReplicaError("The replica that processed this request has died. Send it again.")
            )


class _RecordedBody:
    """Records the request body, so that another replica can receive it from the start."""

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self.is_disconnected = False
        self._receive = receive
        self._left_bytes = max_bytes
        self._messages: list[Message] = []

    @property
    def is_replayable(self) -> bool:
        return self._left_bytes >= 0 and not self.is_disconnected

    def replay(self) -> Receive:
        """Return a `receive` that first repeats the recorded messages, then continues with new ones."""
        position = 0

        async def receive() -> Message:
            nonlocal position
            if self._left_bytes >= 0 and position < len(self._messages):
                message = self._messages[position]
            else:
                message = await self._receive()
                self._record(message)
            position += 1
            return message

        return receive

    def _record(self, message: Message) -> None:
        self.is_disconnected = message["type"] == "http.disconnect"
        self._left_bytes -= len(message.get("body", b""))
        self._messages.append(message)
        if self._left_bytes < 0:
            self._messages.clear()


class _Answer:
    """Holds back the head of an answer until its body arrives: until then, another replica can answer instead."""

    def __init__(self, send: Send, request_id: str) -> None:
        self.has_started = False
        self.failure: ServiceError | None = None
        self._send = send
        self._request_id = request_id
        self._head: Message | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._head, self.failure = message, _serve_failure(message)
        elif self.failure is None:
            if self._head is not None:
                await self._start(self._head)
            await self._send(message)

    async def send_problem(self, error: ServiceError) -> None:
        status, headers, body = problem_answer(error, self._request_id)
        headers = [*headers, *security_headers_for(headers)]
        await self._start({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def _start(self, head: Message) -> None:
        """Send the head with a single request id: Serve adds a second one to the service's."""
        self.has_started, self._head = True, None
        others = [(name, value) for name, value in head["headers"] if name.lower() != REQUEST_ID]
        await self._send({**head, "headers": [*others, (REQUEST_ID, self._request_id.encode())]})


def _serve_failure(head: Message) -> ServiceError | None:
    """Return the service's equivalent of an error of Serve itself; None if the service has answered."""
    if BASIC_HEADERS[0][0] in {name.lower() for name, _ in head["headers"]}:
        return None
    if head["status"] == SERVE_TIMEOUT_STATUS:
        return DeadlineError()
    return NoReplicaError("No replica accepts requests now. This request was not processed; send it again.")
