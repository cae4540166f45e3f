"""Sends cached answers before the app is called, which saves its task and all of its layers."""

import time
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from functools import lru_cache
from typing import Any, Protocol, cast
from urllib.parse import unquote

import structlog
from litestar.types import HTTPScope

from access.principals import Principal
from web.answer_reuse import EXCLUDING, MAX_BODY_BYTES, AnswerReuse
from web.litestar_adapter import is_valid_host, set_route
from web.request_context import KEY, Client, context_of, is_length_up_to
from web.route_table import RouteTable
from web.security_headers import Header

is_host_valid = lru_cache(maxsize=64)(is_valid_host)
log = structlog.get_logger()


class Guard(Protocol):
    """What is used here of the overload guard."""

    def may_start_now(self, route: str) -> bool: ...

    def note_start(self) -> None: ...


class EarlyReuse:
    """Answers requests as the app would: checks who calls, and counts and logs what is sent.

    The server holds a small request that may have a cached answer until its body is complete. Requests that the app
    would answer without their bodies, such as with a 401, it does not hold. If there is a bug here, the app answers.

    Attributes:
        held: requests that the server holds now.
    """

    def __init__(
        self,
        reuse: AnswerReuse,
        *,
        routes: Iterable[str],
        remove_prefix: Callable[[str], str],
        allows_host: Callable[[Iterable[Header]], bool],
        identify: Callable[[Client, Iterable[Header]], Principal | None],
        guard: Guard,
        record: Callable[[HTTPScope, list[Header], float], list[Header]],
        max_body_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Find what *reuse* keeps.

        Args:
            reuse: of the app.
            routes: the templates of routes whose answers may be found; they require the permission `embed`.
            remove_prefix: returns a path without the prefix of the proxy.
            allows_host: returns whether a request with these headers may be answered.
            identify: returns a caller who may use *routes*; None: the app has to find out.
            guard: of the app.
            record: counts and logs a request that was complete at this time and is answered with these headers; returns
                all headers of the answer.
            max_body_bytes: of bodies that the app reads.
            clock: seconds, monotonic; the engine's.
        """
        self._reuse = reuse
        self._routes = RouteTable(routes)
        self._remove_prefix = remove_prefix
        self._allows_host = allows_host
        self._identify = identify
        self._guard = guard
        self._record = record
        self._max_body_bytes = min(max_body_bytes, MAX_BODY_BYTES)
        self._clock = clock
        self._has_failed = False
        self.held = 0

    def may_answer(self, scope: MutableMapping[str, Any], target: bytes) -> bool:
        """Return whether there may be an answer to a POST to *target*; if so, complete the ASGI *scope*.

        The request then counts as held until `release`.
        """
        try:
            may_answer = self._may_answer(scope, target)
        except Exception as error:  # noqa: BLE001 - the app can answer
            self._report_bug(scope, error)
            return False
        self.held += may_answer
        return may_answer

    def find(self, scope: MutableMapping[str, Any], body: bytes) -> tuple[list[Header], bytes] | None:
        """Return headers and body of the answer, and count it as sent; None: the app has to answer."""
        try:
            return self._find(scope, body)
        except Exception as error:  # noqa: BLE001 - the app can answer
            self._report_bug(scope, error)
            return None

    def release(self) -> None:
        """Note that the server no longer holds a request: it has been answered, or the app has it."""
        self.held -= 1

    def _report_bug(self, scope: MutableMapping[str, Any], error: Exception) -> None:
        """Log *error* if it is the first one, and drop what was noted of the request."""
        scope["state"].pop(KEY, None)
        if not self._has_failed:
            self._has_failed = True
            log.error("early_answer_failed", exc_info=error)

    def _may_answer(self, scope: MutableMapping[str, Any], target: bytes) -> bool:
        if not self._reuse.answers or b"#" in target:  # which ends the path, as uvicorn reads it
            return False
        whole_path, _, query = target.decode("latin-1").partition("?")
        path = self._remove_prefix(unquote(whole_path) if "%" in whole_path else whole_path)  # as uvicorn
        if self._routes.find(path) is None or not self._is_plain(scope["headers"]):
            return False
        if (principal := self._identify(scope["client"], scope["headers"])) is None:
            return False
        context = context_of(scope)
        context.principal, context.received_s = principal, self._clock()
        scope["method"], scope["path"], scope["query_string"] = "POST", path, query.encode("latin-1")
        return True

    def _is_plain(self, all_headers: Sequence[Header]) -> bool:
        """Return whether the app would read the body, a small one, and might then send a cached answer."""
        headers = dict(all_headers)
        return (
            is_length_up_to(headers.get(b"content-length", b""), self._max_body_bytes)
            and EXCLUDING.isdisjoint(headers)
            and is_host_valid(headers.get(b"host", b""))
            and self._allows_host(all_headers)
        )

    def _find(self, scope: MutableMapping[str, Any], body: bytes) -> tuple[list[Header], bytes] | None:
        context, http_scope = context_of(scope), cast("HTTPScope", scope)
        started_s, route = self._clock(), self._routes.find(scope["path"])
        if route is not None and self._guard.may_start_now(route):
            self._guard.note_start()
            if (cached := self._reuse.find(http_scope, context, body)) is not None:
                set_route(http_scope, route)
                content = cached.body(self._clock() - started_s)
                headers = self._record(
                    http_scope, [*cached.headers, (b"content-length", b"%d" % len(content))], started_s
                )
                return headers, content
        context.principal = None  # as for any request that begins
        return None
