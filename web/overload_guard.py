"""At the door: under overload, work is refused before it is read, decoded and tokenised, and never waits to be told."""

import asyncio
import time
from collections import deque
from collections.abc import Callable

import structlog
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send
from litestar.utils.path import normalize_path

from engine.errors import OverloadedError, ServiceError

QUEUED = frozenset({"/embed", "/embed/batch"})
"""The routes whose requests wait for a lane."""
WORK = QUEUED | {"/tokenize"}
"""Those that hold the event loop for long: bodies are decoded and texts tokenised."""
AT_ONCE = 4
"""Requests that come in between two looks at the sockets: some milliseconds of work."""
MAX_IN_LINE, LINE_S = 1000, 1.0
"""Requests that may stand in line, and for how long."""
TELL_EVERY_S = 1.0

log = structlog.get_logger()


class OverloadGuard:
    """ASGI middleware within the `RequestLog`, which tells the refusal, counts it and adds every answer's headers.

    Ten times the load that can be served means nine refusals to each answer: what one costs is taken from the work. So
    they get no line each in the log, but one line a second for all. And when requests come faster than the event loop
    can take them in, they stand in line before the door: there the loop gets past them, to refuse others at once.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        refusal: Callable[[], ServiceError | None],
        count: Callable[[str, float, str | None], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wrap *app*.

        Args:
            app: what is let in comes there.
            refusal: tells why any work would be refused now, or None where there is room for some.
            count: is told endpoint, seconds and code of each refusal that never comes to the `RequestLog`.
            clock: seconds, monotonic.
        """
        self._app = app
        self._refusal = refusal
        self._count = count
        self._clock = clock
        self._line: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._came_in = 0
        self._refused = 0
        self._since = 0.0

    def turn_away(self, path: str) -> ServiceError | None:
        """Why a POST to *path* is refused now, counted, for a server that answers it itself; None: it may come in."""
        error = self._refusal() if path in QUEUED else None
        if error is not None:
            self._note_refusal()
            self._count(f"POST {path}", 0.0, error.code)
        return error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let work in by and by, and all else at once.

        Raises:
            OverloadedError: the service is full, or too many requests came at once.
        """
        if scope["type"] == ScopeType.HTTP and scope["method"] == "POST" and (route := _route(scope["path"])) in WORK:
            self._check(scope, route)
            if self._line or self._came_in >= AT_ONCE:
                turn = asyncio.get_running_loop().create_future()
                since = self._clock()
                self._line.append((since, turn))
                await turn
                self._check(scope, route, since)
            else:
                self._note_entry()
        await self._app(scope, receive, send)

    def _check(self, scope: Scope, route: str, since: float | None = None) -> None:
        """Refuse what cannot be served; *since* is when it came to stand in line."""
        error = self._refusal() if route in QUEUED else None
        if error is None and (self._is_over(since) if since is not None else len(self._line) >= MAX_IN_LINE):
            error = OverloadedError("Requests come faster than they can be read.", retry_after_s=LINE_S)
        if error is not None:
            scope["path_template"] = route  # counted as its route's, though no router has seen it
            scope["state"]["is_told"] = True
            self._note_refusal()
            raise error

    def _is_over(self, since: float) -> bool:
        return self._clock() - since > LINE_S

    def _note_entry(self) -> None:
        if not self._came_in:
            asyncio.get_running_loop().call_soon(self._admit)
        self._came_in += 1

    def _admit(self) -> None:
        """The event loop has looked at the sockets: the next ones come in, and those who shall be refused."""
        self._came_in = 0
        is_full = self._refusal() is not None
        while self._line and (is_full or self._came_in < AT_ONCE or self._is_over(self._line[0][0])):
            _, turn = self._line.popleft()
            if not turn.done():  # a caller who has left the line is cancelled
                turn.set_result(None)
                self._note_entry()

    def _note_refusal(self) -> None:
        if not self._refused:
            self._since = self._clock()
            asyncio.get_running_loop().call_later(TELL_EVERY_S, self._tell)
        self._refused += 1

    def _tell(self) -> None:
        log.warning("requests_refused", requests=self._refused, seconds=round(self._clock() - self._since, 3))
        self._refused = 0


def _route(path: str) -> str:
    """The route that Litestar finds at *path*, whatever slashes are doubled or stand at its end."""
    return path if path in WORK else normalize_path(path)
