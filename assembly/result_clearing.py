"""Deletes the cached results of all workers, whichever of them is asked. Imports little: the supervisor uses it, too.

The worker that is asked deletes what is in memory everywhere, then what is in Redis, and then again what is in memory:
what a worker has read from Redis meanwhile.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Protocol

import msgspec

from host.message_channel import ChannelClosedError, Handler, MessageChannel, RemoteCallError

WORKER_TIMEOUT_S = 1.0
"""Seconds in which a worker must delete its results. It takes milliseconds; a worker that hangs never does."""
TIMEOUT_S = 2.0
"""Seconds in which the supervisor must answer."""
CLEAR: Final = "results.clear"
CLEAR_OWN: Final = "results.clear_own"


class ClearedMemory(msgspec.Struct, array_like=True, frozen=True):
    """What was deleted from memory.

    Attributes:
        entries: results.
        bytes: the memory that they took.
        workers: processes that have deleted their results.
        unreachable: processes that did not answer in time; they do it as soon as they can.
    """

    entries: int = 0
    bytes: int = 0
    workers: int = 0
    unreachable: int = 0


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(ClearedMemory).decode


class Worker(Protocol):
    """A worker process, as its supervisor knows it."""

    ready: asyncio.Event
    channel: MessageChannel


class ClearHandlers:
    """The supervisor's side: passes the order on to all workers."""

    def __init__(self, workers: Callable[[], Sequence[Worker]]) -> None:
        """Use *workers* to find the worker processes that run."""
        self._workers = workers

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The handlers for the channel of each worker."""
        return {CLEAR: self._clear_all}

    async def _clear_all(self, _: bytes) -> bytes:
        """Delete the results of all workers, and answer with the sum.

        A worker that is not ready has no results yet, so its answer is not awaited: it handles the order before its
        first request, because its channel opens first.
        """
        workers = self._workers()
        for worker in workers:
            if not worker.ready.is_set():
                worker.channel.notify(CLEAR_OWN)
        cleared = await asyncio.gather(*(_clear(worker) for worker in workers if worker.ready.is_set()))
        return _encode(sum_of(cleared))


async def _clear(worker: Worker) -> ClearedMemory:
    try:
        return _decode(await worker.channel.call(CLEAR_OWN, timeout_s=WORKER_TIMEOUT_S))
    except (ChannelClosedError, RemoteCallError, TimeoutError):
        return ClearedMemory(unreachable=1)


def sum_of(cleared: Iterable[ClearedMemory]) -> ClearedMemory:
    """Return what several processes have deleted together."""
    parts = list(cleared)
    return ClearedMemory(
        entries=sum(part.entries for part in parts),
        bytes=sum(part.bytes for part in parts),
        workers=sum(part.workers for part in parts),
        unreachable=sum(part.unreachable for part in parts),
    )
