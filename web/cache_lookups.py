"""Lookups under overload: small requests are read although the queue is full, because their results may be kept.

If all of them are, the request is answered without the queue. If not, the engine refuses it, and it was read in vain.
Lookups in vain take at most about a fifth of the event loop: each is held against its caller for as long as it took and
for a pause, as in `web.large_body_queue`, one after another. While a caller holds their share, their requests are
rejected unread, as without a result cache.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Generator, Iterable
from functools import partial
from http import HTTPStatus
from typing import Any

from litestar.types import ASGIApp, Message, Receive, Scope, Send

from engine.fair_queue import Caller
from engine.ledger import Account, Reservation
from web.cache_control import cache_use
from web.large_body_queue import PAUSE_FACTOR, SMOOTHING
from web.request_context import is_length_up_to
from web.security_headers import Header

MAX_BODY_BYTES = 65_536
"""Larger bodies are not read: what lookups in vain keep in memory, and block at once, stays small."""
MAX_HELD_S = 0.5
"""Limit on what may be held, pauses included. So a burst takes at most a tenth of a second of the event loop beyond its
fifth. One caller may hold 80 %: of refusals that take 0.5 ms each, 160."""
FIRST_SECONDS = 5e-4
"""Estimate of a lookup in vain before the first measurement."""


class CacheLookups:
    """Decides which requests are looked up, and charges those in vain to their callers.

    Attributes:
        account: the seconds that lookups in progress may take, and that those in vain took; pauses are included.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Measure seconds by *clock*."""
        self.account = Account("lookup", MAX_HELD_S)
        self._clock = clock
        self._estimated_s = FIRST_SECONDS
        self._paid_at = 0.0

    def may_look_up(self, caller: Caller, headers: Iterable[Header]) -> bool:
        """Return whether a request with these *headers* may find its results, and its caller has room to try."""
        if self.account.held and self.account.excess(caller, _with_pause(self._estimated_s)) > 0:
            return False  # first: under a flood, this is the usual answer
        length, cache_control = b"", []
        for name, value in headers:
            if name == b"content-length":
                length = value
            elif name == b"cache-control":
                cache_control.append(value.decode("latin-1"))
        return is_length_up_to(length, MAX_BODY_BYTES) and cache_use(cache_control).may_read

    async def run(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send, *, caller: Caller) -> bool:
        """Call *app*, which answers from cached results or refuses. Return whether it has answered, not refused."""
        reservation = Reservation((self.account,), caller)
        reservation.resize(_with_pause(self._estimated_s))
        is_answered = False

        async def observe(message: Message) -> None:
            nonlocal is_answered
            if message["type"] == "http.response.start" and message["status"] < HTTPStatus.BAD_REQUEST:
                is_answered = True
                reservation.resize(0.0)  # it may take long until the client has received all
            await send(message)

        steps = MeasuredSteps(app(scope, receive, observe), self._clock)  # type: ignore[arg-type]  # they are coroutines
        try:
            await steps
        finally:
            if not is_answered:
                self._charge(reservation, steps.seconds)
        return is_answered

    def _charge(self, reservation: Reservation, seconds: float) -> None:
        """Hold what a lookup in vain took, until those before it and its own pause are over."""
        self._estimated_s = SMOOTHING * self._estimated_s + (1 - SMOOTHING) * seconds
        reservation.resize(_with_pause(seconds))
        now_s = self._clock()
        self._paid_at = max(now_s, self._paid_at) + reservation.amount
        asyncio.get_running_loop().call_later(self._paid_at - now_s, reservation.resize, 0.0)


class MeasuredSteps:
    """Awaits a coroutine and measures its steps: the time on the event loop, without what it waits for.

    Attributes:
        seconds: the duration of the steps so far.
    """

    def __init__(self, work: Coroutine[Any, Any, None], clock: Callable[[], float]) -> None:
        """Measure *work* by *clock*."""
        self.seconds = 0.0
        self._work = work
        self._clock = clock

    def __await__(self) -> Generator[Any, Any, None]:
        step: Callable[[], Any] = partial(self._work.send, None)
        while True:
            started_s = self._clock()
            try:
                awaited = step()
            except StopIteration:
                return
            finally:
                self.seconds += self._clock() - started_s
            try:
                result = yield awaited
            except BaseException as error:  # noqa: BLE001 - the coroutine gets it: it is a cancellation
                step = partial(self._work.throw, error)
            else:
                step = partial(self._work.send, result)


def _with_pause(seconds: float) -> float:
    return seconds * (1 + PAUSE_FACTOR)
