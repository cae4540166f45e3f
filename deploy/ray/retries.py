"""In Serve's HTTP proxy: a request whose replica died is given to another one, and Serve's own failures are problems.

Serve itself sends a request again only until a replica has taken it. One that dies with its replica is a bare 500 for
the caller. To embed a text twice does no harm, so here it is sent once more.

Ray loads this where a node's environment says
`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=deploy.ray.retries:middlewares` and has the folder of `main.py` in
`PYTHONPATH` when the node is started.
"""

import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from config import load_settings
from engine.errors import DeadlineError, ServiceError
from web.problems import problem_answer, request_id_of
from web.security_headers import SECURITY_HEADERS, security_headers_for

CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
SERVES_OWN = "/-/"
"""Below this address Serve answers itself: `/-/healthz`, `/-/routes`."""
TRIES = 3
"""So many replicas a request ends at most, if it is the request that ends them."""
REQUEST_ID = b"x-request-id"
TIMED_OUT = 408
"""What Serve says when its own `request_timeout_s` is over."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

log = logging.getLogger("ray.serve")


class NoReplicaError(ServiceError):
    """No replica gave an answer."""

    status, code, title = 503, "no-replica", "No replica can answer now"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, retry_after_s=1)


def middlewares() -> Sequence[Any]:
    """What Serve puts around its proxy on every node."""
    from starlette.middleware import Middleware  # noqa: PLC0415 - is there where Serve is

    return [Middleware(Retries, most_body_bytes=int(load_settings().max_request_size))]


class Retries:
    """ASGI middleware around all of Serve's proxy."""

    def __init__(self, app: ASGIApp, *, most_body_bytes: int, tries: int = TRIES) -> None:
        """Wrap *app*.

        Args:
            app: Serve's proxy; where a replica dies it returns without an answer.
            most_body_bytes: larger bodies are not kept, so their requests are not sent again; the service refuses
                them anyway.
            tries: how often a request is sent at most.
        """
        self._app = app
        self._most_body_bytes = most_body_bytes
        self._tries = tries

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(SERVES_OWN):
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(scope["headers"])
        others = [(name, value) for name, value in scope["headers"] if name != REQUEST_ID]
        scope["headers"] = [*others, (REQUEST_ID, request_id.encode())]
        body, answer = _Body(receive, self._most_body_bytes), _Answer(send, request_id)
        for attempt in range(1, self._tries + 1):
            await self._app(scope, body.from_the_start(), answer.send)
            if answer.is_out or answer.failure or not body.can_be_sent_again:
                break
            log.warning("Request %s lost its replica (attempt %d of %d).", request_id, attempt, self._tries)
        if not answer.is_out and not body.has_left:
            await answer.tell(
                answer.failure or NoReplicaError("The replica that worked on this has died. Send it again.")
            )


class _Body:
    """What the caller has sent so far, kept so that another replica can be given it from the start."""

    def __init__(self, receive: Receive, most_bytes: int) -> None:
        self.has_left = False
        self._receive = receive
        self._room = most_bytes
        self._kept: list[Message] = []

    @property
    def can_be_sent_again(self) -> bool:
        return self._room >= 0 and not self.has_left

    def from_the_start(self) -> Receive:
        """A `receive` that gives what was kept, then what still comes."""
        given = 0

        async def receive() -> Message:
            nonlocal given
            if self._room >= 0 and given < len(self._kept):
                message = self._kept[given]
            else:
                message = await self._receive()
                self._keep(message)
            given += 1
            return message

        return receive

    def _keep(self, message: Message) -> None:
        self.has_left = message["type"] == "http.disconnect"
        self._room -= len(message.get("body", b""))
        self._kept.append(message)
        if self._room < 0:
            self._kept.clear()


class _Answer:
    """Holds an answer's head back until its body comes: before that, another replica can still give it."""

    def __init__(self, send: Send, request_id: str) -> None:
        self.is_out = False
        self.failure: ServiceError | None = None
        self._send = send
        self._request_id = request_id
        self._head: Message | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._head, self.failure = message, _failure_of(message)
        elif self.failure is None:
            if self._head is not None:
                await self._begin(self._head)
            await self._send(message)

    async def tell(self, error: ServiceError) -> None:
        headers, body = problem_answer(error, self._request_id)
        all_headers = [*headers, *security_headers_for(headers)]
        await self._begin(
            {
                "type": "http.response.start",
                "status": error.status,
                "headers": all_headers,
            }
        )
        await self._send({"type": "http.response.body", "body": body})

    async def _begin(self, head: Message) -> None:
        """Send the head, with one request id: Serve adds a second one to that of the service."""
        self.is_out, self._head = True, None
        own = [(name, value) for name, value in head["headers"] if name.lower() != REQUEST_ID]
        await self._send({**head, "headers": [*own, (REQUEST_ID, self._request_id.encode())]})


def _failure_of(head: Message) -> ServiceError | None:
    """What Serve says in the service's place, told as the service would; None: it is the service's own answer."""
    if SECURITY_HEADERS[0][0] in {name.lower() for name, _ in head["headers"]}:
        return None
    if head["status"] == TIMED_OUT:
        return DeadlineError()
    return NoReplicaError("No replica takes requests now. Nothing of this request was done; send it again.")
