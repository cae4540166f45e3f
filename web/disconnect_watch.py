"""Disconnects: ends the work for a request whose caller has left."""

import asyncio
from collections.abc import Callable

from litestar.types import HTTPReceiveMessage, Receive, WebSocketReceiveMessage

from web.request_context import RequestContext
from web.request_times import RequestTimes

WATCH_DELAY_S = 0.1
"""Seconds after which a task watches for a disconnect. Most answers are sent sooner and need no task."""


class DisconnectWatch:
    """The `receive` of one request: cancels the task that answers it when the caller disconnects.

    A cancellation without `has_disconnected` comes from the server, whose shutdown time is over.

    Our own server calls `context.on_disconnect`. Other ASGI servers report a disconnect only as the result of
    `receive`, which must not be called here before the whole body has arrived: the call would take a part of it.
    """

    def __init__(
        self, receive: Receive, context: RequestContext, times: RequestTimes, clock: Callable[[], float]
    ) -> None:
        """Add to *times*, by *clock*, how long the body takes to arrive."""
        self.has_disconnected = False
        self._receive = receive
        self._times = times
        self._clock = clock
        self._answering = asyncio.current_task()
        self._has_body = False
        self._timer: asyncio.TimerHandle | None = None
        self._watching: asyncio.Task[None] | None = None
        self._server_reports = context.server_reports_disconnect
        context.on_disconnect = self._cancel

    async def receive(self) -> HTTPReceiveMessage | WebSocketReceiveMessage:
        if self._has_body:
            return await self._receive()
        started_s = self._clock()
        try:
            message = await self._receive()
        finally:
            self._times.client_s += self._clock() - started_s
        if message["type"] == "http.disconnect":
            self.has_disconnected = True
            raise asyncio.CancelledError
        if message["type"] == "http.request" and not message.get("more_body"):
            self._has_body = True
            if not self._server_reports:
                self._timer = asyncio.get_running_loop().call_later(WATCH_DELAY_S, self._watch)
        return message

    async def receive_rest(self) -> None:
        """Receive the rest of the body, and drop it."""
        started_s = self._clock()
        while (await self._receive()).get("more_body"):
            pass
        self._times.client_s += self._clock() - started_s

    def stop(self) -> None:
        """Stop watching: the answer is complete."""
        for pending in (self._timer, self._watching):
            if pending is not None:
                pending.cancel()

    def _watch(self) -> None:
        self._watching = asyncio.get_running_loop().create_task(self._wait_for_disconnect())

    async def _wait_for_disconnect(self) -> None:
        if (await self._receive())["type"] == "http.disconnect":
            self._cancel()

    def _cancel(self) -> None:
        self.has_disconnected = True
        if self._answering is not None:
            self._answering.cancel()
